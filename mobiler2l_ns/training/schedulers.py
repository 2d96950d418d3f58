"""A learning-rate schedule whose length follows the run and whose state is plain Python floats.

nerfstudio's own decay schedulers put numpy scalars into checkpoints, which torch >= 2.6 refuses to load, and need
``max_steps`` repeated by hand whenever ``--max-num-iterations`` changes.
"""

import math
from dataclasses import dataclass, field
from typing import Optional, Type

from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

MAX_PEAK = 2.5


@dataclass
class CosineSchedulerConfig(SchedulerConfig):
    """Linear warm-up, then half a cosine down to ``final_ratio`` of the rate."""

    _target: Type = field(default_factory=lambda: CosineScheduler)
    warmup_steps: int = 0
    """Steps over which the rate rises linearly from zero."""
    final_ratio: float = 0.02
    """Rate at the last step, as a fraction of the optimizer's lr."""
    reference_steps: Optional[int] = None
    """Length of run for which the optimizer's lr holds: a run N times as long takes 1/sqrt(N) of it, short ones at most
    2.5 times as much. Left out: lr holds for every length."""
    max_steps: Optional[int] = None
    """Step at which the cosine ends; left out: the run's --max-num-iterations."""


class CosineScheduler(Scheduler):
    """Builds a CosineLR from its config."""

    config: CosineSchedulerConfig

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LRScheduler:
        config = self.config
        return CosineLR(optimizer, config.warmup_steps, config.final_ratio, config.max_steps, config.reference_steps)


class CosineLR(LRScheduler):
    """Warm-up and cosine decay in closed form.

    Attributes:
        max_steps: Last step of the decay; None until ``end_at`` says how long the run is (until then no decay).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int,
        final_ratio: float,
        max_steps: Optional[int],
        reference_steps: Optional[int] = None,
    ):
        self.warmup_steps, self.final_ratio, self.max_steps = warmup_steps, final_ratio, max_steps
        self.reference_steps = reference_steps
        super().__init__(optimizer)

    def end_at(self, step: int) -> None:
        """Sets the decay's end where the config left it open."""
        if self.max_steps is None:
            self.max_steps = step

    def factor(self, step: int) -> float:
        """The rate at ``step`` as a fraction of the optimizer's lr."""
        return self.peak * self._shape(step)

    @property
    def peak(self) -> float:
        """The highest rate as a fraction of the optimizer's lr: the longer the run, the lower."""
        if self.reference_steps is None or self.max_steps is None:
            return 1.0
        return min(MAX_PEAK, math.sqrt(self.reference_steps / self.max_steps))

    def _shape(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.max_steps is None:
            return 1.0
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.max_steps - self.warmup_steps))
        return self.final_ratio + (1 - self.final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))

    def get_lr(self) -> list[float]:
        return [base * self.factor(self.last_epoch) for base in self.base_lrs]
