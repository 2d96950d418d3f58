"""Losses of the student: functions of values in 0..1.

B: patches; H, W: pixels of a patch; h, w: its cells.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def rgb_loss(prediction: Float[Tensor, "B H W 3"], target: Float[Tensor, "B H W 3"]) -> Float[Tensor, ""]:
    """Mean squared error of the colours (R2L, Wang et al. 2022, Eq. 3, as in MobileR2L)."""
    return (prediction - target).square().mean()


def alpha_loss(prediction: Float[Tensor, "B H W 1"], target: Float[Tensor, "B H W 1"]) -> Float[Tensor, ""]:
    """Mean squared error of the accumulation."""
    return (prediction - target).square().mean()


def depth_loss(
    prediction: Float[Tensor, "B H W 1"], target: Float[Tensor, "B H W 1"], accumulation: Float[Tensor, "B H W 1"]
) -> Float[Tensor, ""]:
    """Mean squared error of the depth, weighted by the teacher's accumulation, as a background has no depth.

    Args:
        prediction: Normalised depth: 0 at the near plane, 1 at the far plane.
        target: The teacher's normalised depth; exactly 0 where it is not known.
        accumulation: The teacher's accumulation.
    """
    weight = accumulation * (target > 0)
    return (weight * (prediction - target).square()).mean()


def surface_loss(
    prediction: Float[Tensor, "B h w 1"], target: Float[Tensor, "B H W 1"], accumulation: Float[Tensor, "B H W 1"]
) -> Float[Tensor, ""]:
    """Mean squared error of the depth at which a cell's ray is predicted to meet a surface.

    Args:
        prediction: Normalised depth, one number a cell.
        target: The teacher's normalised depth; exactly 0 where it is not known. A cell's target is the mean of its
            pixels, weighted by accumulation, and so is the cell's weight.
        accumulation: The teacher's accumulation.
    """
    cell = target.shape[1] // prediction.shape[1]
    weight = accumulation * (target > 0)
    known, total = (F.avg_pool2d(x[..., 0], cell)[..., None] for x in (weight, weight * target))
    return (known * (prediction - total / known.clamp_min(1e-3)).square()).mean()
