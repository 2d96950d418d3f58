"""Cameras and rays of the student. Only this module converts nerfstudio's rays to the student's.

The student divides an image into cells of s x s pixels and casts one ray through the centre of each cell::

        0   s   2s      W            H, W  image size in pixels        B  batch
      0 +---+---+-- ... +            h, w  ray grid, H/s and W/s       s  upscale factor
        | x | x |       |            x     ray of cell (i, j): pixel ((i + .5) s, (j + .5) s)
      s +---+---+-- ... +
        | x | x |       |            rays_d of a pinhole camera: ((x - cx)/f, -(y - cy)/f, -1) in camera axes, then
        +---+---+       |            in world axes, NOT normalised: rays_o + z rays_d is at distance z from the
       ...             ...           camera plane. The directions of nerfstudio's rays have unit length.
      H +---+---+-- ... +
"""

import math
from typing import NamedTuple, Tuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from mobiler2l_ns.errors import UserError

PANORAMAS = {
    CameraType.EQUIRECTANGULAR, CameraType.OMNIDIRECTIONALSTEREO_L, CameraType.OMNIDIRECTIONALSTEREO_R,
    CameraType.VR180_L, CameraType.VR180_R,
}  # fmt: skip


def student_rays(bundle: RayBundle) -> Tuple[Float[Tensor, "*batch 3"], Float[Tensor, "*batch 3"]]:
    """Origins and directions of the student's rays: directions have unit depth instead of unit length."""
    return bundle.origins, bundle.directions * bundle.metadata["directions_norm"]


def nerfstudio_rays(rays_o: Float[Tensor, "*batch 3"], rays_d: Float[Tensor, "*batch 3"], area) -> RayBundle:
    """The inverse of ``student_rays``. ``pixel_area`` is a pixel's solid angle, from its area at unit depth."""
    norm = rays_d.norm(dim=-1, keepdim=True)
    return RayBundle(
        origins=rays_o, directions=rays_d / norm, pixel_area=norm**-3 * area, metadata={"directions_norm": norm}
    )


def cell_centres(h: int, w: int, scale: Tuple[float, float], device=None) -> Float[Tensor, "{h} {w} 2"]:
    """Pixel coordinates (y, x) of the centres of h x w cells, each scale[0] pixels high and scale[1] pixels wide."""
    y = (torch.arange(h, device=device) + 0.5) * scale[0]
    x = (torch.arange(w, device=device) + 0.5) * scale[1]
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)


def rays_at(cameras: Cameras, indices: Int[Tensor, "B"], coords: Float[Tensor, "B h w 2"]) -> RayBundle:
    """Rays of several cameras through given pixel coordinates, lens distortion included.

    Args:
        cameras: Cameras of shape (N,).
        indices: Index of each grid's camera.
        coords: Pixel coordinates (y, x); pixel centres are at .5.

    Returns:
        A bundle of shape (B, h, w).
    """
    shape = coords.shape[:-1]
    per_ray = indices.view(-1, 1, 1).expand(shape).reshape(-1, 1)
    return cameras.generate_rays(camera_indices=per_ray, coords=coords.reshape(-1, 2)).reshape(shape)


def pinhole_cameras(c2w: Float[Tensor, "B 3 4"], focal: float, height: int, width: int) -> Cameras:
    """Pinhole cameras (B,) with a centred principal point, as an exported Sampler assumes; ``focal`` in pixels."""
    return Cameras(
        camera_to_worlds=c2w, fx=focal, fy=focal, cx=width / 2, cy=height / 2, width=width, height=height
    ).to(c2w.device)


def pinhole_rays(
    c2w: Float[Tensor, "B 3 4"], focal: float, height: int, width: int, coords: Float[Tensor, "B h w 2"]
) -> RayBundle:
    """The rays of ``rays_at`` for ``pinhole_cameras``, several times faster as no other camera model is evaluated.

    Args:
        c2w: A pose for each grid.
        focal: Focal length in pixels.
        height: Image height, for the principal point.
        width: Image width, for the principal point.
        coords: Pixel coordinates (y, x); pixel centres are at .5.

    Returns:
        A bundle of shape (B, h, w). ``pixel_area`` is the exact solid angle of a pixel; nerfstudio approximates it.
    """
    pose = c2w[:, None, None]
    x, y = (coords[..., 1:] - width / 2) / focal, (height / 2 - coords[..., :1]) / focal
    directions = x * pose[..., 0] + y * pose[..., 1] - pose[..., 2]
    return nerfstudio_rays(pose[..., 3].expand_as(directions), directions, focal**-2)


