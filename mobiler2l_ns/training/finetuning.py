"""The last part of a run: the student learns from the real photos, beyond what its teacher knows.

A teacher's errors are a limit for whatever is distilled from it. R2L gained 1.4 dB by going on with the photos alone
(Wang et al., ECCV 2022, Table 2). Here the photos take over most of each batch while the learning rates go on falling
as they did. Few photos are soon learned by heart, so some of them are held out, the student is scored on those, and
its best weights are kept: those from before fine-tuning if nothing was better.
"""

import copy
import time
from dataclasses import dataclass
from typing import Callable, Dict, List, Optional

import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.engine.trainer import Trainer
from nerfstudio.utils import writer

from mobiler2l_ns.training.progress import duration, log_line


@dataclass
class FineTuningConfig:
    """Fine-tuning on the photos after distillation."""

    steps: int = 0
    """How many of the run's last steps are for fine-tuning, at most a quarter of the run. 0: none."""
    photo_share: float = 0.8
    """Share of each batch that comes from the real photos meanwhile."""
    validation_photos: int = 8
    """Training photos that are held out of the whole run to score the student on."""
    validate_every: int = 50
    """Steps between two scores."""
    patience: int = 6
    """Scores in a row without a better one after which it stops."""

    def steps_of(self, total: int) -> int:
        """Steps of fine-tuning in a run of ``total`` steps."""
        return min(self.steps, total // 4)


class FineTuning:
    """Switches the run over to the photos, keeps the best weights, and ends the run when they stop improving.

    Args:
        config: Its options.
        trainer: Whose last steps are used.
        score: PSNR on the held-out photos, in dB.
        use_photos: Tells the datamanager the new share of photos.

    Attributes:
        first: Step at which it starts.
        scores: PSNR on the held-out photos by the number of fine-tuning steps.
    """

    def __init__(
        self,
        config: FineTuningConfig,
        trainer: Trainer,
        score: Callable[[], float],
        use_photos: Callable[[float], None],
    ):
        self.config, self.trainer, self.score, self.use_photos = config, trainer, score, use_photos
        self.last = trainer._start_step + trainer.config.max_num_iterations - 1
        self.first = self.last + 1 - config.steps_of(trainer.config.max_num_iterations)
        self.scores: Dict[int, float] = {}
        self.started = 0.0
        self.best: Optional[dict] = None

    def callbacks(self) -> List[TrainingCallback]:
        """What nerfstudio's trainer calls around each step."""
        return [
            TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], self.before_step),
            TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], self.after_step),
        ]

    def before_step(self, step: int) -> None:
        """Starts when its time has come."""
        if step >= self.first and not self.scores:
            self.use_photos(self.config.photo_share)
            self._take_score(0)
            log_line(
                f"The last {self.steps} steps fine-tune on the photos; held-out photos before: {self.scores[0]:.2f} dB"
            )
            self.started = time.perf_counter()

    def after_step(self, step: int) -> None:
        """Scores from time to time; in the end the best weights are put back."""
        if not self.scores:
            return
        done, is_last = step + 1 - self.first, step == self.last
        if done % self.config.validate_every and not is_last:
            return
        self._take_score(done)
        if is_last or done - self.best_step >= self.config.patience * self.config.validate_every:
            self.trainer.pipeline.model.load_state_dict(self.best)
            self.trainer.stop_training = True
            log_line(
                f"Fine-tuning ended after {done} steps; held-out photos: {self.scores[0]:.2f} -> "
                f"{self.scores[self.best_step]:.2f} dB, with the weights after {self.best_step} steps"
            )
            return
        left = (time.perf_counter() - self.started) / done * (self.steps - done)
        log_line(
            f"Fine-tuning, step {done} of {self.steps}: held-out photos {self.scores[done]:.2f} dB, best "
            f"{self.scores[self.best_step]:.2f} dB after {self.best_step} steps, {duration(left)} left"
        )

    @property
    def steps(self) -> int:
        """How many steps it takes unless it stops early."""
        return self.last + 1 - self.first

    @property
    def best_step(self) -> int:
        """Number of fine-tuning steps with the highest score."""
        return max(self.scores, key=self.scores.__getitem__)

    def _take_score(self, done: int) -> None:
        model = self.trainer.pipeline.model
        model.eval()
        with torch.no_grad():
            self.scores[done] = self.score()
        model.train()
        writer.put_scalar("Fine-Tuning/psnr", self.scores[done], self.first + max(done - 1, 0))
        if self.best_step == done:
            self.best = copy.deepcopy(model.state_dict())

    def statistics(self) -> Dict:
        """What was gained, for the run's record."""
        if not self.scores:
            return {}
        return {
            "steps": max(self.scores),
            "best_step": self.best_step,
            "psnr_before": round(self.scores[0], 3),
            "psnr_after": round(self.scores[self.best_step], 3),
        }
