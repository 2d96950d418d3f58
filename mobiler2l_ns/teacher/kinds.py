"""What differs between nerfstudio's models once one of them is a teacher: a function for each property.

Models are told apart by the names of their classes, so that nothing has to be imported to find out.
"""

from pathlib import Path
from typing import Dict, Optional, Tuple, Union

import torch
from jaxtyping import Float
from nerfstudio.model_components.renderers import RGBRenderer
from nerfstudio.models.base_model import Model
from torch import Tensor

from mobiler2l_ns.errors import UserError

# instant-ngp's sampling (nerfacc), splatting (gsplat) and NeuS's encoding (tiny-cuda-nn) are CUDA kernels only.
CUDA_ONLY = ("NGPModel", "SplatfactoModel", "SurfaceModel")
# Their depth is a distance from the camera plane; other models give the distance along the ray.
DEPTH_IS_Z = ("SplatfactoModel", "SurfaceModel")
NO_TEACHERS = {
    "SemanticNerfWModel": "its classes are known to its data set only",
    "GenerfactoModel": "it was made from text, without photos",
}


def is_a(model_class: type, *names: str) -> bool:
    """Whether a class or one that it derives from has one of these names."""
    return any(base.__name__ in names for base in model_class.__mro__)


def has_cuda(device) -> bool:
    """Whether ``device`` is an NVIDIA GPU that torch can use."""
    return torch.device(device).type == "cuda" and torch.cuda.is_available()


class CudaOnly:
    """Mixin for pipelines: without CUDA one sentence, before any data is loaded.

    Attributes:
        method: The method's name.
    """

    method: str

    def __init__(self, config, device, *args, **kwargs):
        if not has_cuda(device):
            raise UserError(
                f"{self.method} needs an NVIDIA GPU with CUDA: "
                "use mobiler2l-teacher-small --machine.device-type cpu here."
            )
        super().__init__(config, device, *args, **kwargs)


def check_teacher(config_path: Path, config, device) -> None:
    """Raises UserError for a run that can be no teacher at all, or none on this device. Looks at its config only."""
    model_class, method = config.pipeline.model._target, config.method_name
    for name, reason in NO_TEACHERS.items():
        if is_a(model_class, name):
            raise UserError(
                f"{config_path} was trained with {method}, which can be no teacher ({reason}): pass another run."
            )
    if getattr(config.pipeline.model, "enable_temporal_distortion", False):
        raise UserError(
            f"{config_path} was trained with {method}, and a light field shows no motion: pass a run of a still scene."
        )
    if is_a(model_class, *CUDA_ONLY) and not has_cuda(device):
        raise UserError(
            f"{config_path} was trained with {method}, which only an NVIDIA GPU with CUDA can render: run this on one, "
            "or train another teacher with `ns-train mobiler2l-teacher-small --machine.device-type cpu`."
        )


def final_outputs(outputs: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """The outputs under nerfacto's names: of a coarse and a fine picture, as NeRF and mip-NeRF have, the fine one."""
    return {**{name.removesuffix("_fine"): value for name, value in outputs.items()}, **outputs}


def background(model: Model, outputs: Dict[str, Tensor]) -> Union[float, Float[Tensor, "*batch 3"]]:
    """The colour that shows through what a picture leaves transparent; 1, white, where that is part of the scene.

    nerfstudio evaluates a model that was trained on random backgrounds on black (splatfacto: on a colour that it names
    in its outputs, where others put a sky that they learned). A black background is none in a bounded scene, but the
    sky at night in an unbounded one.
    """
    if "background" in outputs:
        shown = outputs["background"]
        return shown if bool((shown == shown.reshape(-1, 3)[0]).all()) else 1.0
    colour = getattr(getattr(model, "renderer_rgb", None), "background_color", "last_sample")
    if isinstance(colour, str) and colour == "random":
        return 0.0
    unbounded = getattr(getattr(model, "field", None), "spatial_distortion", None) is not None
    if unbounded or (isinstance(colour, str) and colour == "last_sample"):
        return 1.0
    return RGBRenderer.get_background_color(colour, (3,), outputs["rgb"].device)


def depth_is_z(model: Model) -> bool:
    """Whether ``depth`` is the distance from the camera plane rather than along the ray."""
    return is_a(type(model), *DEPTH_IS_Z)


def show_mean_appearance(model: Model) -> None:
    """Has the model show the mean of its photos' appearances. Some show zeros, which no photo was trained with."""
    for module in model.modules():
        if hasattr(module, "use_average_appearance_embedding"):
            module.use_average_appearance_embedding = True


def pose_refinement(model: Model) -> Optional[Tuple[float, float]]:
    """By how much a model moved its training cameras on average: world units and degrees. None: it did not.

    nerfstudio applies this in training only, so renders are in the refined poses' world, and the photos are not.
    """
    moved = getattr(getattr(model, "camera_optimizer", None), "pose_adjustment", None)
    if moved is None or not bool(moved.any()):
        return None
    return float(moved[:, :3].norm(dim=-1).mean()), float(moved[:, 3:].norm(dim=-1).mean().rad2deg())
