"""nerfacto as a teacher, and the mixin that all teacher models share.

Differences from nerfacto: the camera optimizer is off, as the student is evaluated at the given poses; near plane and
background are the same in training and evaluation; LPIPS weights are not downloaded; the hash grid is faster on a CPU;
one option selects the kind of scene.
"""

from dataclasses import dataclass, field
from typing import Any, Dict, Literal, Tuple, Type

from jaxtyping import Float, Shaped
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.model_components.scene_colliders import AABBBoxCollider, NearFarCollider
from nerfstudio.models.base_model import Model
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
from torch import Tensor

from mobiler2l_ns.compat import without_lpips_download
from mobiler2l_ns.teacher.hash_encoding import accelerate_hash_grids
from mobiler2l_ns.training.metrics import lpips


class TeacherModelMixin(Model):
    """Mixin for nerfstudio's models: detects the kind of scene, and downloads no LPIPS weights.

    The kind that ``auto`` resolves to is written to the config, and so to config.yml.
    """

    config: Any
    """The config of one of nerfstudio's models, with an option ``scene``."""

    def populate_modules(self):
        """Builds the model for its kind of scene."""
        if self.config.scene == "auto":
            transparent = self.kwargs["metadata"].get("transparent_background", False)
            self.config.scene = "bounded" if transparent else "unbounded"
        if self.config.scene == "bounded":
            self.configure_bounded()
        with without_lpips_download():
            super().populate_modules()
        del self.lpips  # a module until here
        self.lpips = _lpips_of_batch

    def configure_bounded(self) -> None:
        """Changes the config for a bounded scene: white background."""
        self.config.background_color = "white"

    def get_image_metrics_and_images(
        self, outputs: Dict[str, Shaped[Tensor, "..."]], batch: Dict[str, Any]
    ) -> Tuple[Dict[str, float], Dict[str, Shaped[Tensor, "..."]]]:
        """The model's metrics and images, without LPIPS if its weights are not on this machine."""
        metrics, images = super().get_image_metrics_and_images(outputs, batch)
        if metrics["lpips"] != metrics["lpips"]:
            del metrics["lpips"]
        return metrics, images


@dataclass
class TeacherModelConfig(NerfactoModelConfig):
    """nerfacto as a teacher."""

    _target: Type = field(default_factory=lambda: TeacherModel)
    scene: Literal["auto", "bounded", "unbounded"] = "auto"
    """Kind of scene. bounded: inside the scene box, white background. unbounded: with nerfacto's scene contraction.
    auto: bounded if the photos have a transparent background, else unbounded."""
    camera_optimizer: CameraOptimizerConfig = field(default_factory=lambda: CameraOptimizerConfig(mode="off"))
    """Pose refinement; off, so that teacher, student and photos have the same poses."""


class TeacherModel(TeacherModelMixin, NerfactoModel):
    """nerfacto as a teacher."""

    config: TeacherModelConfig

    def populate_modules(self):
        """Builds nerfacto for its kind of scene."""
        super().populate_modules()
        if self.config.scene == "bounded":
            self.collider = AABBBoxCollider(self.scene_box)
        else:
            self.collider = NearFarCollider(self.config.near_plane, self.config.far_plane, reset_near_plane=False)
        if self.config.camera_optimizer.mode == "off" and not self.config.predict_normals:
            accelerate_hash_grids(self)

    def configure_bounded(self) -> None:
        """White background, no contraction, and initial samples evenly spaced inside the scene box."""
        super().configure_bounded()
        self.config.disable_scene_contraction = True
        self.config.proposal_initial_sampler = "uniform"


def _lpips_of_batch(target: Float[Tensor, "1 3 H W"], prediction: Float[Tensor, "1 3 H W"]) -> float:
    """LPIPS, as nerfstudio's models call it; NaN if the weights are not on this machine."""
    value = lpips(prediction[0].permute(1, 2, 0), target[0].permute(1, 2, 0))
    return float("nan") if value is None else value
