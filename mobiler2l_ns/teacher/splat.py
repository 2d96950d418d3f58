"""splatfacto as a teacher, on gsplat's CUDA rasteriser.

Differences from splatfacto: the Gaussians of a bounded scene start in the scene box; more and fainter Gaussians are
kept; the background is white in evaluation; LPIPS weights are not downloaded. Rendering is antialiased, because a
student's image is often smaller than the photos, where Gaussians of the classic mode become too large.
"""

from dataclasses import dataclass, field
from typing import Literal, Type

import torch
from nerfstudio.models.splatfacto import SplatfactoModel, SplatfactoModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig

from mobiler2l_ns.teacher.kinds import CudaOnly
from mobiler2l_ns.teacher.nerfacto import TeacherModelMixin


@dataclass
class SplatTeacherModelConfig(SplatfactoModelConfig):
    """splatfacto as a teacher."""

    _target: Type = field(default_factory=lambda: SplatTeacherModel)
    scene: Literal["auto", "bounded", "unbounded"] = "auto"
    """Kind of scene. bounded: white background, Gaussians start in the scene box. unbounded: trained on random
    backgrounds. auto: bounded if the photos have a transparent background, else unbounded."""
    rasterize_mode: Literal["classic", "antialiased"] = "antialiased"
    """antialiased: Gaussians keep their size in images smaller than the photos."""


class SplatTeacherModel(TeacherModelMixin, SplatfactoModel):
    """splatfacto as a teacher."""

    config: SplatTeacherModelConfig

    def populate_modules(self):
        """Builds splatfacto for its kind of scene."""
        super().populate_modules()
        # For a model that was trained on random backgrounds, splatfacto would use a dark blue.
        self.background_color = torch.ones(3)

    def configure_bounded(self) -> None:
        """White background; without points of a reconstruction, Gaussians start at random points of the scene box."""
        super().configure_bounded()
        low, high = self.scene_box.aabb
        self.config.random_scale = float((high - low).max())


@dataclass
class SplatTeacherPipelineConfig(VanillaPipelineConfig):
    """Pipeline of splatfacto as a teacher."""

    _target: Type = field(default_factory=lambda: SplatTeacherPipeline)


class SplatTeacherPipeline(CudaOnly):
    """VanillaPipeline that raises UserError at once without CUDA."""

    method = "mobiler2l-teacher-splat"
