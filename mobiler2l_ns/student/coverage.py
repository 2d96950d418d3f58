"""Coverage: which rays the training views contained, and how a camera elsewhere is brought back to them.

A student of an orbit has learned the rays that pass near the orbit's focus; for other rays its colours are artefacts.

H, W: pixels of a view; C: channels, 3 for colours, 4 with alpha, 5 with depth.
"""

from typing import Tuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor, nn

from mobiler2l_ns.cameras import pinhole_rays
from mobiler2l_ns.geometry import up_direction

NUM_VIEWPOINTS = 32
UNBOUNDED_DEPTH = 1e9
FADE_MARGIN = 0.05  # of the trained extent: a view begins to fade this far beyond it, and ends twice as far


class Coverage(nn.Module):
    """Poses of the capture, and the orbit that they form, as buffers: they are saved with the weights.

    Attributes:
        focus: (3,), the point that the orbit goes around.
        focus_depths: (2,), smallest and largest z of the focus in the training cameras; infinite for a path.
        viewpoints: (NUM_VIEWPOINTS, 3, 4), poses that stand for all; zeros in a student that recorded none.
    """

    focus: Float[Tensor, "3"]
    focus_depths: Float[Tensor, "2"]
    viewpoints: Float[Tensor, "N 3 4"]

    def __init__(self):
        super().__init__()
        self.register_buffer("focus", torch.zeros(3))
        self.register_buffer("focus_depths", torch.tensor([-UNBOUNDED_DEPTH, UNBOUNDED_DEPTH]))
        self.register_buffer("viewpoints", torch.zeros(NUM_VIEWPOINTS, 3, 4))

    def set_orbit(self, focus: Float[Tensor, "3"], depths: Tuple[float, float]) -> None:
        """Fixes the orbit.

        Args:
            focus: The point that it goes around.
            depths: Smallest and largest z of the focus in the training cameras.
        """
        self.focus.copy_(focus)
        self.focus_depths.copy_(torch.tensor(depths))

    @property
    def has_focus(self) -> bool:
        """Whether the student was trained on an orbit."""
        return float(self.focus_depths[1]) < UNBOUNDED_DEPTH

    @property
    def is_known(self) -> bool:
        """Whether it is known which rays the training views contained."""
        return self.has_focus and bool(self.viewpoints.any())

    def zoom(self, c2w: Float[Tensor, "3 4"]) -> Tuple[Float[Tensor, ""], float]:
        """How a camera that is nearer or farther than those of the orbit is brought back to what was trained.

        In free space a ray shows the same from wherever it starts. So the points slide along the rays to where they
        are for a camera in the orbit's shell, and the grid is laid out so that a cell covers as much of the content.

        Returns:
            What is added to the points' depths, and what the grid's focal length is multiplied with. 0 and 1 for
            cameras in the shell, and for students of a path.
        """
        depth = (self.focus - c2w[:, 3]) @ -c2w[:, 2]
        trained = depth.clamp(self.focus_depths[0], self.focus_depths[1])
        return depth - trained, float((depth / trained).clamp(0.1, 4.0)) if depth != trained else 1.0

    def extent(self, size: Tuple[int, int], focal: float) -> Float[Tensor, "2"]:
        """How far the rays of training views (H, W) pass the focus, see ``trained_extent``."""
        return trained_extent(self.viewpoints, self.focus, size, focal)

    def mask_uncovered(
        self, view: Float[Tensor, "C H W"], rays: RayBundle, extent: Float[Tensor, "2"]
    ) -> Float[Tensor, "_ H W"]:
        """A view that fades to nothing on white where no training view contained its rays (1, h, w)."""
        up = up_direction(self.viewpoints)
        ratio = coverage_ratio(rays.origins, rays.directions, self.focus, up, extent)
        if bool((ratio <= 1 + FADE_MARGIN).all()):
            return view
        ratio = F.interpolate(ratio.permute(0, 3, 1, 2), size=view.shape[1:], mode="bilinear")[0]
        covered = (2 - (ratio.amax(dim=0, keepdim=True) - 1) / FADE_MARGIN).clamp(0, 1)
        alpha = view[3:4] * covered if len(view) > 3 else covered
        return torch.cat([1 - covered * (1 - view[:3]), alpha, view[4:]])


def spread_viewpoints(c2w: Float[Tensor, "N 3 4"]) -> Float[Tensor, "32 3 4"]:
    """NUM_VIEWPOINTS of a capture's poses at equal steps through their order, for the student's checkpoint."""
    return c2w[torch.linspace(0, len(c2w) - 1, NUM_VIEWPOINTS).round().long().to(c2w.device)]


def trained_extent(
    c2w: Float[Tensor, "N 3 4"], focus: Float[Tensor, "3"], size: Tuple[int, int], focal: float
) -> Float[Tensor, "2"]:
    """How far the rays of training views pass the focus, to the side and upwards; rays beyond were not trained.

    Args:
        c2w: Poses of the training cameras.
        focus: The point that they go around.
        size: (H, W) of their views.
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
    """How far rays with directions of unit length pass the focus, as fractions of the trained extent.

    The three numbers are: to the side, upwards, and the distance, which also finds rays that point away from the
    focus. A ray was not trained where one of them is above 1.
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
    """Smallest distance of rays, with directions of unit length, to a point; rays begin at their origins."""
    offset = point - rays_o
    along = (offset * rays_d).sum(dim=-1, keepdim=True).clamp_min(0)
    return (offset - along * rays_d).norm(dim=-1)
