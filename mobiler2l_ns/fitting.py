"""Photos and their cameras at the student's size: scaled by one factor, and cropped at the centre.

H0, W0: pixels of a photo; N: cameras.
"""

from typing import Tuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

CROP_ONLY = 0.98  # images that would have to shrink by less than this are cropped instead


def fitting_crop(
    old_h: Float[Tensor, "*batch"], old_w: Float[Tensor, "*batch"], height: int, width: int
) -> Tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """The crop from the middle of an image that becomes height x width pixels when it is scaled.

    An image that is a little too large is not scaled, as resampling would blur it. Where a new pixel is the mean of
    whole old ones, the crop starts at a whole pixel.

    Args:
        old_h: Height of the image.
        old_w: Its width.
        height: New height.
        width: New width.

    Returns:
        The scale factor, and the top and left edge of the crop in old pixels.
    """
    factor = torch.maximum(width / old_w, height / old_h)
    factor = torch.where((factor >= CROP_ONLY) & (factor <= 1), 1.0, factor)
    top, left = (old_h - height / factor) / 2, (old_w - width / factor) / 2
    whole = (factor <= 1) & ((1 / factor).frac() == 0)
    return factor, torch.where(whole, top.floor(), top), torch.where(whole, left.floor(), left)


def fit_cameras(cameras: Cameras, height: int, width: int, density: int = 1) -> Tuple[Cameras, Float[Tensor, "N"]]:
    """Cameras of the images that ``fit_image`` makes, see ``fitting_crop``.

    Args:
        cameras: Cameras of shape (N,), of any image sizes.
        height: New image height.
        width: New image width.
        density: Pixels of the new images for each of height x width, along each axis; the field of view is the same.

    Returns:
        The cameras, and the scale factor of each.
    """
    factor, top, left = fitting_crop(cameras.height.float(), cameras.width.float(), height, width)  # (N, 1) each
    factor = density * factor
    fitted = Cameras(
        camera_to_worlds=cameras.camera_to_worlds,
        fx=cameras.fx * factor, fy=cameras.fy * factor,
        cx=(cameras.cx - left) * factor, cy=(cameras.cy - top) * factor,
        width=torch.full_like(cameras.width, density * width), height=torch.full_like(cameras.height, density * height),
        distortion_params=cameras.distortion_params, camera_type=cameras.camera_type,
    )  # fmt: skip
    return fitted, factor[:, 0]


def fit_image(image: Float[Tensor, "H0 W0 C"], height: int, width: int, density: int = 1) -> Float[Tensor, "H W C"]:
    """The image of a camera of ``fit_cameras``, resized with antialiasing where it is scaled.

    Scale factor and crop are exactly those of the camera, so pixels keep their rays.
    """
    old_h, old_w = torch.tensor(image.shape[:2], dtype=torch.float32)  # the cameras' type: both decide alike
    factor, top, left = (float(value) for value in fitting_crop(old_h, old_w, height, width))
    if factor * density == 1:
        top, left = int(top), int(left)
        return image[top : top + density * height, left : left + density * width]
    return resample_crop(image, top, left, height / factor, width / factor, density * height, density * width)


def resample_crop(
    image: Float[Tensor, "H0 W0 C"], top: float, left: float, crop_h: float, crop_w: float, height: int, width: int
) -> Float[Tensor, "{height} {width} C"]:
    """Resamples a crop with fractional edges to height x width pixels, with averaging where it shrinks.

    Shrinking by a factor k averages ceil(k)^2 bilinear samples per pixel: an exact box filter at integer factors.
    """
    taps_y, taps_x = max(1, -int(-crop_h // height)), max(1, -int(-crop_w // width))
    y = top + (torch.arange(height * taps_y) + 0.5) * (crop_h / (height * taps_y))
    x = left + (torch.arange(width * taps_x) + 0.5) * (crop_w / (width * taps_x))
    grid = torch.stack(torch.meshgrid(y / image.shape[0], x / image.shape[1], indexing="ij"), dim=-1).to(image) * 2 - 1
    sampled = F.grid_sample(
        image.permute(2, 0, 1)[None], grid[..., [1, 0]][None], align_corners=False, padding_mode="border"
    )
    return F.avg_pool2d(sampled, (taps_y, taps_x))[0].permute(1, 2, 0)
