"""splatfacto as a teacher, on gsplat's CUDA rasteriser.

Differences from splatfacto: Gaussians of an object start in the scene box, more and fainter ones are kept, evaluation
is on white, and no LPIPS download. Rendering is antialiased, because a student's picture is often smaller than the
photos, where splats of the classic mode grow fat.
"""

from dataclasses import dataclass, field
from typing import Literal, Type

import torch
from nerfstudio.models.splatfacto import SplatfactoModel, SplatfactoModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig

from mobiler2l_ns.teacher.kinds import CudaOnly
from mobiler2l_ns.teacher.nerfacto import TeacherModelMixin


@dataclass
class SplatTeacherModelConfig(SplatfactoModelConfig):
    """splatfacto as a teacher."""

    _target: Type = field(default_factory=lambda: SplatTeacherModel)
    scene: Literal["auto", "bounded", "unbounded"] = "auto"
    """Kind of scene. bounded: on white, the first Gaussians lie in the scene box. unbounded: trained on random
    backgrounds. auto: bounded if the photos have a transparent background, else unbounded."""
    rasterize_mode: Literal["classic", "antialiased"] = "antialiased"
    """antialiased: a splat keeps its size in pictures smaller than the photos."""


class SplatTeacherModel(TeacherModelMixin, SplatfactoModel):
    """splatfacto as a teacher."""

    config: SplatTeacherModelConfig

    def populate_modules(self):
        """Builds splatfacto for the kind of scene at hand."""
        super().populate_modules()
        # splatfacto's own for a model that was trained on random backgrounds is a dark blue.
        self.background_color = torch.ones(3)

    def configure_bounded(self) -> None:
        """On white; without points of a reconstruction, Gaussians start anywhere in the scene box."""
        super().configure_bounded()
        low, high = self.scene_box.aabb
        self.config.random_scale = float((high - low).max())


@dataclass
class SplatTeacherPipelineConfig(VanillaPipelineConfig):
    """Pipeline of splatfacto as a teacher."""

    _target: Type = field(default_factory=lambda: SplatTeacherPipeline)


class SplatTeacherPipeline(CudaOnly, VanillaPipeline):
    """VanillaPipeline that ends at once without CUDA."""

    method = "mobiler2l-teacher-splat"
