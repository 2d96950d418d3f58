"""nerfstudio's crop box and background colour, applied to a rendered view of the student or the teacher.

A light field cannot skip what lies in front of the box. So pixels whose surface lies outside the box are masked.
"""

from typing import Optional, Tuple

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components import renderers
from torch import Tensor


def background_colour(rgb: Float[Tensor, "*batch 3"]) -> Float[Tensor, "3"]:
    """The background of rendered views: nerfstudio's override, else white, on which the student was trained."""
    override = renderers.BACKGROUND_COLOR_OVERRIDE
    return torch.ones(3).to(rgb) if override is None else override.to(rgb)


def crop(
    rgb: Float[Tensor, "H W 3"], accumulation: Float[Tensor, "H W 1"], depth: Optional[Float[Tensor, "H W 1"]],
    camera: Cameras, obb_box: Optional[OrientedBox],
) -> Tuple[Float[Tensor, "H W 3"], Float[Tensor, "H W 1"]]:  # fmt: skip
    """Crops a view and composites it onto nerfstudio's background colour.

    Args:
        rgb: Colours on white, 0..1.
        accumulation: Accumulation (alpha), 0..1.
        depth: Distance along the ray, world units; None if it is not known.
        camera: The view's camera, shape (1,).
        obb_box: The crop box; None: no crop.

    Returns:
        Colours on the background, and accumulation.
    """
    if obb_box is None and renderers.BACKGROUND_COLOR_OVERRIDE is None:
        return rgb, accumulation
    mask = torch.ones_like(accumulation) if obb_box is None else box_mask(camera, obb_box, depth)
    colours = (rgb - (1 - accumulation)).clamp_min(0) * mask  # premultiplied by alpha, without white
    accumulation = accumulation * mask
    return colours + background_colour(rgb) * (1 - accumulation), accumulation


def box_mask(camera: Cameras, obb_box: OrientedBox, depth: Optional[Float[Tensor, "H W 1"]]) -> Float[Tensor, "H W 1"]:
    """1 for pixels whose surface lies in the box; without depth, for pixels whose ray meets the box.

    Args:
        camera: The camera, shape (1,).
        obb_box: The box.
        depth: Distance along the ray, world units.
    """
    rays = camera.generate_rays(0, keep_shape=True, obb_box=obb_box)
    assert rays.nears is not None and rays.fars is not None
    inside = (rays.nears < rays.fars) & (rays.nears < 1e9)
    if depth is not None:
        inside &= (rays.nears <= depth) & (depth <= rays.fars)
    return inside.float()
