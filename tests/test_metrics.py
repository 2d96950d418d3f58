"""Metrics against closed formulas."""

import pytest
import torch

from mobiler2l_ns.training.metrics import psnr, ssim


def test_psnr_and_ssim_by_hand():
    black = torch.zeros(16, 16, 3)
    assert psnr(black, black + 0.1) == pytest.approx(20.0, abs=1e-4)  # -10 log10(0.01)
    assert psnr(black, black) == pytest.approx(100.0)
    assert ssim(black, black) == pytest.approx(1.0)
    # Constants a and b: (2ab + c1) / (a^2 + b^2 + c1) with c1 = 1e-4: 0.0001 / 0.2501
    assert ssim(black, black + 0.5) == pytest.approx(1e-4 / 0.2501, abs=1e-4)
