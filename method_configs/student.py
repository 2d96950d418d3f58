"""Students: the full network, a small network for a laptop, and the published recipes as baselines."""

from typing import Optional

from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.plugins.types import MethodSpecification

from mobiler2l_ns.datamanager import DistillationDataManagerConfig
from mobiler2l_ns.model import MobileR2LModelConfig
from mobiler2l_ns.pipeline import DistillationPipelineConfig
from mobiler2l_ns.student.network import NetworkConfig
from mobiler2l_ns.trainer import DistillationTrainerConfig
from mobiler2l_ns.training.finetuning import FineTuningConfig
from mobiler2l_ns.training.optimizers import AdamWOptimizerConfig, MuonOptimizerConfig
from mobiler2l_ns.training.schedulers import CosineSchedulerConfig


def student_config(
    method_name: str,
    model: MobileR2LModelConfig,
    datamanager: DistillationDataManagerConfig,
    optimizers: dict,
    finetuning: Optional[FineTuningConfig] = None,
    **trainer,
) -> DistillationTrainerConfig:
    """The recipe of a student; recipes differ only in these arguments."""
    return DistillationTrainerConfig(
        method_name=method_name,
        pipeline=DistillationPipelineConfig(
            datamanager=datamanager, model=model, finetuning=finetuning or FineTuningConfig()
        ),
        optimizers=optimizers,
        **trainer,
    )


def data(**options) -> DistillationDataManagerConfig:
    """Streamed data of a capture in nerfstudio's format; commands can select another data parser."""
    return DistillationDataManagerConfig(dataparser=NerfstudioDataParserConfig(), **options)


def pseudo_data(**options) -> DistillationDataManagerConfig:
    """Data of the published methods: 10000 teacher views, all rendered before the first step, and no photos."""
    return data(
        pool_views=10000,
        initial_views=10000,
        teacher_share=0.0,
        filling_share=0.0,
        photo_share=0.0,
        near_far=(2.0, 6.0),
        **options,
    )


def muon(matrix_lr: float, other_lr: float, steps: int, pixels: int, exponent: float = 0.5) -> dict:
    """Muon for the weights of convolutions, AdamW for the rest, cosine schedules.

    The rates are those of a run of ``steps`` steps with batches of ``pixels`` pixels, and fall as the length to the
    power of ``-exponent``.
    """
    schedule = CosineSchedulerConfig(
        warmup_steps=10, final_ratio=0.02, reference_steps=steps, length_exponent=exponent, reference_pixels=pixels
    )  # fmt: skip
    return {
        "matrices": {"optimizer": MuonOptimizerConfig(lr=matrix_lr, momentum=0.9), "scheduler": schedule},
        "others": {"optimizer": AdamWOptimizerConfig(lr=other_lr), "scheduler": schedule},
    }


def published_adamw(weight_decay: float = 1e-2, final_ratio: float = 0.1) -> dict:
    """AdamW with lr 5e-4 and a short warm-up, as for MobileR2L; without weight decay it is R2L's Adam."""
    group = {
        "optimizer": AdamWOptimizerConfig(lr=5e-4, weight_decay=weight_decay),
        "scheduler": CosineSchedulerConfig(warmup_steps=200, final_ratio=final_ratio),
    }
    return {"matrices": group, "others": group}


def full_scale(method_name: str, network: NetworkConfig) -> DistillationTrainerConfig:
    """The recipe of students of a GPU, with cells of 8x8 pixels."""
    return student_config(
        method_name,
        MobileR2LModelConfig(network=network, surface_octaves=9, surface_refinements=2, structure_weight=0.02),
        data(
            pool_views=1000,
            initial_views=100,
            patch_cells=10,
            patches_per_batch=100,
            photo_share=0.1,
            reprojected_share=0.6,
            photo_depth=True,
        ),
        muon(1.6e-2, 1.6e-3, steps=3000, pixels=100 * 80**2, exponent=0.4),
        FineTuningConfig(steps=3000, validate_every=200),
        max_num_iterations=30000,
        steps_per_save=2000,
        vis="viewer+tensorboard",
    )


mobiler2l = MethodSpecification(
    config=full_scale("mobiler2l", NetworkConfig()),
    description="A neural light field for phones (MobileR2L, D60 W256), distilled from a nerfstudio run.",
)

mobiler2l_compact = MethodSpecification(
    config=full_scale("mobiler2l-compact", NetworkConfig(depth=32, width=128, sr_widths=(32, 16, 8))),
    description="A light field of a seventh of mobiler2l's work (D32 W128), for browsers and slower phones.",
)

mobiler2l_small = MethodSpecification(
    config=student_config(
        "mobiler2l-small",
        # Cells of 4x4 pixels: with a surface code, the body learns more from its rays than the super-resolution does.
        MobileR2LModelConfig(
            network=NetworkConfig(depth=24, width=96, sr_widths=(32, 8), sr_strides=(2, 2)),
            num_points=12,
            num_frequencies=4,
            surface_octaves=8,
            surface_width=48,
            surface_refinements=2,
            structure_weight=0.02,
        ),
        data(
            pool_views=1600,
            initial_views=40,
            tile_cells=40,
            patch_cells=16,
            patches_per_batch=22,
            photo_share=0.1,
            reprojected_share=0.6,
            photo_depth=True,
            filling_share=0.15,
            teacher_share=0.1,
        ),
        muon(2.5e-2, 2e-3, steps=800, pixels=22 * 64**2),
        FineTuningConfig(steps=1000, validate_every=100),
        max_num_iterations=4000,
        steps_per_save=500,
        vis="tensorboard",
    ),
    description="A small light field that trains on a laptop's CPU in minutes.",
)

mobiler2l_paper = MethodSpecification(
    config=student_config(
        "mobiler2l-paper",
        MobileR2LModelConfig(
            network=NetworkConfig(batch_norm=True), outputs="rgb", points="bounded", jitter_points=True
        ),
        pseudo_data(patches_per_batch=40, patch_cells=None),
        published_adamw(),
        max_num_iterations=600000,
        steps_per_save=2000,
        vis="viewer+tensorboard",
    ),
    description="MobileR2L as published (fixed pseudo data, batch norm, AdamW): the baseline.",
)

r2l = MethodSpecification(
    config=student_config(
        "r2l",
        MobileR2LModelConfig(
            network=NetworkConfig(depth=88, sr_widths=(), sr_strides=(), activation="relu"),
            outputs="rgb",
            points="bounded",
            num_points=16,
            num_frequencies=10,
            jitter_points=True,
        ),
        pseudo_data(hard_share=0.2, patches_per_batch=98304, patch_cells=1),
        # R2L decays exponentially, by a factor of ten in 500,000 steps: to 0.004 at the end, like this cosine.
        published_adamw(weight_decay=0.0, final_ratio=0.004),
        max_num_iterations=1200000,
        steps_per_save=2000,
        vis="viewer+tensorboard",
    ),
    description="R2L as published (residual MLP D88 W256, one ray per pixel, hard rays): a slow baseline.",
)
