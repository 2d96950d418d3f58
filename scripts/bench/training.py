"""Trains students through their own nerfstudio trainers and records PSNR against steps, seconds and teacher views.

The clock of a run starts before its datamanager is built, so everything that the teacher renders is counted; only the
scoring of held-out views is left out.
"""

import copy
import gc
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Tuple

import torch
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.callbacks import TrainingCallbackLocation

from bench.common import console, default_device
from mobiler2l_ns import method_configs
from mobiler2l_ns.data.reprojection import INITIAL_VIEWS
from mobiler2l_ns.data.time_budget import synchronize
from mobiler2l_ns.datamanager import DistillationDataManagerConfig
from mobiler2l_ns.student.network import count_parameters
from mobiler2l_ns.trainer import DistillationTrainer, DistillationTrainerConfig, forget_writers
from mobiler2l_ns.training.random_state import seed_all

PROBE_VIEWS = 4  # whole views, or tiles

ScoreFunction = Callable[[DistillationTrainer], float]


@dataclass
class Score:
    """One point of a curve."""

    step: int
    seconds: float
    views: int
    """Teacher views rendered so far, in whole views."""
    psnr: float


@dataclass
class Run:
    """One training run and its curve."""

    method: str
    seed: int
    steps: int
    parameters: int = 0
    seconds: float = 0.0
    teacher_seconds: float = 0.0
    pool_bytes: int = 0
    curve: List[Score] = field(default_factory=list)

    def first_at(self, level: float) -> Optional[Score]:
        """The first point of the curve at or above a PSNR."""
        return next((score for score in self.curve if score.psnr >= level), None)


def capture_parser(data: Path) -> DataParserConfig:
    """The data parser of a capture in the format of NeRF-synthetic or of nerfstudio."""
    is_blender = (data / "transforms_train.json").is_file()
    return BlenderDataParserConfig(data=data) if is_blender else NerfstudioDataParserConfig(data=data)


def method_config(method: str, data: Path, parser: DataParserConfig, outputs: Path) -> DistillationTrainerConfig:
    """A method's config for a capture, without export. The published planes are for NeRF-synthetic alone."""
    config = copy.deepcopy(getattr(method_configs, method.replace("-", "_")).config)
    config.machine.device_type, config.vis = default_device().type, "tensorboard"
    config.data, config.output_dir, config.pipeline.model.export_when_done = data, outputs, False
    datamanager = config.pipeline.datamanager
    own, datamanager.data, datamanager.dataparser = datamanager.dataparser, data, copy.deepcopy(parser)
    if isinstance(own, NerfstudioDataParserConfig) and isinstance(parser, NerfstudioDataParserConfig):
        datamanager.dataparser.load_3D_points = own.load_3D_points  # from which splatfacto starts
    if isinstance(datamanager, DistillationDataManagerConfig) and not isinstance(parser, BlenderDataParserConfig):
        datamanager.near_far = None  # measured
    return config


def train(
    config: DistillationTrainerConfig,
    seed: int,
    score: ScoreFunction,
    num_scores: int,
    also_at: Tuple[int, ...] = (),
) -> Tuple[Run, DistillationTrainer]:
    """Trains a student through its nerfstudio trainer.

    Args:
        config: Its method's config.
        seed: Of all random numbers.
        score: PSNR of the student in its present state; its seconds do not count.
        num_scores: How many points the curve has, evenly spaced in steps.
        also_at: Numbers of steps with a point of their own.

    Returns:
        The run's figures and the trainer.
    """
    gc.collect()  # the last trainer is in a circle of references, and its views take gigabytes
    seed_all(seed)
    steps = config.max_num_iterations
    stopwatch = Stopwatch()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup("val")
    # A network draws as many numbers as it has weights: without this its size would change views and batches.
    torch.manual_seed(seed)
    trainer.stop_training = False
    run = Run(config.method_name, seed, steps, count_parameters(trainer.pipeline.model.network))
    for step in range(steps):
        take_step(trainer, step)
        last = step + 1 == steps or trainer.stop_training
        if last or step + 1 in also_at or (step + 1) * num_scores // steps > step * num_scores // steps:
            add_score(run, trainer, step + 1, score, stopwatch)
        if last:
            break
    forget_writers()
    statistics = trainer.pipeline.datamanager.statistics()
    run.teacher_seconds, run.pool_bytes = statistics["teacher_seconds"], statistics["bytes"]
    return run, trainer


