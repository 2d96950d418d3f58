"""Losses of the student: functions of values in 0..1.

B: patches; H, W: pixels of a patch; h, w: its cells.
"""

from typing import Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

EMPTY = 0.01  # a cell with less accumulation meets no surface
EMPTY_WEIGHT = 0.1  # weight of such a cell; a cell that a surface fills has 1


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
    prediction: Float[Tensor, "B h w N"], target: Float[Tensor, "B H W 1"], accumulation: Float[Tensor, "B H W 1"],
    known: Optional[Bool[Tensor, "B H W 1"]] = None,
) -> Float[Tensor, ""]:  # fmt: skip
    """Mean squared error of the depth at which a cell's ray is predicted to meet a surface.

    A ray that meets nothing has the far plane as its target, with a small weight. Without a target it may be predicted
    to meet a surface of other rays, and then it shows their colour in the background.

    Args:
        prediction: Normalised depth, N predictions a cell.
        target: The teacher's normalised depth; exactly 0 where it is not known. A cell's target is the mean of its
            pixels, weighted by accumulation, and so is the cell's weight.
        accumulation: The teacher's accumulation.
        known: Where accumulation is known; None: everywhere.
    """
    cell = target.shape[1] // prediction.shape[1]
    weight = accumulation * (target > 0)
    if known is not None:
        accumulation = accumulation.where(known, 1.0)  # there may be a surface
    met, share, total = (F.avg_pool2d(x[..., 0], cell)[..., None] for x in (accumulation, weight, weight * target))
    errors = share * (prediction - total / share.clamp_min(1e-3)).square()
    errors = errors + EMPTY_WEIGHT * (met < EMPTY) * (prediction - 1).square()
    return errors.mean()


def structure_loss(
    prediction: Float[Tensor, "B H W 3"], target: Float[Tensor, "B H W 3"], window: int = 8
) -> Float[Tensor, ""]:
    """1 - SSIM (Wang et al. 2004, Eq. 13), with the mean over square windows in place of a Gaussian's.

    Windows are half a window apart, which costs little beside a window around each pixel.

    Args:
        prediction: An image.
        target: What it should be.
        window: Side of a window in pixels, an even number. Smaller images have smaller windows.
    """
    half = max(min(window, *prediction.shape[1:3]) // 2, 1)
    x, y = (image.permute(0, 3, 1, 2) for image in (prediction, target))
    mx, xx, xy = (window_means(part, half) for part in (x, x * x, x * y))
    my, yy = (window_means(part, half) for part in (y, y * y))
    similar_means = (2 * mx * my + 1e-4) / (mx * mx + my * my + 1e-4)
    similar_patterns = (2 * (xy - mx * my) + 9e-4) / (xx - mx * mx + yy - my * my + 9e-4)
    return 1 - (similar_means * similar_patterns).mean()


def window_means(image: Float[Tensor, "B C H W"], half: int) -> Float[Tensor, "B C rows columns"]:
    """Means over square windows, 2 half wide and half apart: of squares that two windows a side share."""
    parts = F.avg_pool2d(image, half)
    return F.avg_pool2d(parts, tuple(min(2, side) for side in parts.shape[2:]), stride=1)


def ignore_unknown(outputs: Dict[str, Tensor], batch: Dict) -> Tuple[Dict[str, Tensor], Dict]:
    """Outputs and batch in which pixels that are not known have the student's own values, without a gradient.

    So no loss of the colours or of alpha has an error there. Depth needs none, because it is 0 where it is not known.

    Args:
        outputs: The student's ``rgb``, and ``accumulation`` if it has one.
        batch: ``image`` (B, H, W, 3), ``alpha`` (M, H, W, 1) and ``known`` (B, H, W, 1), as they are there.
    """
    if "known" not in batch:
        return outputs, batch
    outputs, batch, known = dict(outputs), dict(batch), batch["known"]
    for target, output in (("image", "rgb"), ("alpha", "accumulation")):
        if target in batch and output in outputs:
            m, own = len(batch[target]), outputs[output].detach()
            batch[target] = torch.where(known[:m], batch[target], own[:m])
            # A window of the structure loss also contains known pixels, for which these would be moved.
            outputs[output] = torch.where(known, outputs[output], own)
    return outputs, batch
