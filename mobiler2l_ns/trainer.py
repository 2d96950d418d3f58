"""nerfstudio's Trainer with whole checkpoints from which a run goes on as if it had not been interrupted."""

from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Literal, Optional, Type

from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils import comms, writer
from nerfstudio.utils.rich_utils import CONSOLE

from mobiler2l_ns.checkpoints import read_checkpoint, write_checkpoint
from mobiler2l_ns.errors import UserError, first_line
from mobiler2l_ns.training.finite_steps import FiniteSteps
from mobiler2l_ns.training.memory import gpu_memory, keep_freed_memory
from mobiler2l_ns.training.progress import log_line
from mobiler2l_ns.training.random_state import random_state, set_random_state
from mobiler2l_ns.training.schedulers import CosineLR
from mobiler2l_ns.training.termination import EXIT_CODE, on_termination

# What makes data and steps of a method smaller, by a field that its datamanager has: a student's, rays', whole photos'.
SMALLER_PHOTOS = {"camera_res_scale_factor": "--pipeline.datamanager.camera-res-scale-factor"}
SMALLER_DATA = {
    "patches_per_batch": "--pipeline.datamanager.pool-views or --pipeline.datamanager.image-size",
    **SMALLER_PHOTOS,
}
SMALLER_STEPS = {
    "patches_per_batch": "--pipeline.datamanager.patches-per-batch",
    "train_num_rays_per_batch": "--pipeline.datamanager.train-num-rays-per-batch",
    **SMALLER_PHOTOS,
}


def forget_writers() -> None:
    """Ends the event files of the last run: nerfstudio keeps them, and a process's next run would write into them."""
    writer.EVENT_WRITERS.clear()


@dataclass
class DistillationTrainerConfig(TrainerConfig):
    """TrainerConfig of all our methods."""

    _target: Type = field(default_factory=lambda: DistillationTrainer)


