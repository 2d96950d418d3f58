"""Work-arounds for nerfstudio 1.1.5 and torch, each with its reason. Nothing else in the package works around them."""

import sys
from contextlib import contextmanager
from typing import Any, Iterator, Optional

import torch
from nerfstudio.cameras.cameras import Cameras
from torch import nn

from mobiler2l_ns.errors import UserError

MODULES = ("nerfstudio.scripts.exporter", "nerfstudio.scripts.render")
TEXTURES = {"ExportTSDFMesh": "tsdf", "ExportPoissonMesh": "point_cloud"}


def running_command() -> Optional[Any]:
    """The ns-render or ns-export command that is being executed, an object with its options as attributes.

    nerfstudio does not hand it to the pipeline that it builds, so this looks for it among the callers.
    """
    frame = sys._getframe()
    while frame is not None:
        command = frame.f_locals.get("self")
        if type(command).__module__ in MODULES:
            return command
        frame = frame.f_back
    return None


def check_command(outputs: str) -> None:
    """Ends a command that cannot work on a student with one sentence.

    Args:
        outputs: What the student predicts, e.g. "rgbad".
    """
    command = running_command()
    kind = type(command).__name__
    if kind in ("ExportGaussianSplat", "ExportMarchingCubesMesh"):
        raise UserError(
            "a light field has neither Gaussians nor a distance field: export its surface with "
            "`ns-export tsdf --texture-method tsdf`, or run this command on the teacher."
        )
    if kind in (*TEXTURES, "ExportPointCloud"):
        if outputs != "rgbad":
            raise UserError(
                f"a student of {outputs} knows no surface to export: train it with --pipeline.model.outputs rgbad."
            )
        missing = []
        if getattr(command, "normal_method", None) == "model_output":
            missing.append("--normal-method open3d")
        if getattr(command, "texture_method", None) == "nerf":
            missing.append(f"--texture-method {TEXTURES[kind]}")
        if missing:
            raise UserError(
                "a light field renders pictures, neither normals nor the single rays of a texture: "
                f"add {' '.join(missing)} to the command."
            )
    if getattr(command, "render_nearest_camera", False):
        raise UserError(
            "--render-nearest-camera casts single rays, which a light field does not render: leave it out, or run "
            "this command on the teacher."
        )
    if "rgba" in (getattr(command, "rendered_output_names", None) or []):
        if getattr(command, "output_format", "images") == "video":
            raise UserError("a video has no alpha: add --output-format images --image-format png to render rgba.")
        if command.image_format == "jpeg":
            raise UserError("JPEG has no alpha: add --image-format png to render rgba.")


def allow_numpy_scalars() -> None:
    """Lets torch >= 2.6 load stock nerfstudio checkpoints, whose schedulers contain numpy floats.

    Called when nerfstudio discovers our methods, so it heals every ``ns-*`` command.
    """
    if not hasattr(torch.serialization, "add_safe_globals"):
        return
    import numpy as np

    core = np._core if hasattr(np, "_core") else np.core
    safe = [core.multiarray.scalar, np.dtype]
    if hasattr(np, "dtypes"):
        safe += [np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType]
    torch.serialization.add_safe_globals(safe)


@contextmanager
def without_lpips_download() -> Iterator[None]:
    """Inside, nerfstudio models build without fetching LPIPS weights: their metric is an empty module.

    nerfacto, instant-ngp and splatfacto construct the metric in ``populate_modules``, which needs the network and adds
    10 MB to each checkpoint.
    """
    import torchmetrics.image.lpip as module

    original = module.LearnedPerceptualImagePatchSimilarity
    module.LearnedPerceptualImagePatchSimilarity = lambda *args, **kwargs: nn.Identity()
    try:
        yield
    finally:
        module.LearnedPerceptualImagePatchSimilarity = original


def with_batch_axis(cameras: Cameras) -> Cameras:
    """Cameras of shape (N,); a lone one with the axis of the batch, which nerfstudio may leave out."""
    if cameras.fx.ndim == 2:
        return cameras
    names = ("fx", "fy", "cx", "cy", "width", "height", "camera_type")
    numbers = {name: getattr(cameras, name).reshape(-1, 1) for name in names}
    distortion = cameras.distortion_params
    if distortion is not None:
        distortion = distortion.reshape(-1, 6)
    return Cameras(cameras.camera_to_worlds.reshape(-1, 3, 4), **numbers, distortion_params=distortion)
