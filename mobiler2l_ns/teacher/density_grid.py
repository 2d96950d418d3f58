"""A grid of a teacher's density in the unit cube, which tells where the samples of a ray belong.

R: cells along each axis of the cube; N: points.
"""

from typing import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

# Densities at points of the unit cube.
DensityFn = Callable[[Float[Tensor, "N 3"]], Float[Tensor, "N"]]


class DensityGrid:
    """A piecewise constant density over the unit cube.

    Args:
        densities: Density of each cell, per world unit; axes x, y, z.
    """

    def __init__(self, densities: Float[Tensor, "R R R"]):
        self.densities = densities
        self.resolution = densities.shape[0]

    @classmethod
    @torch.no_grad()
    def bake(cls, density_fn: DensityFn, resolution: int, device) -> "DensityGrid":
        """The grid of the densities at the cells' centres.

        Args:
            density_fn: The density.
            resolution: R.
            device: Device of the grid.
        """
        centres = _cells(resolution, device) + 0.5
        return cls(_evaluate(density_fn, centres / resolution).view(resolution, resolution, resolution))

    @torch.no_grad()
    def clear_empty(self, density_fn: DensityFn, diagonal: float, threshold: float = 0.005) -> None:
        """Sets a cell to zero if it and all its neighbours are empty by a more accurate density.

        That density is evaluated at one random point in each cell.

        Args:
            density_fn: The more accurate density.
            diagonal: Length of a cell's diagonal, world units.
            threshold: A cell is empty if its opacity along the diagonal is at most this.
        """
        cells = _cells(self.resolution, self.densities.device)
        opacity = 1 - torch.exp(-diagonal * _evaluate(density_fn, (cells + torch.rand_like(cells)) / self.resolution))
        occupied = (opacity > threshold).view(1, 1, *self.densities.shape).float()
        self.densities *= F.max_pool3d(occupied, 3, stride=1, padding=1)[0, 0]

    def __call__(self, positions: Float[Tensor, "3 *batch"]) -> Float[Tensor, "*batch"]:
        """Densities at positions in the unit cube; positions outside get the density of the nearest cell."""
        x, y, z = (positions * self.resolution).int().clamp_(0, self.resolution - 1)
        return self.densities.view(-1)[(x * self.resolution + y) * self.resolution + z]


def _cells(resolution: int, device) -> Float[Tensor, "N 3"]:
    axis = torch.arange(resolution, device=device, dtype=torch.float32)
    return torch.cartesian_prod(axis, axis, axis)


def _evaluate(density_fn: DensityFn, positions: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
    return torch.cat([density_fn(chunk).view(-1) for chunk in positions.split(1 << 14)])
