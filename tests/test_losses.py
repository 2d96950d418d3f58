"""The losses of alpha and depth."""

import pytest
import torch

from mobiler2l_ns.training.losses import alpha_loss, depth_loss


def test_losses_by_hand():
    prediction = torch.tensor([0.5, 0.5, 0.5, 0.5]).view(1, 1, 4, 1)
    target = torch.tensor([0.7, 0.1, 0.0, 0.9]).view(1, 1, 4, 1)
    # 0.04 + 0.16 + 0.25 + 0.16, by 4
    assert float(alpha_loss(prediction, target)) == pytest.approx(0.1525)
    accumulation = torch.tensor([1.0, 0.5, 1.0, 0.0]).view(1, 1, 4, 1)
    # 0.04 + 0.5 * 0.16, none where depth is 0, none where nothing is seen, by 4
    assert float(depth_loss(prediction, target, accumulation)) == pytest.approx(0.03)