def bundle_camera(bundle: RayBundle) -> Cameras:
    """The pinhole camera of a bundle (H, W) of rays through all its pixel centres: the inverse of ``generate_rays``.

    Directions of unit depth are affine in the pixel (x, y): corner + x right / fx - y up / fy, where right and up are
    camera axes and the corner is (-cx / fx, cy / fy, -1) in camera axes. Two differences and one ray determine these.

    Returns:
        A camera of shape (1,).

    Raises:
        UserError: No pinhole camera has these rays.
    """
    rays_o, rays_d = (rays.double() for rays in student_rays(bundle))
    if len(bundle.shape) == 2 and min(bundle.shape) > 1:
        height, width = bundle.shape
        x_step, y_step = (rays_d[0, -1] - rays_d[0, 0]) / (width - 1), (rays_d[-1, 0] - rays_d[0, 0]) / (height - 1)
        fx, fy = 1 / x_step.norm(), 1 / y_step.norm()
        right, up = x_step * fx, -y_step * fy
        axes = torch.stack([right, up, torch.linalg.cross(right, up)], dim=-1)
        corner = (rays_d[0, 0] - (x_step + y_step) / 2) @ axes
        camera = Cameras(
            camera_to_worlds=torch.cat([axes, rays_o[0, 0, :, None]], dim=-1).float()[None],
            fx=float(fx), fy=float(fy), cx=float(-corner[0] * fx), cy=float(corner[1] * fy),
            width=width, height=height,
        ).to(bundle.origins.device)  # fmt: skip
        found = camera.generate_rays(0, keep_shape=True)
        pixels_off = (found.directions - bundle.directions).abs().max() * max(fx, fy)
        if pixels_off < 0.05 and torch.allclose(found.origins, bundle.origins, atol=1e-5):
            return camera
    raise UserError(
        "a light field renders views of pinhole cameras, not single rays: add --texture-method tsdf to "
        "`ns-export tsdf` or --texture-method point_cloud to `ns-export poisson`, or run this command on the teacher."
    )


def ray_lengths(camera: Cameras) -> Float[Tensor, "H W 1"]:
    """Length of the unit-depth ray through each pixel centre: distance along the ray is z times this length.

    Args:
        camera: A camera of shape (1,).
    """
    if not is_pinhole(camera):  # generating rays takes longer than the formula below
        return camera.generate_rays(0, keep_shape=True).metadata["directions_norm"]
    y, x = cell_centres(int(camera.height), int(camera.width), (1, 1), camera.device).split(1, dim=-1)
    lengths = (1 + ((x - camera.cx) / camera.fx) ** 2 + ((y - camera.cy) / camera.fy) ** 2).sqrt()
    return lengths.float()  # some parsers keep focal lengths in double precision


def is_pinhole(cameras: Cameras) -> bool:
    """Whether all cameras are pinhole cameras: no lens distortion, no fisheye, no panorama."""
    distortion, perspective = cameras.distortion_params, cameras.camera_type == CameraType.PERSPECTIVE.value
    return bool(perspective.all()) and (distortion is None or not bool(distortion.any()))


def crop_camera(camera: Cameras, top: int, left: int, height: int, width: int) -> Cameras:
    """The camera (1,) of the height x width crop that starts at row ``top`` and column ``left`` of a camera's image."""
    return Cameras(
        camera_to_worlds=camera.camera_to_worlds,
        fx=camera.fx, fy=camera.fy, cx=camera.cx - left, cy=camera.cy - top,
        width=torch.full_like(camera.width, width), height=torch.full_like(camera.height, height),
        distortion_params=camera.distortion_params, camera_type=camera.camera_type,
    )  # fmt: skip


