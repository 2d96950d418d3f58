"""Small runs in processes of their own, which announce what they are about to do, so that a test can kill them there.

The processes are forks of a server that has imported everything, so that each starts at once.
"""

import resource
import sys
from pathlib import Path
from typing import Any, Dict, Optional

import torch
from builders import StubTeacher, stub_teacher_config, tiny_student

from mobiler2l_ns import trainer as trainer_module
from mobiler2l_ns.checkpoints import checkpoint_paths, read_checkpoint
from mobiler2l_ns.data.view_stream import ViewStream
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export import command as export_module
from mobiler2l_ns.export.command import ExportMobileR2L
from mobiler2l_ns.pruning.command import PruneMobileR2L
from mobiler2l_ns.teacher.adoption import Adoption
from mobiler2l_ns.teacher.frozen import TeacherConfig
from mobiler2l_ns.trainer import DistillationTrainer
from mobiler2l_ns.training.random_state import seed_all

STEPS, FINE_TUNING = 24, 6


def announce(mark) -> None:
    """Wraps what a run does, so that it sends a phase's name to the test first."""

    def wrap(owner, name: str, phase) -> None:
        original = getattr(owner, name)

        def announced(*args, **kwargs):
            mark(phase(*args) if callable(phase) else phase)
            return original(*args, **kwargs)

        setattr(owner, name, announced)

    wrap(ViewStream, "render_view", "filling")
    wrap(DistillationTrainer, "train_iteration",
         lambda self, step: "fine-tuning" if step >= STEPS - FINE_TUNING else "training")  # fmt: skip
    wrap(trainer_module, "write_checkpoint", "saving")
    wrap(export_module, "staging_folder", "exporting")
    wrap(export_module, "move_into_place", "replacing")


def config_of(folder: Path, capture: Path):
    """A student of a few steps that saves each one, with a cache and fine-tuning."""
    config = tiny_student(capture, folder)
    config.max_num_iterations, config.steps_per_save, config.experiment_name = STEPS, 1, "faults"
    config.pipeline.model.surface_octaves, config.pipeline.model.export_when_done = 4, False
    config.pipeline.finetuning.steps, config.pipeline.finetuning.validate_every = FINE_TUNING, 2
    config.pipeline.finetuning.validation_photos = 2
    datamanager = config.pipeline.datamanager
    datamanager.teacher = stub_teacher_config(StubTeacher(), folder / "teacher")
    datamanager.reprojected_share, datamanager.reprojected_views = 0.5, 4
    datamanager.patches_per_batch, datamanager.pool_views, datamanager.initial_views = 8, 6, 6
    datamanager.cache_dir = folder / "cache"
    return config


def train(folder: Path, capture: Path) -> None:
    """Trains a student, or goes on with one; each start repeats the same command."""
    config = config_of(folder, capture)
    config.set_timestamp()
    checkpoints = config.get_checkpoint_dir()
    config.load_dir = checkpoints if list(checkpoints.glob("*.ckpt")) else None
    seed_all(1)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.train()
    # The commands read config.yml too, and trust no class of the tests.
    config.pipeline.datamanager.teacher = TeacherConfig(load_config=folder / "teacher" / "config.yml")
    config.save_config()


def train_without_cache(folder: Path, capture: Path) -> None:
    """Trains a student that keeps its views in memory."""
    config = config_of(folder, capture)
    config.pipeline.datamanager.cache_dir = None
    config.set_timestamp()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.train()


def prune(folder: Path, capture: Path) -> None:
    """Prunes a student in two rounds, or goes on."""
    TeacherConfig.setup = lambda self, device: StubTeacher()
    TeacherConfig.find = lambda self, data, dataparser, device: Adoption(dataparser, False)
    seed_all(1)
    PruneMobileR2L(folder / "mobiler2l-small" / "run", rounds=2, finetune_steps=4, scoring_batches=2, multiple=4).main()


def export(folder: Path, capture: Path) -> None:
    """Exports a student over an older export."""
    ExportMobileR2L(
        folder / "mobiler2l-small" / "run", folder / "files", ("onnx",), num_views=0, overwrite=True
    ).export()


def run(victim: str, folder: Path, capture: Path, phases: Any, largest_file: Optional[int]) -> None:
    """Runs one of the functions above in this process.

    Args:
        victim: The function's name.
        folder: Where it writes.
        capture: The photos.
        phases: A connection that gets the phases' names.
        largest_file: Bytes that a file may have, in place of a disk that is full.

    A UserError is written to error.txt.
    """
    torch.set_num_threads(1)
    sys.dont_write_bytecode = True  # Python takes a file that the limit cut off for a whole one
    announce(phases.send)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        globals()[victim](folder, capture)
    except UserError as error:
        (folder / "error.txt").write_text(str(error))
        raise


def weights_of(folder: Path, capture: Path) -> Dict[str, torch.Tensor]:
    """The student's weights and buffers in the newest checkpoint of a run."""
    config = config_of(folder, capture)
    config.set_timestamp()
    return dict(read_checkpoint(checkpoint_paths(config.get_base_dir() / "config.yml", config)[-1])["pipeline"])
