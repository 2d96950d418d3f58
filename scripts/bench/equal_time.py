"""Students that are trained for equal seconds: each method runs for as many steps as fit into them."""

import copy
from pathlib import Path
from typing import Callable, Tuple

from bench.common import default_device
from bench.distillation import mean_of, student_pairs
from bench.training import PROBE_VIEWS, Run, steps_within, take_one_step, train
from mobiler2l_ns.data.photos import PhotoSet, load_photos
from mobiler2l_ns.export.comparison import held_out_dataset
from mobiler2l_ns.trainer import DistillationTrainer, DistillationTrainerConfig
from mobiler2l_ns.training.metrics import psnr

PUBLISHED_FILLING = 0.2  # share of the time for the views of the published recipes


def held_out_photos(config: DistillationTrainerConfig, size: Tuple[int, int]) -> PhotoSet:
    """The held-out photos of a student's capture at a size (H, W)."""
    return load_photos(held_out_dataset(config), *size, 1, default_device())


def train_within(
    config: DistillationTrainerConfig,
    seconds: float,
    probe_steps: int,
    load_held_out: Callable[[Tuple[int, int]], PhotoSet],
    num_scores: int,
    seed: int = 0,
) -> Tuple[Run, DistillationTrainer, PhotoSet]:
    """Trains a student for about ``seconds``, the teacher's views included.

    Args:
        config: The student. Its number of steps is set here, and its number of views if it renders all of them before
            its first step, as the published recipes do.
        seconds: Time for everything.
        probe_steps: Length of the short run that measures the time of a step.
        load_held_out: Loads held-out photos at a size (H, W).
        num_scores: Points of the curve. One more lies where fine-tuning starts.
        seed: Of all random numbers.

    Returns:
        The run's figures, its trainer, and the held-out photos.
    """
    photos = []

    def score(trainer: DistillationTrainer) -> float:
        if not photos:
            photos.append(load_held_out(trainer.pipeline.model.size))
        return mean_of(psnr, student_pairs(trainer.pipeline.model, photos[0]))

    datamanager = config.pipeline.datamanager
    if datamanager.teacher_share == datamanager.filling_share == 0:
        limit_views(config, PUBLISHED_FILLING * seconds)
    config.max_num_iterations = steps_within(config, seconds, probe_steps, seed)
    tuning = config.pipeline.finetuning.steps_of(config.max_num_iterations)
    run, trainer = train(config, seed, score, num_scores, also_at=(config.max_num_iterations - tuning,))
    trainer.pipeline.model.eval()
    return run, trainer, photos[0]


def limit_views(config: DistillationTrainerConfig, seconds: float) -> None:
    """Lowers a student's number of views to those that its teacher renders in some seconds."""
    probe = copy.deepcopy(config)
    set_views(probe, PROBE_VIEWS)
    run, _ = take_one_step(probe)
    views = int(seconds * PROBE_VIEWS / run.teacher_seconds)
    set_views(config, max(PROBE_VIEWS, min(config.pipeline.datamanager.pool_views, views)))


def set_views(config: DistillationTrainerConfig, views: int) -> None:
    """Lets a student render a number of views before its first step."""
    datamanager = config.pipeline.datamanager
    datamanager.pool_views = datamanager.initial_views = views


def keep_views(config: DistillationTrainerConfig, views: int, cache: Path, steps: int) -> None:
    """Sets up a run of some steps without fine-tuning whose views are rendered before its first step, or cached."""
    set_views(config, views)
    datamanager = config.pipeline.datamanager
    datamanager.cache_dir, datamanager.teacher_share, datamanager.filling_share = cache, 0.0, 0.0
    config.max_num_iterations, config.pipeline.finetuning.steps = steps, 0