def sphere_bounds(
    camera: Cameras, centre: Float[Tensor, "3"], radius: float, margin: int = 0
) -> Tuple[int, int, int, int]:
    """The rectangle of an image that contains all rays through a sphere; the whole image if the lens has distortion.

    Projected along one image axis, the sphere is a disc. The two tangents of the disc bound the other image axis.

    Args:
        camera: A camera of shape (1,).
        centre: The sphere's centre, world units.
        radius: The sphere's radius, world units.
        margin: Pixels that are added on each side.

    Returns:
        Top row, left column, height and width; height or width may be 0.
    """
    height, width = int(camera.height), int(camera.width)
    if not is_pinhole(camera):
        return 0, 0, height, width
    c2w = camera.camera_to_worlds[0]
    x, y, z = ((centre - c2w[:, 3]) @ c2w[:, :3] * c2w.new_tensor([1, -1, -1])).tolist()  # right, down, ahead
    spans = []
    for offset, focal, middle, pixels in ((y, camera.fy, camera.cy, height), (x, camera.fx, camera.cx, width)):
        away = math.hypot(offset, z)
        half = math.asin(radius / away) if away > radius else math.inf
        low, high = math.atan2(offset, z) - half, math.atan2(offset, z) + half
        first = _tangent(low) * float(focal) + float(middle) - margin
        last = _tangent(high) * float(focal) + float(middle) + margin
        first, last = (math.floor(min(max(first, 0), pixels)), math.ceil(min(max(last, 0), pixels)))
        spans.append((first, last - first))
    (top, h), (left, w) = spans
    return top, left, h, w


def _tangent(angle: float) -> float:
    """Tangent of an angle to the optical axis; infinite for rays that do not meet the image plane."""
    return math.tan(angle) if abs(angle) < math.pi / 2 else math.copysign(math.inf, angle)


class StudentView(NamedTuple):
    """A camera's view on the student's grid: the rays to render, and the crop and resize to the camera's size."""

    rays: RayBundle
    """Rays through cell centres, shape (1, h, w)."""
    inner_height: int
    """Rows of the student's image that belong to the camera; the others complete the last row of cells."""
    inner_width: int
    """Columns of the student's image that belong to the camera."""
    height: int
    """Height of the camera's image."""
    width: int
    """Width of the camera's image."""


def student_view(camera: Cameras, focal: float, upscale: int) -> StudentView:
    """The rays with which a student renders a camera of any image size and field of view.

    The super-resolution stages are trained for one angular size of a cell. So the grid has the focal length that the
    student was trained with and covers the camera's field of view, and the rendered image is resized afterwards. A
    camera whose focal length differs from it by less than half a cell over the image counts as trained: resizing would
    blur its image. If ``upscale`` divides its image size, too, nothing is resized or cropped.

    Args:
        camera: A camera of shape (1,).
        focal: Focal length of the student's images in pixels.
        upscale: s, pixels per cell along each axis.

    Raises:
        UserError: The camera is a panorama.
    """
    if CameraType(int(camera.camera_type)) in PANORAMAS:
        raise UserError("a light field does not render panoramas: use a camera path of perspective cameras.")
    height, width = int(camera.height), int(camera.width)
    factor = focal / float(camera.fx)
    inner_h, inner_w = max(upscale, round(height * factor)), max(upscale, round(width * factor))
    if max(abs(inner_h - height), abs(inner_w - width)) <= upscale / 2:
        inner_h, inner_w = height, width
    h, w = -(-inner_h // upscale), -(-inner_w // upscale)
    coords = cell_centres(h, w, (upscale * height / inner_h, upscale * width / inner_w), camera.device)
    index = torch.zeros(1, dtype=torch.long, device=camera.device)
    return StudentView(rays_at(camera, index, coords[None]), inner_h, inner_w, height, width)


def to_camera_size(image: Float[Tensor, "C Hs Ws"], view: StudentView) -> Float[Tensor, "{view.height} {view.width} C"]:
    """Crops and resizes the student's image to the size of the camera's image."""
    image = image[:, : view.inner_height, : view.inner_width]
    if image.shape[1:] != (view.height, view.width):
        image = F.interpolate(image[None], size=(view.height, view.width), mode="bilinear", antialias=True)[0]
    return image.permute(1, 2, 0)
