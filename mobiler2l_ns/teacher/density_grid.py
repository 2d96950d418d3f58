"""A teacher's density, looked up: one value a cell of the unit cube, to tell a ray where its samples belong."""

from typing import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class DensityGrid:
    """A piecewise constant density over the unit cube.

    Args:
        densities: (R, R, R) in x, y, z order; per unit of length in the world.
    """

    def __init__(self, densities: Float[Tensor, "R R R"]):
        self.densities = densities
        self.resolution = densities.shape[0]

    @classmethod
    @torch.no_grad()
    def bake(cls, density_fn: Callable[[Tensor], Tensor], resolution: int, device) -> "DensityGrid":
        """The density at the centre of every cell.

        Args:
            density_fn: (N, 3) positions in the unit cube to N densities.
            resolution: R.
            device: Where the grid lives.
        """
        centres = _cells(resolution, device) + 0.5
        return cls(_evaluate(density_fn, centres / resolution).view(resolution, resolution, resolution))

    @torch.no_grad()
    def clear_empty(self, density_fn: Callable[[Tensor], Tensor], diagonal: float, threshold: float = 0.005) -> None:
        """Sets cells to zero that, like all their neighbours, show nothing at a random point by a better density.

        Args:
            density_fn: (N, 3) positions in the unit cube to N densities.
            diagonal: Length of a cell's diagonal in the world.
            threshold: Opacity along that diagonal below which a cell shows nothing.
        """
        cells = _cells(self.resolution, self.densities.device)
        opacity = 1 - torch.exp(-diagonal * _evaluate(density_fn, (cells + torch.rand_like(cells)) / self.resolution))
        shows = (opacity > threshold).view(1, 1, *self.densities.shape).float()
        self.densities *= F.max_pool3d(shows, 3, stride=1, padding=1)[0, 0]

    def __call__(self, positions: Float[Tensor, "3 *batch"]) -> Float[Tensor, "*batch"]:
        """Densities at positions in the unit cube; those outside take the nearest cell's."""
        x, y, z = (positions * self.resolution).int().clamp_(0, self.resolution - 1)
        return self.densities.view(-1)[(x * self.resolution + y) * self.resolution + z]


def _cells(resolution: int, device) -> Float[Tensor, "N 3"]:
    axis = torch.arange(resolution, device=device, dtype=torch.float32)
    return torch.cartesian_prod(axis, axis, axis)


def _evaluate(density_fn: Callable[[Tensor], Tensor], positions: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
    return torch.cat([density_fn(chunk).view(-1) for chunk in positions.split(1 << 14)])
