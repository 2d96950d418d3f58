"""Directions of the rays through photos, kept for each lens.

nerfstudio inverts lens distortion by iteration, three times for each ray. For the few rays of a batch that takes longer
than all else that draws it. The photos of a capture mostly have one lens, so its directions are kept.

N: cameras; L: lenses; H, W: pixels of a photo; B: grids; h, w: rays of a grid.
"""

from functools import cached_property

import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from mobiler2l_ns.cameras import cell_centres, nerfstudio_rays, rays_at, student_rays

MAX_LENSES = 4  # whose directions are kept; photos may have a lens each


class Lenses:
    """The lenses of cameras of one size.

    Args:
        cameras: Cameras (N,) of H x W pixels.
        offset: Where in a pixel the rays are: 0.5 for its centre, 0 for its top left corner.

    Attributes:
        number: The number of each camera's lens.
        count: L.
    """

    def __init__(self, cameras: Cameras, offset: float = 0.5):
        self.cameras, self.offset = cameras, offset
        parts = [cameras.fx, cameras.fy, cameras.cx, cameras.cy, cameras.camera_type, cameras.distortion_params]
        lenses = torch.cat([part.double() for part in parts if part is not None], dim=-1)
        distinct, self.number = torch.unique(lenses, dim=0, return_inverse=True)
        self.count = len(distinct)

    @property
    def are_kept(self) -> bool:
        """Whether there are few enough lenses to keep their directions."""
        return self.count <= MAX_LENSES

    @property
    def nbytes(self) -> int:
        """Bytes that the directions take."""
        pixels = int(self.cameras.height[0]) * int(self.cameras.width[0])
        return self.count * 3 * 4 * pixels if self.are_kept else 0

    def directions(self, index: int) -> Float[Tensor, "3 H W"]:
        """Directions of unit depth through all pixels of a camera, in its own axes."""
        return self._kept[int(self.number[index])] if self.are_kept else self._directions(index)

    def rays(self, indices: Int[Tensor, "B"], coords: Float[Tensor, "B h w 2"]) -> RayBundle:
        """The rays (B, h, w) of ``rays_at``; ``pixel_area`` leaves lens distortion out.

        Args:
            indices: Index of each grid's camera.
            coords: Pixel coordinates (y, x), whose fractions are ``offset``.
        """
        if not self.are_kept:
            return rays_at(self.cameras, indices, coords)
        y, x = coords.long().unbind(-1)
        local = self._kept[self.number[indices][:, None, None], :, y, x]
        pose = self.cameras.camera_to_worlds[indices].to(local)[:, None, None]
        directions = (pose[..., :3] @ local[..., None])[..., 0]
        area = 1 / (self.cameras.fx * self.cameras.fy)[indices].to(local)[:, None, None]
        return nerfstudio_rays(pose[..., 3].expand_as(directions), directions, area)

    @cached_property
    def _kept(self) -> Float[Tensor, "L 3 H W"]:
        numbers = self.number.tolist()
        return torch.stack([self._directions(numbers.index(lens)) for lens in range(self.count)])

    def _directions(self, index: int) -> Float[Tensor, "3 H W"]:
        camera = self.cameras[index : index + 1]
        height, width = int(camera.height), int(camera.width)
        camera.camera_to_worlds = torch.eye(3, 4, device=self.number.device)[None]
        coords = cell_centres(height, width, (1, 1), self.number.device) - 0.5 + self.offset
        rays = rays_at(camera, torch.zeros(1, dtype=torch.long, device=self.number.device), coords[None])
        return student_rays(rays)[1][0].float().permute(2, 0, 1)
