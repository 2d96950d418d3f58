"""Teachers for an NVIDIA GPU: instant-ngp and Gaussian splats."""

from typing import Optional

from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.plugins.types import MethodSpecification

from mobiler2l_ns.capture import CaptureDataManagerConfig, PhotoDataManagerConfig
from mobiler2l_ns.schedulers import CosineSchedulerConfig
from mobiler2l_ns.teacher_ngp import NGPTeacherModelConfig, NGPTeacherPipelineConfig
from mobiler2l_ns.teacher_splat import SplatTeacherModelConfig, SplatTeacherPipelineConfig
from mobiler2l_ns.trainer import DistillationTrainerConfig


def adam(lr: float, scheduler: Optional[CosineSchedulerConfig] = None) -> dict:
    """A parameter group."""
    return {"optimizer": AdamOptimizerConfig(lr=lr, eps=1e-15), "scheduler": scheduler}


mobiler2l_teacher_ngp = MethodSpecification(
    config=DistillationTrainerConfig(
        method_name="mobiler2l-teacher-ngp",
        pipeline=NGPTeacherPipelineConfig(
            datamanager=CaptureDataManagerConfig(dataparser=NerfstudioDataParserConfig()),
            model=NGPTeacherModelConfig(eval_num_rays_per_chunk=1 << 13),
        ),
        optimizers={"fields": adam(1e-2, CosineSchedulerConfig(warmup_steps=20, final_ratio=0.02))},
        viewer=ViewerConfig(num_rays_per_chunk=1 << 12),
        max_num_iterations=30000,
        steps_per_save=2000,
        mixed_precision=True,
        vis="viewer+tensorboard",
    ),
    description="instant-ngp set up as a teacher for mobiler2l (CUDA).",
)

mobiler2l_teacher_splat = MethodSpecification(
    config=DistillationTrainerConfig(
        method_name="mobiler2l-teacher-splat",
        pipeline=SplatTeacherPipelineConfig(
            datamanager=PhotoDataManagerConfig(
                dataparser=NerfstudioDataParserConfig(load_3D_points=True), cache_images_type="uint8"
            ),
            # The thresholds of splatfacto-big: a teacher's size does not matter.
            model=SplatTeacherModelConfig(cull_alpha_thresh=0.005, densify_grad_thresh=0.0005),
        ),
        optimizers={
            "means": adam(1.6e-4, CosineSchedulerConfig(final_ratio=0.01)),
            "features_dc": adam(2.5e-3),
            "features_rest": adam(2.5e-3 / 20),
            "opacities": adam(5e-2),
            "scales": adam(5e-3),
            "quats": adam(1e-3),
        },
        steps_per_eval_batch=0,
        max_num_iterations=30000,
        steps_per_save=2000,
        vis="viewer+tensorboard",
    ),
    description="Gaussian splats (splatfacto) set up as a teacher for mobiler2l (CUDA).",
)
