"""nerfstudio's torch hash grid, computed several times faster on a CPU.

Without tiny-cuda-nn, nerfstudio's ``HashEncoding`` gathers the eight corners of a cell one by one in 64-bit arithmetic.
The functions here return the same features from the same parameters, so checkpoints are interchangeable. The corners'
indices are computed from 32-bit products, one per axis. The weighted sum of the corners is one ``embedding_bag``, and
the gradient of the table is one ``bincount`` per feature.

N: points, L: levels, F: features per level, T: rows of the table, of all levels together.
"""

import types
from typing import Any, Tuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32
from nerfstudio.field_components.encodings import HashEncoding
from torch import Tensor, nn

# The primes of instant-ngp's hash (Mueller et al. 2022, Eq. 4), wrapped to int32. The modulus keeps only the low bits
# of the products, which two's complement preserves.
_PRIMES = (1, 2654435761 - 2**32, 805459861)


def _corners(
    encoding: HashEncoding, positions: Float[Tensor, "N 3"]
) -> Tuple[Int32[Tensor, "NL 8"], Float[Tensor, "NL 8"]]:
    """Table rows and trilinear weights of the eight corners around each point, for N*L points and levels.

    Args:
        encoding: Has the table's size, the levels, and the resolution of each level.
        positions: Points in 0..1.
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
    """Weighted sum of table rows. Only the table gets a gradient; rows and weights, and so the points, get none."""

    @staticmethod
    def forward(
        ctx: Any, table: Float[Tensor, "T F"], rows: Int32[Tensor, "NL 8"], weights: Float[Tensor, "NL 8"]
    ) -> Float[Tensor, "NL F"]:
        ctx.save_for_backward(rows, weights)
        ctx.table_shape = table.shape
        return F.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "NL F"]) -> Tuple[Float[Tensor, "T F"], None, None]:
        rows, weights = ctx.saved_tensors
        num_rows, num_features = ctx.table_shape
        rows = rows.flatten()
        columns = [
            torch.bincount(rows, weights=(weights * grad[:, f : f + 1]).flatten(), minlength=num_rows)
            for f in range(num_features)
        ]
        return torch.stack(columns, dim=-1).to(grad), None, None


def _forward(self: HashEncoding, in_tensor: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch LF"]:
    """Replaces ``HashEncoding.pytorch_fwd``: positions in 0..1 to features, L*F per position."""
    if in_tensor.device.type != "cpu":
        return HashEncoding.pytorch_fwd(self, in_tensor)
    rows, weights = _corners(self, in_tensor.detach().reshape(-1, 3))
    features = _GatherCorners.apply(self.hash_table, rows, weights)
    return features.view(*in_tensor.shape[:-1], self.num_levels * self.features_per_level)


def accelerate_hash_grids(model: nn.Module) -> int:
    """Makes every torch hash grid inside ``model`` fast on a CPU; grids of tiny-cuda-nn are not changed.

    Positions get no gradient afterwards. So do not use this on models that optimise poses or predict normals.

    Returns:
        Number of changed grids.
    """
    grids = [m for m in model.modules() if isinstance(m, HashEncoding) and m.tcnn_encoding is None]
    for grid in grids:
        grid.pytorch_fwd = types.MethodType(_forward, grid)
    return len(grids)
