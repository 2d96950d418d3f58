"""What the student minimises: pure functions of pictures in 0..1.

B: patches; H, W: their pixels.
"""

from jaxtyping import Float
from torch import Tensor


def rgb_loss(prediction: Float[Tensor, "B C H W"], target: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
    """Mean squared error of the colours (R2L, Wang et al. 2022, Eq. 3; MobileR2L keeps it)."""
    return (prediction - target).square().mean()


def alpha_loss(prediction: Float[Tensor, "B H W 1"], target: Float[Tensor, "B H W 1"]) -> Float[Tensor, ""]:
    """Mean squared error of the accumulation."""
    return (prediction - target).square().mean()


def depth_loss(
    prediction: Float[Tensor, "B H W 1"], target: Float[Tensor, "B H W 1"], accumulation: Float[Tensor, "B H W 1"]
) -> Float[Tensor, ""]:
    """Mean squared error of the depth, weighted by the teacher's accumulation: a background has no depth.

    Args:
        prediction: 0 at the near plane, 1 at the far plane.
        target: The same; exactly 0 where no depth is known.
        accumulation: The teacher's.
    """
    weight = accumulation * (target > 0)
    return (weight * (prediction - target).square()).mean()
