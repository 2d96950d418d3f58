"""Teachers to distil from: what they share, and nerfacto, set up so that a student can be compared with real photos.

Differences from nerfacto: the camera optimizer is off (the student is scored at the given poses), near plane and
background are the same in training and evaluation, no LPIPS download, a faster hash grid on a CPU, and one option for
the kind of scene.
"""

from dataclasses import dataclass, field
from typing import Dict, Literal, Tuple, Type

from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.model_components.scene_colliders import AABBBoxCollider, NearFarCollider
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
from torch import Tensor

from mobiler2l_ns.compat import without_lpips_download
from mobiler2l_ns.teacher.hash_encoding import accelerate_hash_grids
from mobiler2l_ns.training.metrics import lpips


class TeacherModelMixin:
    """Mixin for nerfstudio's models: the kind of scene is found out, and no LPIPS weights are downloaded.

    What auto resolved to goes into the config, and so into config.yml.
    """

    def populate_modules(self):
        """Builds the model for the kind of scene at hand."""
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
        """Sets the config for an object in the scene box, on white."""
        self.config.background_color = "white"

    def get_image_metrics_and_images(self, outputs, batch) -> Tuple[Dict[str, float], Dict[str, Tensor]]:
        """The model's own, without LPIPS where its weights cannot be had."""
        metrics, images = super().get_image_metrics_and_images(outputs, batch)
        if metrics["lpips"] != metrics["lpips"]:
            del metrics["lpips"]
        return metrics, images


@dataclass
class TeacherModelConfig(NerfactoModelConfig):
    """nerfacto as a teacher."""

    _target: Type = field(default_factory=lambda: TeacherModel)
    scene: Literal["auto", "bounded", "unbounded"] = "auto"
    """Kind of scene. bounded: inside the scene box, on white. unbounded: contracted, as nerfacto does by default. auto:
    bounded if the photos have a transparent background, else unbounded."""
    camera_optimizer: CameraOptimizerConfig = field(default_factory=lambda: CameraOptimizerConfig(mode="off"))
    """Off, so that teacher, student and photos share one set of poses."""


class TeacherModel(TeacherModelMixin, NerfactoModel):
    """nerfacto as a teacher."""

    config: TeacherModelConfig

    def populate_modules(self):
        """Builds nerfacto for the kind of scene at hand."""
        super().populate_modules()
        if self.config.scene == "bounded":
            self.collider = AABBBoxCollider(self.scene_box)
        else:
            self.collider = NearFarCollider(self.config.near_plane, self.config.far_plane, reset_near_plane=False)
        if self.config.camera_optimizer.mode == "off" and not self.config.predict_normals:
            accelerate_hash_grids(self)

    def configure_bounded(self) -> None:
        """On white, in the scene box: no contraction, samples evenly between its faces."""
        super().configure_bounded()
        self.config.disable_scene_contraction = True
        self.config.proposal_initial_sampler = "uniform"


def _lpips_of_batch(target: Tensor, prediction: Tensor) -> float:
    """LPIPS of (1, 3, H, W) images, NaN where the weights cannot be had."""
    value = lpips(prediction[0].permute(1, 2, 0), target[0].permute(1, 2, 0))
    return float("nan") if value is None else value
