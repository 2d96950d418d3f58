"""Teachers: nerfacto for a GPU, and a small one for a laptop's CPU."""

from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification

from mobiler2l_ns.capture import CaptureDataManagerConfig
from mobiler2l_ns.schedulers import CosineSchedulerConfig
from mobiler2l_ns.teacher_model import TeacherModelConfig
from mobiler2l_ns.trainer import DistillationTrainerConfig


def teacher_config(
    method_name: str, model: TeacherModelConfig, lr: float, rays: int, **trainer
) -> DistillationTrainerConfig:
    """A teacher's recipe; every one differs only in these arguments."""

    def group():
        return {
            "optimizer": AdamOptimizerConfig(lr=lr, eps=1e-15),
            "scheduler": CosineSchedulerConfig(warmup_steps=20, final_ratio=0.05),
        }

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
    config=teacher_config(
        "mobiler2l-teacher",
        TeacherModelConfig(eval_num_rays_per_chunk=1 << 15, average_init_density=0.01),
        lr=1e-2,
        rays=4096,
        max_num_iterations=30000,
        steps_per_save=2000,
        mixed_precision=True,
        vis="viewer+tensorboard",
    ),
    description="nerfacto set up as a teacher for mobiler2l (GPU).",
)

mobiler2l_teacher_small = MethodSpecification(
    config=teacher_config(
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
