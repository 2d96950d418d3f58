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


def test_a_traced_graph_has_no_shapes_of_checks():
    images = torch.zeros(2, 8, 8, 3), torch.zeros(2, 8, 8, 3)
    kinds = {node.kind() for node in torch.jit.trace(rgb_loss, images).inlined_graph.nodes()}
    assert "aten::size" not in kinds and len(kinds) > 1


def test_hints_with_shapes_are_found():
    assert has_shape(Float[Tensor, "N"]) and has_shape(Optional[Dict[str, Float[Tensor, "N"]]])
    assert not has_shape(Tensor) and not has_shape(Optional[int]) and not has_shape("Float")
