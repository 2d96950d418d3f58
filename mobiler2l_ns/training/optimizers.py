"""Muon: momentum whose update is made orthogonal, for matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

``torch.optim.Muon`` takes 2-D tensors only and treats them one by one; a light field has dozens of equal 1x1
convolutions, so all matrices of one shape are orthogonalised in one batched product here.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Type

import torch
from nerfstudio.engine.optimizers import OptimizerConfig
from torch import Tensor


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Replaces each matrix's singular values by values near one, with a quintic Newton-Schulz iteration.

    Args:
        matrices: (B, rows, columns).
        steps: Iterations; five bring singular values between 0.01 and 1 to about 0.7..1.2.

    Returns:
        (B, rows, columns), same singular vectors.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised. Tensors of more than two dimensions are seen as (first, all others).

    Args:
        params: Weights of at least two dimensions.
        lr: Spectral size of one update of a square matrix.
        momentum: Decay of the running mean of gradients.
        weight_decay: Decoupled decay, times lr.
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
                # Tall matrices get a larger step so that the size of an output's change does not depend on the shape.
                step_size = group["lr"] * max(1.0, rows / columns) ** 0.5
                for p, update in zip(params, orthogonalise(updates)):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update.view_as(p), alpha=-step_size)
        return loss

    def _nesterov(self, p: Tensor, momentum: float) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(buffer, momentum)


@dataclass
class MuonOptimizerConfig(OptimizerConfig):
    """Muon, for groups that hold matrices only."""

    _target: Type = Muon
    lr: float = 2e-2
    """Spectral size of one update of a square matrix."""
    momentum: float = 0.95
    """Decay of the running mean of gradients."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""

    def setup(self, params) -> torch.optim.Optimizer:
        """Builds the optimizer; Muon has no eps."""
        return Muon(params, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


@dataclass
class AdamWOptimizerConfig(OptimizerConfig):
    """AdamW, which nerfstudio does not ship."""

    _target: Type = torch.optim.AdamW
    weight_decay: float = 0.0
    """Decoupled weight decay."""
