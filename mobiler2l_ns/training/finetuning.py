"""Fine-tuning: in the last part of a run the student is trained mostly on the real photos.

The teacher's errors limit a distilled student. R2L gained 1.4 dB by further training on the photos alone (Wang et al.,
ECCV 2022, Table 2). Here most of each batch comes from the photos, and the learning-rate schedule continues. A student
overfits few photos quickly. So some photos are held out, the student is scored on them, and the weights with the best
score are kept: the weights before fine-tuning if no later score was better.
"""

import copy
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional

import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.utils import writer

from mobiler2l_ns.training.progress import duration, log_line


@dataclass
class FineTuningConfig:
    """Fine-tuning on the photos after distillation."""

    steps: int = 0
    """Number of fine-tuning steps at the end of the run, at most a quarter of the run; 0: no fine-tuning."""
    photo_share: float = 0.8
    """Fraction of each batch that comes from the real photos during fine-tuning."""
    validation_photos: int = 8
    """Number of training photos that are held out of the whole run, for validation, at most a tenth of them."""
    validate_every: int = 50
    """Steps between two validations."""
    patience: int = 6
    """Fine-tuning stops after this number of validations in a row without a better score."""

    def steps_of(self, total: int) -> int:
        """Number of fine-tuning steps in a run of ``total`` steps."""
        return min(self.steps, total // 4)


class FineTuning:
    """Switches the run to the photos, keeps the best weights, and stops the run when the score no longer improves.

    Args:
        config: Options.
        trainer: The DistillationTrainer of the run.
        score: Returns the PSNR on the held-out photos, in dB.
        use_photos: Sets the fraction of each batch that comes from the photos.

    Attributes:
        first: First step of fine-tuning.
        last: Last step of the run.
        scores: PSNR on the held-out photos in dB, by number of fine-tuning steps.
    """

    def __init__(
        self,
        config: FineTuningConfig,
        trainer: Any,
        score: Callable[[], float],
        use_photos: Callable[[float], None],
    ):
        self.config, self.trainer, self.score, self.use_photos = config, trainer, score, use_photos
        self.last = trainer.end_step - 1
        self.first = trainer.end_step - config.steps_of(trainer.end_step - trainer.first_step)
        self.scores: Dict[int, float] = {}
        self.started, self.done_before = time.perf_counter(), 0
        self.best: Optional[dict] = None

    def callbacks(self) -> List[TrainingCallback]:
        """Callbacks for nerfstudio's trainer."""
        return [
            TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], self.before_step),
            TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], self.after_step),
        ]

    def before_step(self, step: int) -> None:
        """Starts fine-tuning at its first step."""
        if step >= self.first and not self.scores:
            self.use_photos(self.config.photo_share)
            self._take_score(0)
            log_line(
                f"The last {self.steps} steps fine-tune on the photos; held-out photos before: {self.scores[0]:.2f} dB"
            )
            self.started = time.perf_counter()

    def after_step(self, step: int) -> None:
        """Scores the student every ``validate_every`` steps, and restores the best weights at the end."""
        if not self.scores:
            return
        done, is_last = step + 1 - self.first, step == self.last
        if done % self.config.validate_every and not is_last:
            return
        self._take_score(done)
        if is_last or done - self.best_step >= self.config.patience * self.config.validate_every:
            assert self.best is not None
            self.trainer.pipeline.model.load_state_dict(self.best)
            self.trainer.stop_training = True
            log_line(
                f"Fine-tuning ended after {done} steps; held-out photos: {self.scores[0]:.2f} -> "
                f"{self.scores[self.best_step]:.2f} dB, with the weights after {self.best_step} steps"
            )
            return
        left = (time.perf_counter() - self.started) / (done - self.done_before) * (self.steps - done)
        log_line(
            f"Fine-tuning, step {done} of {self.steps}: held-out photos {self.scores[done]:.2f} dB, best "
            f"{self.scores[self.best_step]:.2f} dB after {self.best_step} steps, {duration(left)} left"
        )

    @property
    def steps(self) -> int:
        """Number of fine-tuning steps, unless it stops early."""
        return self.last + 1 - self.first

    @property
    def best_step(self) -> int:
        """Number of fine-tuning steps after which the score was highest."""
        return max(self.scores, key=lambda done: self.scores[done])

    def _take_score(self, done: int) -> None:
        model = self.trainer.pipeline.model
        model.eval()
        with torch.no_grad():
            self.scores[done] = self.score()
        model.train()
        writer.put_scalar("Fine-Tuning/psnr", self.scores[done], self.first + max(done - 1, 0))
        if self.best_step == done:
            self.best = copy.deepcopy(model.state_dict())

    def state(self) -> Dict[str, Any]:
        """What a checkpoint keeps; empty before fine-tuning."""
        return {"scores": dict(self.scores), "best": self.best} if self.scores else {}

    def resume(self, state: Dict[str, Any]) -> None:
        """Goes on from what a checkpoint has kept."""
        if state:
            self.scores, self.best = state["scores"], state["best"]
            self.done_before = max(self.scores)

    def statistics(self) -> Dict[str, float]:
        """Steps and scores, for the run's record; empty before fine-tuning."""
        if not self.scores:
            return {}
        return {
            "steps": max(self.scores),
            "best_step": self.best_step,
            "psnr_before": round(self.scores[0], 3),
            "psnr_after": round(self.scores[self.best_step], 3),
        }
