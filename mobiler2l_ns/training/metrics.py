"""Image metrics of images in 0..1. None of them downloads anything.

torchmetrics is imported in functions, because importing nerfstudio does not import it and its import takes seconds.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Dict, Optional

import torch
from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

if TYPE_CHECKING:
    from torchmetrics import Metric

_ALEXNET_FILE = "alexnet-owt-7be5be79.pth"
_lpips_metric: Optional["Metric"] = None
_lpips_reported = False


def psnr(prediction: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"]) -> float:
    """Peak signal-to-noise ratio in dB of values in 0..1."""
    error = (prediction - target).square().mean().clamp_min(1e-10)
    return float(-10 * torch.log10(error))


def patch_errors(prediction: Float[Tensor, "B H W 3"], target: Float[Tensor, "B H W 3"]) -> Float[Tensor, "B"]:
    """Mean squared error of each patch of a batch."""
    return (prediction - target).square().mean(dim=(1, 2, 3))


def ssim(prediction: Float[Tensor, "H W 3"], target: Float[Tensor, "H W 3"]) -> float:
    """Structural similarity of two images."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    value = structural_similarity_index_measure(_to_nchw(prediction), _to_nchw(target), data_range=1.0)
    assert isinstance(value, Tensor)  # a tuple only if the full image of similarities is asked for
    return float(value)


def lpips(prediction: Float[Tensor, "H W 3"], target: Float[Tensor, "H W 3"]) -> Optional[float]:
    """LPIPS (AlexNet) of two images; None, with one message, if the weights are not on this machine."""
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
    with torch.no_grad():
        value = float(_lpips_metric(_to_nchw(prediction).clamp(0, 1), _to_nchw(target).clamp(0, 1)))
    _lpips_metric.reset()
    return value


def image_metrics(prediction: Float[Tensor, "H W 3"], target: Float[Tensor, "H W 3"]) -> Dict[str, float]:
    """``psnr`` (dB), ``ssim`` and, if its weights are on this machine, ``lpips`` of two images."""
    values = {"psnr": psnr(prediction, target), "ssim": ssim(prediction, target), "lpips": lpips(prediction, target)}
    return {name: value for name, value in values.items() if value is not None}


def error_map(prediction: Float[Tensor, "H W 3"], target: Float[Tensor, "H W 3"]) -> Float[Tensor, "H W 3"]:
    """Absolute difference of each colour channel, times three and clipped to 1, to be viewed as an image."""
    return (3 * (prediction - target).abs()).clamp(0, 1)


def _to_nchw(image: Float[Tensor, "H W 3"]) -> Float[Tensor, "1 3 H W"]:
    return image.permute(2, 0, 1)[None]
