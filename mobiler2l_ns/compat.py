"""Work-arounds for nerfstudio 1.1.5, viser, torch, and earlier versions of this package, each with its reason.

No other file of the package contains one. A work-around goes when the version that it names is no longer supported.
"""

import codecs
import functools
import importlib.abc
import sys
from contextlib import contextmanager
from typing import Any, Iterator, Optional

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from torch import nn

from mobiler2l_ns.errors import UserError

MODULES = ("nerfstudio.scripts.exporter", "nerfstudio.scripts.render")
TEXTURES = {"ExportTSDFMesh": "tsdf", "ExportPoissonMesh": "point_cloud"}


def running_command() -> Optional[Any]:
    """The ns-render or ns-export command that is being executed, an object with its options as attributes.

    nerfstudio 1.1.5 does not tell the pipeline which command builds it, so this looks for it among the callers.
    """
    frame = sys._getframe()
    while frame is not None:
        command = frame.f_locals.get("self")
        if type(command).__module__ in MODULES:
            return command
        frame = frame.f_back
    return None


def check_command(outputs: str) -> None:
    """Raises UserError for options of nerfstudio's commands that cannot work on a student.

    nerfstudio 1.1.5 has no hook for this. Some of these commands would fail after minutes, others in an assertion.

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
                f"a student with outputs {outputs} has no depth, which a surface needs: train it with "
                "--pipeline.model.outputs rgbad."
            )
        missing = []
        if getattr(command, "normal_method", None) == "model_output":
            missing.append("--normal-method open3d")
        if getattr(command, "texture_method", None) == "nerf":
            missing.append(f"--texture-method {TEXTURES[kind]}")
        if missing:
            raise UserError(
                "a light field renders images of cameras, neither normals nor the single rays of a texture: "
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
        if getattr(command, "image_format", None) == "jpeg":
            raise UserError("JPEG has no alpha: add --image-format png to render rgba.")


def allow_numpy_scalars() -> None:
    """Lets torch >= 2.6 load the checkpoints of nerfstudio 1.1.5, whose schedulers contain numpy floats.

    torch.load reads weights only by default since 2.6 (github.com/nerfstudio-project/nerfstudio/issues/3683). This is
    called when nerfstudio discovers our methods, so it works in every ``ns-*`` command.
    """
    # Without the names of modules: np.dtypes came with numpy 1.25, and np.core.multiarray moved in numpy 2.
    make_scalar: Any = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(scalar)) for scalar in (np.float64, np.float32, np.int64)]
    # torch 2.4 does not allow by itself what turns a scalar's bytes into text for pickle.
    torch.serialization.add_safe_globals([make_scalar, np.dtype, *dtypes, codecs.encode])


def survive_ended_processes() -> None:
    """Lets the viewer start while another process of the machine ends.

    viser 0.2.7 looks through all processes for the build of its own web page, and does not expect that one ends
    meanwhile. ``ns-train`` and ``ns-viewer`` would stop with psutil.NoSuchProcess.
    """
    try:
        from viser import _client_autobuild as module
    except ImportError:
        return  # another version of viser
    build_runs = getattr(module, "_check_viser_yarn_running", None)
    if build_runs is None or hasattr(build_runs, "__wrapped__"):
        return

    @functools.wraps(build_runs)
    def build_runs_now() -> bool:
        while True:
            try:
                return build_runs()
            except Exception as error:
                if type(error).__name__ != "NoSuchProcess":  # psutil's, which would take time to import
                    raise

    module._check_viser_yarn_running = build_runs_now


@contextmanager
def without_lpips_download() -> Iterator[None]:
    """Inside, nerfstudio's models are built without LPIPS weights: their metric is an empty module.

    nerfacto, instant-ngp and splatfacto of 1.1.5 construct the metric in ``populate_modules``. That downloads weights
    and adds 10 MB to each checkpoint.
    """
    import torchmetrics.image.lpip as module

    original = module.LearnedPerceptualImagePatchSimilarity
    module.LearnedPerceptualImagePatchSimilarity = lambda *args, **kwargs: nn.Identity()
    try:
        yield
    finally:
        module.LearnedPerceptualImagePatchSimilarity = original


def with_batch_axis(cameras: Cameras) -> Cameras:
    """Cameras of shape (N,). Some data parsers of nerfstudio 1.1.5 leave the batch's axis out of a lone camera."""
    if cameras.fx.ndim == 2:
        return cameras
    names = ("fx", "fy", "cx", "cy", "width", "height", "camera_type")
    numbers = {name: getattr(cameras, name).reshape(-1, 1) for name in names}
    distortion = cameras.distortion_params
    if distortion is not None:
        distortion = distortion.reshape(-1, 6)
    return Cameras(cameras.camera_to_worlds.reshape(-1, 3, 4), **numbers, distortion_params=distortion)


# Modules of version 0.1 that the config.yml of each of its runs names.
FORMER_MODULES = {
    f"mobiler2l_ns.{name}"
    for name in (
        "capture", "finetuning", "network", "optimizers", "schedulers", "teacher_model", "teacher_ngp", "teacher_splat"
    )
}  # fmt: skip


class FormerModuleFinder(importlib.abc.MetaPathFinder):
    """Answers the import of a former module with one sentence."""

    def find_spec(self, fullname, path=None, target=None) -> None:
        """Raises UserError for a former module, and returns None for others."""
        if fullname in FORMER_MODULES:
            raise UserError(
                "this run was saved by mobiler2l-ns 0.1, whose config.yml and checkpoints this version cannot read: "
                "train it again."
            )


def refuse_former_runs() -> None:
    """Lets every ``ns-*`` command end with one sentence for a run of version 0.1.

    nerfstudio imports what a config.yml names; without this it would print a traceback about a missing module.
    """
    if not any(type(finder).__name__ == FormerModuleFinder.__name__ for finder in sys.meta_path):
        sys.meta_path.append(FormerModuleFinder())
