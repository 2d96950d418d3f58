"""nerfstudio's crop box and background colour on a finished picture, the student's or the teacher's.

A light field cannot leave out what lies in front of a box, so a picture is masked: what it shows outside is taken away.
"""

from typing import Optional, Tuple

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components import renderers
from torch import Tensor


def background_colour(rgb: Tensor) -> Float[Tensor, "3"]:
    """What pictures are put on: white, as the student learned them, unless nerfstudio asks for something else."""
    override = renderers.BACKGROUND_COLOR_OVERRIDE
    return torch.ones(3).to(rgb) if override is None else override.to(rgb)


def crop(
    rgb: Float[Tensor, "H W 3"], accumulation: Float[Tensor, "H W 1"], depth: Optional[Float[Tensor, "H W 1"]],
    camera: Cameras, obb_box: Optional[OrientedBox],
) -> Tuple[Float[Tensor, "H W 3"], Float[Tensor, "H W 1"]]:  # fmt: skip
    """A picture on white and its accumulation, cropped and put on the background that nerfstudio asks for.

    Args:
        rgb: The picture.
        accumulation: Its alpha.
        depth: Distance along the ray; None where it is not known.
        camera: The camera (1,) that sees it.
        obb_box: The box to keep; None: all of it.
    """
    if obb_box is None and renderers.BACKGROUND_COLOR_OVERRIDE is None:
        return rgb, accumulation
    mask = torch.ones_like(accumulation) if obb_box is None else box_mask(camera, obb_box, depth)
    colours = (rgb - (1 - accumulation)).clamp_min(0) * mask  # times alpha, and no longer on white
    accumulation = accumulation * mask
    return colours + background_colour(rgb) * (1 - accumulation), accumulation


def box_mask(camera: Cameras, obb_box: OrientedBox, depth: Optional[Tensor]) -> Float[Tensor, "H W 1"]:
    """1 for pixels whose surface lies in a box; without depth, for those whose ray meets it."""
    rays = camera.generate_rays(0, keep_shape=True, obb_box=obb_box)
    inside = (rays.nears < rays.fars) & (rays.nears < 1e9)
    if depth is not None:
        inside &= (rays.nears <= depth) & (depth <= rays.fars)
    return inside.float()
