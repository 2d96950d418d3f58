"""Muon: momentum with an orthogonalised update, for matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

``torch.optim.Muon`` takes 2-D tensors only, and one after the other. A light field has dozens of 1x1 convolutions of
equal shape, so here all matrices of one shape are orthogonalised in one batched product.

B: matrices of one shape.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Type

import torch
from jaxtyping import Float
from nerfstudio.engine.optimizers import OptimizerConfig
from torch import Tensor

from mobiler2l_ns.training.arithmetic import computes_in_bf16


def orthogonalise(
    matrices: Float[Tensor, "B rows columns"], steps: int = 5, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "B rows columns"]:
    """Replaces the singular values of each matrix by values near one, with a quintic Newton-Schulz iteration.

    Args:
        matrices: The matrices; their scale has no effect.
        steps: Iterations. Five map singular values between 0.01 and 1, relative to the norm, to about 0.7..1.2.
        dtype: Arithmetic of the iteration.

    Returns:
        Matrices with the same singular vectors.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.to(matrices.dtype)
    return x.transpose(1, 2) if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with an orthogonalised update.

    A tensor of more than two dimensions is used as a matrix: the first dimension is its rows, the others its columns.

    Args:
        params: Weights of at least two dimensions.
        lr: Spectral norm of the update of a square matrix.
        momentum: Decay of the moving average of gradients.
        weight_decay: Decoupled weight decay, multiplied by lr.
    """

    def __init__(self, params, lr: float = 2e-2, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[(p.shape[0], p.numel() // p.shape[0])].append(p)
            for (rows, columns), params in by_shape.items():
                updates = torch.stack([self._nesterov(p, group["momentum"]).reshape(rows, columns) for p in params])
                # The step of a tall matrix is larger, so that the output of a layer changes as much for every shape.
                step_size = group["lr"] * max(1.0, rows / columns) ** 0.5
                for p, update in zip(params, orthogonalise(updates, dtype=_arithmetic(updates))):
                    if group["weight_decay"]:
                        p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update.view_as(p), alpha=-step_size)
        return loss

    def _nesterov(self, p: Float[Tensor, "*shape"], momentum: float) -> Float[Tensor, "*shape"]:
        gradient, state = p.grad, self.state[p]
        assert gradient is not None  # step() leaves others out
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum)


def _arithmetic(matrices: Float[Tensor, "B rows columns"]) -> torch.dtype:
    """bf16 for many matrices, if the device computes in it; for few, the conversion takes longer than it saves."""
    return torch.bfloat16 if matrices.numel() > 1 << 16 and computes_in_bf16(matrices.device) else matrices.dtype


@dataclass
class MuonOptimizerConfig(OptimizerConfig):
    """Muon, for parameter groups that contain matrices only."""

    _target: Type = Muon
    lr: float = 2e-2
    """Spectral norm of the update of a square matrix."""
    momentum: float = 0.95
    """Decay of the moving average of gradients."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""

    def setup(self, params) -> torch.optim.Optimizer:
        """Builds the optimizer, without nerfstudio's eps, which Muon does not have."""
        return Muon(params, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


@dataclass
class AdamWOptimizerConfig(OptimizerConfig):
    """AdamW, which nerfstudio does not ship."""

    _target: Type = torch.optim.AdamW
    weight_decay: float = 0.0
    """Decoupled weight decay."""
