"""Image metrics on (H, W, 3) images in 0..1, none of which needs the network."""

from pathlib import Path
from typing import Dict, Optional

import torch
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor, nn

_ALEXNET_FILE = "alexnet-owt-7be5be79.pth"
_lpips_metric: Optional[nn.Module] = None
_lpips_reported = False


def psnr(prediction: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of values in 0..1, any equal shapes."""
    error = (prediction - target).square().mean().clamp_min(1e-10)
    return float(-10 * torch.log10(error))


def patch_errors(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each picture of a batch, (B,) of (B, H, W, 3)."""
    return (prediction - target).square().mean(dim=(1, 2, 3))


def ssim(prediction: Tensor, target: Tensor) -> float:
    """Structural similarity of two (H, W, 3) images, with the channels where the metric expects them (NCHW)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    prediction, target = (image.permute(2, 0, 1)[None] for image in (prediction, target))
    return float(structural_similarity_index_measure(prediction, target, data_range=1.0))


def lpips(prediction: Tensor, target: Tensor) -> Optional[float]:
    """LPIPS (AlexNet) of two (H, W, 3) images; None, said once, where the weights are not on this machine."""
    global _lpips_metric, _lpips_reported
    weights = Path(torch.hub.get_dir()) / "checkpoints" / _ALEXNET_FILE
    if _lpips_metric is None and not weights.is_file():
        if not _lpips_reported:
            CONSOLE.print(f"LPIPS is skipped: put {_ALEXNET_FILE} (from PyTorch's model zoo) into {weights.parent}.")
            _lpips_reported = True
        return None
    if _lpips_metric is None:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        _lpips_metric = LearnedPerceptualImagePatchSimilarity(normalize=True).eval().to(prediction.device)
    prediction, target = (image.permute(2, 0, 1)[None].clamp(0, 1) for image in (prediction, target))
    with torch.no_grad():
        value = float(_lpips_metric(prediction, target))
    _lpips_metric.reset()
    return value


def image_metrics(prediction: Tensor, target: Tensor) -> Dict[str, float]:
    """PSNR, SSIM and, where it can be had, LPIPS of two (H, W, 3) images in 0..1."""
    values = {"psnr": psnr(prediction, target), "ssim": ssim(prediction, target), "lpips": lpips(prediction, target)}
    return {name: value for name, value in values.items() if value is not None}


def error_map(prediction: Tensor, target: Tensor) -> Tensor:
    """Where two (H, W, 3) images differ, colour by colour: black where they do not, full from a third on."""
    return (3 * (prediction - target).abs()).clamp(0, 1)