def take_one_step(config: DistillationTrainerConfig) -> Tuple[Run, DistillationTrainer]:
    """A student's trainer after one step, without fine-tuning and scores. The config is changed."""
    config.max_num_iterations, config.pipeline.finetuning.steps = 1, 0
    return train(config, 0, lambda trainer: 0.0, 1)


def steps_within(config: DistillationTrainerConfig, seconds: float, probe_steps: int, seed: int = 0) -> int:
    """How many steps of a student fit into some seconds, its setup included: a schedule needs to know this beforehand.

    Args:
        config: The student; it stays as it is.
        seconds: Time for all steps.
        probe_steps: Length of the short run that measures the time of a step and of a view.
        seed: Of that run.
    """
    probe, views = copy.deepcopy(config), config.pipeline.datamanager.initial_views
    probe.max_num_iterations, probe.pipeline.finetuning.steps = probe_steps, 0
    few_views(probe)
    run, _ = train(probe, seed, lambda trainer: 0.0, 3)
    first, last = run.curve[0], run.curve[-1]
    seconds_a_step = (last.seconds - first.seconds) / (last.step - first.step)
    left = seconds - first.seconds
    few = probe.pipeline.datamanager.initial_views
    other_views = (views - few) * run.teacher_seconds / few
    # The views before the first step use up the teacher's share of the time at first.
    own = min(left - other_views, (1 - config.pipeline.datamanager.filling_share) * left)
    return max(probe_steps, round(own / seconds_a_step))


def few_views(config: DistillationTrainerConfig) -> None:
    """Lets a student render few views before its first step, and none afterwards."""
    datamanager = config.pipeline.datamanager
    datamanager.teacher_share = datamanager.filling_share = 0.0
    datamanager.initial_views = min(PROBE_VIEWS, datamanager.initial_views)
    # Reprojected views fill their pool at once, so that a step takes as long as most steps of a long run.
    datamanager.reprojected_views = min(INITIAL_VIEWS, datamanager.reprojected_views)


class Stopwatch:
    """Seconds since it was made, without those of its pauses."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def seconds(self) -> float:
        """Seconds until now."""
        return time.perf_counter() - self.start

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Around what does not count."""
        before = time.perf_counter()
        yield
        self.start += time.perf_counter() - before


def take_step(trainer: DistillationTrainer, step: int) -> None:
    """One step with its callbacks, as in nerfstudio's ``Trainer.train``."""
    trainer.step = step
    trainer.pipeline.train()
    for callback in trainer.callbacks:
        callback.run_callback_at_location(step, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
    trainer.train_iteration(step)
    for callback in trainer.callbacks:
        callback.run_callback_at_location(step, TrainingCallbackLocation.AFTER_TRAIN_ITERATION)


def add_score(run: Run, trainer: DistillationTrainer, step: int, score: ScoreFunction, stopwatch: Stopwatch) -> None:
    """Adds a point to a run's curve; its seconds count neither for the run nor for the teacher's share."""
    datamanager, model = trainer.pipeline.datamanager, trainer.pipeline.model
    synchronize(model.device)  # the work in a GPU's queue is part of the steps
    run.seconds = round(stopwatch.seconds(), 2)
    statistics = datamanager.statistics()
    tile = statistics["view_height"] * statistics["view_width"] / (datamanager.size[0] * datamanager.size[1])
    views = round(statistics["views"] * tile)
    with stopwatch.pause(), datamanager.budget.exclude(), torch.no_grad():
        model.eval()
        psnr = round(score(trainer), 3)
        model.train()
    run.curve.append(Score(step, run.seconds, views, psnr))
    console.print(f"  step {step}, {run.seconds:.0f} s, {views} teacher views: {psnr:.2f} dB")
