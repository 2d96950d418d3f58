"""What the student minimises: pure functions of pictures in 0..1."""

from jaxtyping import Float
from torch import Tensor


def rgb_loss(prediction: Float[Tensor, "B C H W"], target: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
    """Mean squared error of the colours (R2L, Wang et al. 2022, Eq. 3; MobileR2L keeps it)."""
    return (prediction - target).square().mean()
