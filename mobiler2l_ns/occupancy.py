"""Where a bounded teacher has density: empty rays then cost nothing, and others are sampled only where it matters."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


class OccupancyGrid:
    """A boolean grid over a box.

    Args:
        occupied: (R, R, R) cells in x, y, z order.
        aabb: (2, 3) corners of the box.
    """

    def __init__(self, occupied: Bool[Tensor, "R R R"], aabb: Float[Tensor, "2 3"]):
        self.occupied, self.aabb = occupied, aabb
        self.resolution = occupied.shape[0]

    @classmethod
    @torch.no_grad()
    def from_density(cls, density_fn, aabb: Float[Tensor, "2 3"], resolution: int = 64, threshold: float = 0.01):
        """Marks cells where density can be seen, and their neighbours.

        Args:
            density_fn: (N, 3) world positions to (N, 1) densities.
            aabb: (2, 3) box.
            resolution: R.
            threshold: Opacity of one cell's diagonal above which it counts.
        """
        size = (aabb[1] - aabb[0]) / resolution
        axis = torch.arange(resolution, device=aabb.device)
        corners = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).view(-1, 3)
        alpha = torch.zeros(len(corners), device=aabb.device)
        for _ in range(4):  # thin parts hide between cell centres, so look at several random points a cell
            points = aabb[0] + (corners + torch.rand_like(corners, dtype=aabb.dtype)) * size
            density = torch.cat([density_fn(chunk).view(-1) for chunk in points.split(1 << 16)])
            alpha = torch.maximum(alpha, 1 - torch.exp(-density * size.norm()))
        grid = (alpha > threshold).view(1, 1, resolution, resolution, resolution).float()
        return cls(F.max_pool3d(grid, 3, stride=1, padding=1)[0, 0] > 0, aabb)

    def intersect(
        self, rays_o: Float[Tensor, "N 3"], rays_d: Float[Tensor, "N 3"]
    ) -> tuple[Float[Tensor, "N 1"], Float[Tensor, "N 1"], Bool[Tensor, "N"]]:
        """First and last distance (units of rays_d) at which each ray is inside occupied cells, and whether it is."""
        to_corner = (self.aabb[:, None] - rays_o) / torch.where(rays_d.abs() < 1e-9, 1e-9, rays_d)  # (2, N, 3)
        enter = to_corner.amin(0).amax(-1).clamp_min(0)
        leave = to_corner.amax(0).amin(-1)
        hit = torch.zeros(len(rays_o), dtype=torch.bool, device=rays_o.device)
        near, far = enter.clone(), leave.clone()
        box = (leave > enter).nonzero()[:, 0]
        for rays in box.split(1 << 14):
            near[rays], far[rays], hit[rays] = self._march(rays_o[rays], rays_d[rays], enter[rays], leave[rays])
        return near[:, None], far[:, None], hit

    def _march(self, rays_o: Tensor, rays_d: Tensor, enter: Tensor, leave: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # The dilation in from_density covers what steps of about one cell's diagonal jump over.
        num_steps = 2 * self.resolution
        step = (leave - enter) / num_steps
        t = enter[:, None] + (torch.arange(num_steps, device=rays_o.device) + 0.5) * step[:, None]
        points = rays_o[:, None] + t[..., None] * rays_d[:, None]
        cell = ((points - self.aabb[0]) * (self.resolution / (self.aabb[1] - self.aabb[0]))).long()
        x, y, z = cell.clamp_(0, self.resolution - 1).unbind(-1)
        inside = self.occupied.view(-1)[(x * self.resolution + y) * self.resolution + z]
        first = inside.byte().argmax(dim=1)
        last = num_steps - 1 - inside.flip(1).byte().argmax(dim=1)
        return enter + first * step, enter + (last + 1) * step, inside.any(dim=1)
