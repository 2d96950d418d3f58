"""Teachers: nerfacto for a GPU and, small, for a laptop's CPU; instant-ngp and Gaussian splats for an NVIDIA GPU."""

from typing import Optional

from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification

from mobiler2l_ns.data.capture import CaptureDataManagerConfig, PhotoDataManagerConfig
from mobiler2l_ns.teacher.nerfacto import TeacherModelConfig
from mobiler2l_ns.teacher.ngp import NGPTeacherModelConfig, NGPTeacherPipelineConfig
from mobiler2l_ns.teacher.splat import SplatTeacherModelConfig, SplatTeacherPipelineConfig
from mobiler2l_ns.trainer import DistillationTrainerConfig
from mobiler2l_ns.training.schedulers import CosineSchedulerConfig

ON_A_GPU = {"max_num_iterations": 30000, "steps_per_save": 2000, "vis": "viewer+tensorboard"}


def adam(lr: float, scheduler: Optional[CosineSchedulerConfig] = None) -> dict:
    """A parameter group; without a scheduler its learning rate is constant."""
    return {"optimizer": AdamOptimizerConfig(lr=lr, eps=1e-15), "scheduler": scheduler}


def nerfacto_config(
    method_name: str, model: TeacherModelConfig, lr: float, rays: int, **trainer
) -> DistillationTrainerConfig:
    """The recipe of a nerfacto teacher; recipes differ only in these arguments."""

    def group():
        return adam(lr, CosineSchedulerConfig(warmup_steps=20, final_ratio=0.05))

    return DistillationTrainerConfig(
        method_name=method_name,
        pipeline=VanillaPipelineConfig(
            datamanager=CaptureDataManagerConfig(
                dataparser=NerfstudioDataParserConfig(),
                train_num_rays_per_batch=rays,
                eval_num_rays_per_batch=rays,
            ),
            model=model,
        ),
        optimizers={"proposal_networks": group(), "fields": group()},
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15),
        **trainer,
    )


mobiler2l_teacher = MethodSpecification(
    config=nerfacto_config(
        "mobiler2l-teacher",
        TeacherModelConfig(eval_num_rays_per_chunk=1 << 15, average_init_density=0.01),
        lr=1e-2,
        rays=4096,
        mixed_precision=True,
        **ON_A_GPU,
    ),
    description="nerfacto set up as a teacher for mobiler2l (GPU).",
)

mobiler2l_teacher_small = MethodSpecification(
    config=nerfacto_config(
        "mobiler2l-teacher-small",
        TeacherModelConfig(
            eval_num_rays_per_chunk=1 << 13,
            num_levels=8,
            max_res=512,
            log2_hashmap_size=16,
            hidden_dim=32,
            hidden_dim_color=32,
            proposal_net_args_list=[
                {"hidden_dim": 16, "log2_hashmap_size": 14, "num_levels": 4, "max_res": 64, "use_linear": False}
            ],
            num_proposal_iterations=1,
            num_proposal_samples_per_ray=(32,),
            num_nerf_samples_per_ray=16,
            proposal_warmup=500,
            proposal_weights_anneal_max_num_iters=200,
            use_appearance_embedding=False,
            implementation="torch",
        ),
        lr=1e-2,
        rays=2048,
        max_num_iterations=2000,
        steps_per_save=500,
        vis="tensorboard",
    ),
    description="A small nerfacto teacher that trains on a laptop's CPU in minutes.",
)

mobiler2l_teacher_ngp = MethodSpecification(
    config=DistillationTrainerConfig(
        method_name="mobiler2l-teacher-ngp",
        pipeline=NGPTeacherPipelineConfig(
            datamanager=CaptureDataManagerConfig(dataparser=NerfstudioDataParserConfig()),
            model=NGPTeacherModelConfig(eval_num_rays_per_chunk=1 << 13),
        ),
        optimizers={"fields": adam(1e-2, CosineSchedulerConfig(warmup_steps=20, final_ratio=0.02))},
        viewer=ViewerConfig(num_rays_per_chunk=1 << 12),
        mixed_precision=True,
        **ON_A_GPU,
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
            # The thresholds of splatfacto-big, as a teacher may be large.
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
        **ON_A_GPU,
    ),
    description="Gaussian splats (splatfacto) set up as a teacher for mobiler2l (CUDA).",
)
