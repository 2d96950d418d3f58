"""What a student needs of a teacher."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor


@runtime_checkable
class Teacher(Protocol):
    """What a student needs of a teacher."""

    def render(self, camera: Cameras) -> Float[Tensor, "H W 3"]:
        """The view of a camera (1,), colours in 0..1 on white."""
        ...

    def render_all(self, camera: Cameras) -> Float[Tensor, "H W 5"]:
        """The view of a camera (1,): colours, accumulation in 0..1, and z, the distance from the camera plane.

        z is in world units, and 0 where it is not known, as along rays that meet nothing.
        """
        ...

    def surface_depths(self, camera: Cameras) -> Float[Tensor, "N"]:
        """z (distance from the camera plane, world units) of the surfaces that a camera (1,) sees."""
        ...
