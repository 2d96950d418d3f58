"""instant-ngp as a teacher, on nerfacc's CUDA kernels.

Differences from instant-ngp: the options for bounded and unbounded scenes follow the kind of scene, appearance is off
for objects and the mean of the photos' in captures, nothing is evaluated on black that was trained on random
backgrounds, and no LPIPS download.
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
    """Kind of scene. bounded: inside the scene box, on white. unbounded: contracted, as nerfacto does by default. auto:
    bounded if the photos have a transparent background, else unbounded."""


class NGPTeacherModel(TeacherModelMixin, NGPModel):
    """instant-ngp as a teacher."""

    config: NGPTeacherModelConfig

    def populate_modules(self):
        """Builds instant-ngp for the kind of scene at hand."""
        super().populate_modules()
        show_mean_appearance(self)

    def configure_bounded(self) -> None:
        """On white, in the scene box: one occupancy grid, even steps, no sample skipped, no appearance."""
        super().configure_bounded()
        self.config.disable_scene_contraction = True
        self.config.grid_levels, self.config.cone_angle, self.config.alpha_thre = 1, 0.0, 0.0
        self.config.use_appearance_embedding = True  # nerfstudio reads it the other way round: this is off

    def train(self, mode: bool = True):
        """Random backgrounds make a capture opaque in training; in evaluation they are white rather than black."""
        self.renderer_rgb.background_color = self.config.background_color if mode else "white"
        return super().train(mode)


@dataclass
class NGPTeacherPipelineConfig(DynamicBatchPipelineConfig):
    """Pipeline with as many rays in a batch as keep the number of samples constant."""

    _target: Type = field(default_factory=lambda: NGPTeacherPipeline)


class NGPTeacherPipeline(CudaOnly, DynamicBatchPipeline):
    """DynamicBatchPipeline that ends at once without CUDA."""

    method = "mobiler2l-teacher-ngp"
