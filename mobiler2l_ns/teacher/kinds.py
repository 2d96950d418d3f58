"""Differences between nerfstudio's models as teachers: one function for each property.

Models are identified by the names of their classes, so that no model's module has to be imported.
"""

import importlib
from pathlib import Path
from typing import Dict, Optional, Tuple, Union

import torch
from jaxtyping import Float, Shaped
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.model_components.renderers import BackgroundColor, RGBRenderer
from nerfstudio.models.base_model import Model
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from torch import Tensor

from mobiler2l_ns.errors import UserError

# instant-ngp's sampling (nerfacc), splatting (gsplat) and NeuS's encoding (tiny-cuda-nn) exist as CUDA kernels only.
CUDA_ONLY = ("NGPModel", "SplatfactoModel", "SurfaceModel")
# Packages whose kernels are part of their wheel, or are compiled at the first use.
KERNELS = {"NGPModel": "nerfacc", "SplatfactoModel": "gsplat"}
# Models whose depth is the distance from the camera plane; that of other models is the distance along the ray.
DEPTH_IS_Z = ("SplatfactoModel", "SurfaceModel")
# Rasterisers, which render every camera as a pinhole camera.
IGNORE_LENS = ("SplatfactoModel",)
INSTALL_KERNELS = (
    "install its wheel for this torch and CUDA, or the CUDA toolkit (nvcc) of the version that torch was built for"
)
NO_TEACHERS = {
    "SemanticNerfWModel": "only its data set knows its classes",
    "GenerfactoModel": "it was made from text, without photos",
}


def is_a(model_class: type, *names: str) -> bool:
    """Whether a class or one of its base classes has one of these names."""
    return any(base.__name__ in names for base in model_class.__mro__)


def has_cuda(device) -> bool:
    """Whether ``device`` is an NVIDIA GPU that torch can use."""
    return torch.device(device).type == "cuda" and torch.cuda.is_available()


def missing_kernels(model_class: type) -> Optional[str]:
    """The package whose CUDA kernels a model needs and that has none here; None if nothing is missing."""
    for name, package in KERNELS.items():
        if is_a(model_class, name):
            try:
                # The package loads or compiles its kernels in this module, and leaves None where it can do neither.
                if importlib.import_module(f"{package}.cuda._backend")._C is None:
                    return package
            except (ImportError, OSError, RuntimeError):  # built for another torch, or the compiler fails
                return package
    return None


class CudaOnly(VanillaPipeline):
    """A pipeline that needs CUDA and its kernels: raises UserError without, before any data is loaded.

    Attributes:
        method: Name of the method.
    """

    method: str

    def __init__(self, config: VanillaPipelineConfig, device: str, *args, **kwargs):
        if not has_cuda(device):
            raise UserError(
                f"{self.method} needs an NVIDIA GPU with CUDA: "
                "use mobiler2l-teacher-small --machine.device-type cpu here."
            )
        if package := missing_kernels(config.model._target):
            raise UserError(f"{self.method} needs {package}'s CUDA kernels: {INSTALL_KERNELS}.")
        super().__init__(config, device, *args, **kwargs)


def check_teacher(config_path: Path, config: TrainerConfig, device) -> None:
    """Raises UserError for a run that cannot be a teacher, or cannot on this device. Only its config is read."""
    model_class, method = config.pipeline.model._target, config.method_name
    for name, reason in NO_TEACHERS.items():
        if is_a(model_class, name):
            raise UserError(
                f"{config_path} was trained with {method}, which cannot be a teacher ({reason}): pass another run."
            )
    if getattr(config.pipeline.model, "enable_temporal_distortion", False):
        raise UserError(
            f"{config_path} was trained with {method}, and a light field has no motion: pass a run of a static scene."
        )
    if is_a(model_class, *CUDA_ONLY) and not has_cuda(device):
        raise UserError(
            f"{config_path} was trained with {method}, which only an NVIDIA GPU with CUDA can render: run this on one, "
            "or train another teacher with `ns-train mobiler2l-teacher-small --machine.device-type cpu`."
        )
    if package := missing_kernels(model_class):
        raise UserError(
            f"{config_path} was trained with {method}, which needs {package}'s CUDA kernels: {INSTALL_KERNELS}."
        )


def final_outputs(outputs: Dict[str, Shaped[Tensor, "..."]]) -> Dict[str, Shaped[Tensor, "..."]]:
    """Outputs under nerfacto's names. Of the coarse and fine outputs of NeRF and mip-NeRF, the fine ones are used."""
    return {**{name.removesuffix("_fine"): value for name, value in outputs.items()}, **outputs}


def background(
    model: Model, outputs: Dict[str, Shaped[Tensor, "..."]]
) -> Union[float, Float[Tensor, "3"], Float[Tensor, "H W 3"]]:
    """The background colour behind the transparent parts of a rendered view; 1 (white) if the background is scene.

    nerfstudio evaluates a model that was trained on random backgrounds on black. splatfacto uses a colour that is in
    its outputs, but other models put a learned sky there. A black background is transparent in a bounded scene, and the
    sky at night in an unbounded one.

    Args:
        model: The teacher.
        outputs: Its outputs for the view.
    """
    if "background" in outputs:
        colour = outputs["background"]
        return colour if bool((colour == colour.reshape(-1, 3)[0]).all()) else 1.0
    colour: BackgroundColor = getattr(getattr(model, "renderer_rgb", None), "background_color", "last_sample")
    if isinstance(colour, str) and colour == "random":
        return 0.0
    unbounded = getattr(getattr(model, "field", None), "spatial_distortion", None) is not None
    if unbounded or (isinstance(colour, str) and colour == "last_sample"):
        return 1.0
    return RGBRenderer.get_background_color(colour, (3,), outputs["rgb"].device)


def depth_is_z(model: Model) -> bool:
    """Whether the model's ``depth`` is the distance from the camera plane instead of along the ray."""
    return is_a(type(model), *DEPTH_IS_Z)


def ignores_lens(model: Model) -> bool:
    """Whether the model renders a camera with lens distortion as if it had none."""
    return is_a(type(model), *IGNORE_LENS)


def show_mean_appearance(model: Model) -> None:
    """Makes the model render the mean of its appearance embeddings; some render zeros, which were never trained."""
    for module in model.modules():
        if hasattr(module, "use_average_appearance_embedding"):
            module.use_average_appearance_embedding = True  # pyright: ignore[reportArgumentType]


def pose_refinement(model: Model) -> Optional[Tuple[float, float]]:
    """Mean distance (world units) and angle (degrees) by which a model moved its training cameras; None: not moved.

    nerfstudio applies the refinement in training only. So rendered views match the refined poses, and photos do not.
    """
    moved = getattr(getattr(model, "camera_optimizer", None), "pose_adjustment", None)
    if moved is None or not bool(moved.any()):
        return None
    return float(moved[:, :3].norm(dim=-1).mean()), float(moved[:, 3:].norm(dim=-1).mean().rad2deg())
