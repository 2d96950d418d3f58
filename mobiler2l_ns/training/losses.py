"""Losses of the student: functions of values in 0..1.

B: patches; H, W: pixels of a patch.
"""

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
