"""Views through a lens from a teacher that renders pinhole cameras only, such as a rasteriser of Gaussians.

H, W: pixels of the view; C: channels of an output.
"""

import math
from typing import Callable, Dict, Tuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from mobiler2l_ns.cameras import cell_centres, is_pinhole, rays_at, student_rays

MAX_MARGIN = 1.0  # pixels of the pinhole view beyond each edge, as a fraction of the view's side

Outputs = Dict[str, Shaped[Tensor, "..."]]


def render_through_lens(render: Callable[[Cameras], Outputs], camera: Cameras) -> Outputs:
    """Outputs of a camera with lens distortion, sampled from those of a pinhole camera that contains its rays.

    Outputs that are no images (H, W, C) stay as they are.

    Args:
        render: Renders a pinhole camera (1,).
        camera: A perspective camera (1,).
    """
    if is_pinhole(camera):
        return render(camera)
    height, width = int(camera.height), int(camera.width)
    x, y = _pinhole_coords(camera)
    left, right = _span(x, width)
    top, bottom = _span(y, height)
    whole = Cameras(
        camera.camera_to_worlds, camera.fx, camera.fy, camera.cx - left, camera.cy - top, right - left, bottom - top
    ).to(camera.device)
    grid = torch.stack([(x - left) / (right - left), (y - top) / (bottom - top)], dim=-1) * 2 - 1
    return {
        name: _sample(value, grid) if value.shape[:2] == (bottom - top, right - left) else value
        for name, value in render(whole).items()
    }


def _pinhole_coords(camera: Cameras) -> Tuple[Float[Tensor, "H W"], Float[Tensor, "H W"]]:
    """Columns and rows (H, W) at which a pinhole camera without the lens sees what each pixel sees."""
    height, width = int(camera.height), int(camera.width)
    lens = camera[:]
    lens.camera_to_worlds = torch.eye(3, 4, device=camera.device)[None]
    index = torch.zeros(1, dtype=torch.long, device=camera.device)
    _, rays_d = student_rays(rays_at(lens, index, cell_centres(height, width, (1, 1), camera.device)[None]))
    x, y, _ = rays_d[0].unbind(-1)
    return x * camera.fx + camera.cx, camera.cy - y * camera.fy


def _span(coords: Float[Tensor, "H W"], side: int) -> Tuple[int, int]:
    """First and last column or row, at most MAX_MARGIN sides outside of the view."""
    margin = MAX_MARGIN * side
    low, high = coords.min().clamp_min(-margin), coords.max().clamp_max(side + margin)
    return math.floor(float(low)) - 1, math.ceil(float(high)) + 1


def _sample(image: Float[Tensor, "H1 W1 C"], grid: Float[Tensor, "H W 2"]) -> Float[Tensor, "H W C"]:
    found = F.grid_sample(
        image.permute(2, 0, 1)[None].float(), grid[None].float(), padding_mode="border", align_corners=False
    )
    return found[0].permute(1, 2, 0)
