"""instant-ngp as a teacher, on nerfacc's CUDA kernels.

Differences from instant-ngp: the options for bounded and unbounded scenes follow from the kind of scene; the appearance
embedding is off in bounded scenes, and its mean is rendered in unbounded ones; a model that was trained on random
backgrounds is evaluated on white; LPIPS weights are not downloaded.
"""

from dataclasses import dataclass, field
from typing import Literal, Type

from nerfstudio.models.instant_ngp import InstantNGPModelConfig, NGPModel
from nerfstudio.pipelines.dynamic_batch import DynamicBatchPipeline, DynamicBatchPipelineConfig

from mobiler2l_ns.teacher.kinds import CudaOnly, show_mean_appearance
from mobiler2l_ns.teacher.nerfacto import TeacherModelMixin


@dataclass
class NGPTeacherModelConfig(InstantNGPModelConfig):
    """instant-ngp as a teacher."""

    _target: Type = field(default_factory=lambda: NGPTeacherModel)
    scene: Literal["auto", "bounded", "unbounded"] = "auto"
    """Kind of scene. bounded: inside the scene box, white background. unbounded: with nerfacto's scene contraction.
    auto: bounded if the photos have a transparent background, else unbounded."""


class NGPTeacherModel(TeacherModelMixin, NGPModel):
    """instant-ngp as a teacher."""

    config: NGPTeacherModelConfig

    def populate_modules(self):
        """Builds instant-ngp for its kind of scene."""
        super().populate_modules()
        show_mean_appearance(self)

    def configure_bounded(self) -> None:
        """White background, no contraction, one occupancy grid, even steps, all samples, no appearance embedding."""
        super().configure_bounded()
        self.config.disable_scene_contraction = True
        self.config.grid_levels, self.config.cone_angle, self.config.alpha_thre = 1, 0.0, 0.0
        self.config.use_appearance_embedding = True  # nerfstudio inverts this option: True is off

    def train(self, mode: bool = True):
        """Sets the background: the config's for training, white for evaluation, where nerfstudio would use black."""
        self.renderer_rgb.background_color = self.config.background_color if mode else "white"
        return super().train(mode)


@dataclass
class NGPTeacherPipelineConfig(DynamicBatchPipelineConfig):
    """Pipeline with a number of rays per batch that keeps the number of samples constant."""

    _target: Type = field(default_factory=lambda: NGPTeacherPipeline)


class NGPTeacherPipeline(CudaOnly, DynamicBatchPipeline):
    """DynamicBatchPipeline that raises UserError at once without CUDA."""

    method = "mobiler2l-teacher-ngp"
