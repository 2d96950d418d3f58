"""nerfstudio's Trainer with atomic checkpoints, a config.yml with the options that were used, and quick memory."""

import os
import random
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal, Optional, Type

import numpy as np
import torch
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils import comms, writer

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.training.memory import keep_freed_memory
from mobiler2l_ns.training.schedulers import CosineLR


def seed_all(seed: int) -> None:
    """Seeds all random numbers, as ns-train does."""
    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(seed)


def forget_writers() -> None:
    """Ends the event files of the last run: nerfstudio keeps them, and a process's next run would write into them."""
    writer.EVENT_WRITERS.clear()


@dataclass
class DistillationTrainerConfig(TrainerConfig):
    """TrainerConfig of all our methods."""

    _target: Type = field(default_factory=lambda: DistillationTrainer)


class DistillationTrainer(Trainer):
    """Trainer for teachers and students."""

    _state = "training"
    _pause: Optional[ExitStack] = None

    @property
    def training_state(self) -> str:
        """nerfstudio's: "training", "paused" by the viewer's button, or "completed"."""
        return self._state

    @training_state.setter
    def training_state(self, state: str) -> None:
        # The time of a pause does not count for the teacher's fraction of the training time.
        budget = getattr(self.pipeline.datamanager, "budget", None) if hasattr(self, "pipeline") else None
        if state == "paused" and self._pause is None and budget is not None:
            self._pause = ExitStack()
            self._pause.enter_context(budget.exclude())
        elif state != "paused" and self._pause is not None:
            self._pause.close()
            self._pause = None
        self._state = state

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """nerfstudio's; also keeps freed memory, sets the length of the schedules, and saves config.yml again."""
        if test_mode == "val" and self.device == "cpu":
            keep_freed_memory()
        super().setup(test_mode)
        for scheduler in self.optimizers.schedulers.values():
            if isinstance(scheduler, CosineLR):
                scheduler.end_at(self._start_step + self.config.max_num_iterations)
        if test_mode == "val" and comms.is_main_process():
            # ns-train wrote config.yml before the teacher, its data parser and the kind of scene were known.
            self.config.save_config()

    def _load_checkpoint(self) -> None:
        """nerfstudio's, with a UserError for a checkpoint that cannot be resumed."""
        source = self.config.load_dir or self.config.load_checkpoint
        try:
            super()._load_checkpoint()
        except Exception as error:
            # Missing, truncated and foreign files and other architectures raise different exceptions.
            if source is None:
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1][:200]
            raise UserError(
                f"{source} cannot be resumed by {self.config.method_name} ({reason}): pass the nerfstudio_models "
                "folder of a run of the same method with the same network options."
            ) from error

    def save_checkpoint(self, step: int) -> None:
        """Writes beside the checkpoint folder and moves the file into it, so that no file is ever half-written."""
        if not comms.is_main_process():
            return
        folder, keep_latest = self.checkpoint_dir, self.config.save_only_latest_checkpoint
        staging = folder.with_name(folder.name + ".writing")
        shutil.rmtree(staging, ignore_errors=True)
        self.checkpoint_dir = staging
        try:
            super().save_checkpoint(step)
        finally:
            self.checkpoint_dir = folder
        folder.mkdir(parents=True, exist_ok=True)
        (written,) = staging.iterdir()
        target = folder / written.name
        os.replace(written, target)
        staging.rmdir()
        if keep_latest:
            for path in folder.glob("*.ckpt"):
                if path != target:
                    path.unlink()
