"""nerfstudio's torch hash grid, computed several times faster on a CPU.

nerfstudio's ``HashEncoding`` without tiny-cuda-nn gathers the eight corners of a cell one by one in 64-bit arithmetic.
The functions here return the same features from the same parameters (so checkpoints are interchangeable): corner
indices come from 32-bit products that are computed once an axis, the weighted sum of the corners is one
``embedding_bag``, and the table's gradient is one ``bincount`` a feature.

N: points, L: levels, F: features a level, T: rows of the table (all levels together).
"""

import types

import torch
import torch.nn.functional as F
from nerfstudio.field_components.encodings import HashEncoding
from torch import Tensor, nn

# The primes of instant-ngp's hash (Mueller et al. 2022, Eq. 4), wrapped into int32: only the low bits of the products
# survive the modulus, and two's complement keeps those.
_PRIMES = (1, 2654435761 - 2**32, 805459861)


def _corners(encoding: HashEncoding, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Table rows and trilinear weights of the eight corners around each point.

    Args:
        encoding: Supplies table size, levels and the grid's resolution at each level.
        positions: (N, 3) in 0..1.

    Returns:
        Rows (N*L, 8) int32 and weights (N*L, 8).
    """
    scaled = positions[:, None, :] * encoding.scalings.to(positions).view(-1, 1)  # (N, L, 3)
    low = torch.floor(scaled)
    fraction = scaled - low
    low, high = low.int(), torch.ceil(scaled).int()
    hashed = [(low[..., axis] * prime, high[..., axis] * prime) for axis, prime in enumerate(_PRIMES)]
    weight = [(1 - fraction[..., axis], fraction[..., axis]) for axis in range(3)]
    first_row = torch.arange(encoding.num_levels, dtype=torch.int32, device=positions.device) * encoding.hash_table_size
    rows, weights = [], []
    for a in (0, 1):
        for b in (0, 1):
            hashed_xy, weight_xy = hashed[0][a] ^ hashed[1][b], weight[0][a] * weight[1][b]
            for c in (0, 1):
                rows.append(((hashed_xy ^ hashed[2][c]) & (encoding.hash_table_size - 1)) + first_row)
                weights.append(weight_xy * weight[2][c])
    return torch.stack(rows, dim=-1).flatten(0, 1), torch.stack(weights, dim=-1).flatten(0, 1)


class _GatherCorners(torch.autograd.Function):
    """Weighted sum of table rows. The gradient reaches the table only: points are not optimised here."""

    @staticmethod
    def forward(ctx, table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights)
        ctx.table_shape = table.shape
        return F.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")

    @staticmethod
    def backward(ctx, grad: Tensor):
        rows, weights = ctx.saved_tensors
        num_rows, num_features = ctx.table_shape
        rows = rows.flatten()
        columns = [
            torch.bincount(rows, weights=(weights * grad[:, f : f + 1]).flatten(), minlength=num_rows)
            for f in range(num_features)
        ]
        return torch.stack(columns, dim=-1).to(grad), None, None


def _forward(self: HashEncoding, in_tensor: Tensor) -> Tensor:
    """Drop-in for ``HashEncoding.pytorch_fwd``: (..., 3) positions in 0..1 to (..., L*F) features."""
    if in_tensor.device.type != "cpu":
        return HashEncoding.pytorch_fwd(self, in_tensor)
    rows, weights = _corners(self, in_tensor.detach().reshape(-1, 3))
    features = _GatherCorners.apply(self.hash_table, rows, weights)
    return features.view(*in_tensor.shape[:-1], self.num_levels * self.features_per_level)


def accelerate_hash_grids(model: nn.Module) -> int:
    """Makes every torch hash grid inside ``model`` use the fast path on a CPU; tiny-cuda-nn grids are left alone.

    No gradient reaches the positions afterwards, so leave models alone that train poses or predict normals.

    Returns:
        How many grids were changed.
    """
    grids = [m for m in model.modules() if isinstance(m, HashEncoding) and m.tcnn_encoding is None]
    for grid in grids:
        grid.pytorch_fwd = types.MethodType(_forward, grid)
    return len(grids)