class DistillationTrainer(Trainer):
    """Trainer for teachers and students.

    Attributes:
        first_step: The step at which the run began. A run that goes on after an interruption keeps it.
        end_step: The step before which the run ends.
    """

    first_step: int
    end_step: int
    _state = "training"
    _pause: Optional[ExitStack] = None
    _checkpoint: Optional[Dict[str, Any]] = None
    _interrupted: Optional[Dict[str, Any]] = None  # the entry `run` of a checkpoint of the same run
    _is_asked_to_end = False

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
        """nerfstudio's; also keeps freed memory, fits the schedules to the run, and saves config.yml again."""
        if test_mode == "val" and self.device == "cpu":
            keep_freed_memory()
        self._plan_run()
        with self._memory("the training data", SMALLER_DATA):
            super().setup(test_mode)
        pixels = self.pipeline.datamanager.get_train_rays_per_batch() * comms.get_world_size()
        for scheduler in self.optimizers.schedulers.values():
            if isinstance(scheduler, CosineLR):
                scheduler.fit_run(self.end_step, pixels)
        after_step = [TrainingCallbackLocation.AFTER_TRAIN_ITERATION]
        steps = FiniteSteps(self.optimizers.optimizers)
        self.callbacks += [steps.callback(), TrainingCallback(after_step, self._end_if_asked)]
        if test_mode == "val" and comms.is_main_process():
            # ns-train wrote config.yml before the teacher, its data parser and the kind of scene were known.
            self.config.save_config()

    def _plan_run(self) -> None:
        """Reads the checkpoint to go on from, before anything slow, and finds out where the run ends.

        A run that was interrupted ends where it would have ended, if as many steps are asked for as then. Otherwise
        so many steps follow the checkpoint, as in nerfstudio: a new run that begins with its weights.
        """
        path, steps = checkpoint_to_resume(self.config), self.config.max_num_iterations
        self._checkpoint = None if path is None else read_checkpoint(path)
        self.first_step = 0 if self._checkpoint is None else int(self._checkpoint["step"]) + 1
        self.end_step = self.first_step + steps
        if self._checkpoint is None:
            return
        run = self._checkpoint.get("run", {})
        if not run.get("completed", True) and run["end"] - run["first"] == steps:
            log_line(f"{path}: the run goes on at step {self.first_step}, and ends at step {run['end']}.")
            self.first_step, self.end_step, self._interrupted = run["first"], run["end"], run
        else:
            log_line(
                f"{path}: {steps} steps follow. The learning rates go on as in that run, and stay at their last value "
                "after its end."
            )
        pipeline: Any = self.config.pipeline
        if "pipeline" in run and hasattr(pipeline, "go_on_from"):
            pipeline.go_on_from(run["pipeline"])

    def _load_checkpoint(self) -> None:
        """nerfstudio's, from what ``setup`` has read, with the state of the data, and with a UserError."""
        saved = self._checkpoint
        if saved is None:
            CONSOLE.print("No checkpoint to load: the training starts from scratch.")
            return
        self._start_step = int(saved["step"]) + 1
        try:
            self.pipeline.load_pipeline(saved["pipeline"], saved["step"])
            self._follow_parameters()
            self.optimizers.load_optimizers(saved["optimizers"])
            if self.config.load_scheduler:
                self.optimizers.load_schedulers(saved.get("schedulers", {}))
            if saved["scalers"]:  # empty where the run did not scale its gradients, as on a CPU
                self.grad_scaler.load_state_dict(saved["scalers"])
        except (RuntimeError, KeyError, ValueError) as error:
            # Weights of other shapes, groups of parameters that this method does not have, other parts of a model.
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1][:200]
            raise UserError(
                f"{self.config.load_dir or self.config.load_checkpoint} cannot be resumed by {self.config.method_name} "
                f"({reason}): pass the nerfstudio_models folder of a run of the same method with the same network "
                "options."
            ) from error
        self._checkpoint = None
        if self._interrupted is not None and "pipeline" in self._interrupted:
            pipeline: Any = self.pipeline
            pipeline.resume(self._interrupted["pipeline"])

    def _follow_parameters(self) -> None:
        """Gives the optimizers the model's present parameters: splatfacto makes new ones when it loads a checkpoint."""
        for name, parameters in self.pipeline.get_param_groups().items():
            if name in self.optimizers.optimizers:
                self.optimizers.parameters[name] = parameters
                (group,) = self.optimizers.optimizers[name].param_groups
                group["params"] = parameters

    def _memory(self, what: str, options: Dict[str, str]) -> AbstractContextManager[None]:
        datamanager = self.config.pipeline.datamanager
        smaller = next((option for name, option in options.items() if hasattr(datamanager, name)), "photos")
        return gpu_memory(f"{what} of {self.config.method_name}", smaller)

    def train(self) -> None:
        """nerfstudio's, up to the planned end; SIGTERM ends it after a checkpoint."""
        if self._interrupted is not None and "random" in self._interrupted:
            set_random_state(self._interrupted["random"], self.device)
        left = self.end_step - self._start_step
        if left == 0:  # it was ended after its last step; nerfstudio expects that one step at least is taken
            self.step = writer.GLOBAL_BUFFER["step"] = self._start_step - 1
        asked, self.config.max_num_iterations = self.config.max_num_iterations, left
        try:
            # Several processes would wait for the one that saves.
            with on_termination(self._ask_to_end) if self.world_size == 1 else nullcontext():
                with self._memory("the training", SMALLER_STEPS):
                    super().train()
        finally:
            self.config.max_num_iterations = asked

    def save_checkpoint(self, step: int) -> None:
        """Saves the run, whole or not at all.

        A full disk does not end a training: the checkpoint before is kept, and the next one may succeed.

        Raises:
            UserError: A weight is NaN or infinite, or the last checkpoint of the run cannot be written.
        """
        if not comms.is_main_process():
            return
        weights = self.pipeline.model.named_parameters()
        broken = [name for name, weight in weights if weight.is_floating_point() and not bool(weight.isfinite().all())]
        if broken:
            raise UserError(
                f"the training has diverged, and {broken[0]} is NaN or infinite after step {step}: train again with "
                f"smaller learning rates (--optimizers); {self.checkpoint_dir} keeps the checkpoint before."
            )
        try:
            path = write_checkpoint(self.checkpoint_dir, step, self._state_dict(step))
        except OSError as error:
            failure = UserError(
                f"the checkpoint of step {step} cannot be written to {self.checkpoint_dir} ({first_line(error)}): make "
                "room, and go on from the last one with --load-dir."
            )
            if self.training_state == "completed" or self._is_asked_to_end:
                raise failure from None
            log_line(f"{failure} The training goes on.")
            return
        if self.config.save_only_latest_checkpoint:
            for other in self.checkpoint_dir.glob("*.ckpt"):
                if other != path:
                    other.unlink()

    def _state_dict(self, step: int) -> Dict[str, Any]:
        """What a checkpoint contains: nerfstudio's entries, and ``run`` with the rest of the run's state."""
        completed = self.training_state == "completed"
        run: Dict[str, Any] = {"first": self.first_step, "end": self.end_step, "completed": completed}
        pipeline: Any = self.pipeline
        if hasattr(pipeline, "run_state"):  # a student's
            run["pipeline"] = pipeline.run_state()
        if self.world_size == 1:  # each process has its own random numbers, and one alone saves
            run["random"] = random_state(self.device)
        return {
            "step": step,
            "pipeline": self.pipeline.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.optimizers.items()},
            "schedulers": {name: schedule.state_dict() for name, schedule in self.optimizers.schedulers.items()},
            "scalers": self.grad_scaler.state_dict(),
            "run": run,
        }

    def _ask_to_end(self) -> None:
        """Answers SIGTERM: between two steps there is nothing to wait for, within one its checkpoint."""
        is_stepping = self.training_state == "training" and self.step > self._start_step
        if not is_stepping:
            raise SystemExit(EXIT_CODE)
        self._is_asked_to_end = True

    def _end_if_asked(self, step: int) -> None:
        if self._is_asked_to_end:
            self.save_checkpoint(step)
            log_line(f"Ended by SIGTERM after step {step}. To go on, add --load-dir {self.checkpoint_dir}")
            raise SystemExit(EXIT_CODE)


def checkpoint_to_resume(config: TrainerConfig) -> Optional[Path]:
    """The checkpoint file that a command names, or None.

    Raises:
        UserError: The file or the folder does not exist, or has no checkpoint.
    """
    if config.load_dir is None:
        path = config.load_checkpoint
        if path is not None and not path.is_file():
            raise UserError(f"there is no {path}: pass a step-*.ckpt file with --load-checkpoint.")
        return path
    pattern = "step-*.ckpt" if config.load_step is None else f"step-{config.load_step:09d}.ckpt"
    found = sorted(config.load_dir.glob(pattern))
    if not found:
        raise UserError(f"{config.load_dir} has no {pattern}: pass a run's nerfstudio_models folder with --load-dir.")
    return found[-1]


def go_on(config: TrainerConfig, checkpoint: Path) -> None:
    """Changes the config of an interrupted run so that its trainer goes on; a run that is done takes one step more."""
    config.load_dir = checkpoint.parent
    if read_checkpoint(checkpoint).get("run", {}).get("completed", False):
        config.max_num_iterations = 1
