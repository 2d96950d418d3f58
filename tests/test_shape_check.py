"""The test run checks the shapes in the package's signatures (``--jaxtyping-packages`` in pyproject.toml)."""

from typing import Dict, Optional

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from shape_check import has_shape
from torch import Tensor

from mobiler2l_ns.training.losses import rgb_loss


def test_a_wrong_shape_is_an_error():
    image = torch.zeros(2, 8, 8, 3)
    assert rgb_loss(image, image) == 0
    with pytest.raises(TypeCheckError):
        rgb_loss(image.permute(0, 3, 1, 2), image.permute(0, 3, 1, 2))
    with pytest.raises(TypeCheckError):
        rgb_loss(image, image[:1])


def test_nothing_is_checked_while_torch_traces():
    """Checks read shapes, which are part of what is traced and make an export several times as long."""
    wrong = torch.zeros(2, 3, 8, 8)
    with pytest.raises(TypeCheckError):
        rgb_loss(wrong, wrong)
    traced = torch.jit.trace(rgb_loss, (wrong, wrong), check_trace=False)
    assert traced(wrong, wrong) == 0


def test_hints_with_shapes_are_found():
    assert has_shape(Float[Tensor, "N"]) and has_shape(Optional[Dict[str, Float[Tensor, "N"]]])
    assert not has_shape(Tensor) and not has_shape(Optional[int]) and not has_shape("Float")
