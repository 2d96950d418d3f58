"""nerfstudio's own ns-render and ns-export: which of their options a light field cannot serve.

Some of them would fail after minutes of work, others in an assertion, so the pipeline asks before it is built.
"""

import sys
from typing import Any, Optional

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
