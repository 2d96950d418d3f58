"""Coverage: which rays the training views of an orbit contained. A student knows nothing about the others."""

from typing import Tuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mobiler2l_ns.cameras import pinhole_rays
from mobiler2l_ns.geometry import up_direction


def trained_extent(
    c2w: Float[Tensor, "N 3 4"], focus: Float[Tensor, "3"], size: Tuple[int, int], focal: float
) -> Float[Tensor, "2"]:
    """How far the rays of training pictures pass the focus, to the side and upwards: rays beyond were never seen.

    Args:
        c2w: Poses of the training cameras.
        focus: What they go around.
        size: (H, W) of their pictures.
        focal: Their focal length in pixels.
    """
    height, width = size
    y, x = torch.linspace(0, height, 9).to(c2w), torch.linspace(0, width, 9).to(c2w)
    coords = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).expand(len(c2w), 9, 9, 2)
    rays = pinhole_rays(c2w, focal, height, width, coords)
    return ray_offsets(rays.origins, rays.directions, focus, up_direction(c2w)).abs().amax(dim=(0, 1, 2))


def coverage_ratio(
    rays_o: Float[Tensor, "*batch 3"], rays_d: Float[Tensor, "*batch 3"], focus: Float[Tensor, "3"],
    up: Float[Tensor, "3"], extent: Float[Tensor, "2"],
) -> Float[Tensor, "*batch 3"]:  # fmt: skip
    """How far rays with directions of unit length pass the focus, as parts of the trained extent.

    To the side, upwards, and altogether, which also tells of rays that turn their back on the focus. A ray was never
    seen where one of them is above 1.
    """
    offsets = ray_offsets(rays_o, rays_d, focus, up).abs() / extent
    distance = ray_distances(rays_o, rays_d, focus) / extent.norm()
    return torch.cat([offsets, distance[..., None]], dim=-1)


def ray_offsets(
    rays_o: Float[Tensor, "*batch 3"], rays_d: Float[Tensor, "*batch 3"], point: Float[Tensor, "3"],
    up: Float[Tensor, "3"],
) -> Float[Tensor, "*batch 2"]:  # fmt: skip
    """How far rays with directions of unit length pass a point that lies ahead: to the right and upwards."""
    ahead = point - rays_o
    right = F.normalize(torch.linalg.cross(ahead, up.expand_as(ahead)), dim=-1)
    upwards = torch.linalg.cross(right, ahead)
    return torch.stack([ahead.norm(dim=-1) * (rays_d * right).sum(-1), (rays_d * upwards).sum(-1)], dim=-1)


def ray_distances(
    rays_o: Float[Tensor, "*batch 3"], rays_d: Float[Tensor, "*batch 3"], point: Float[Tensor, "3"]
) -> Float[Tensor, "*batch"]:
    """How near rays, with directions of unit length, come to a point; what lies behind their origins does not count."""
    offset = point - rays_o
    along = (offset * rays_d).sum(dim=-1, keepdim=True).clamp_min(0)
    return (offset - along * rays_d).norm(dim=-1)
