"""A learning-rate schedule that follows the run's length and batches, and whose state contains Python floats only.

nerfstudio's decay schedulers put numpy scalars into checkpoints, which torch >= 2.6 refuses to load, and their
``max_steps`` must be changed by hand together with ``--max-num-iterations``.
"""

import math
from dataclasses import dataclass, field
from typing import List, Optional, Type

from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

MAX_PEAK = 2.5


@dataclass
class CosineSchedulerConfig(SchedulerConfig):
    """Linear warm-up, then half a cosine down to ``final_ratio`` of the rate."""

    _target: Type = field(default_factory=lambda: CosineScheduler)
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from zero."""
    final_ratio: float = 0.02
    """Learning rate at the last step, as a fraction of the highest."""
    reference_steps: Optional[int] = None
    """Number of steps for which the optimizer's lr was tuned. A run N times as long uses lr / N**length_exponent, but
    at most 2.5 lr. None: every run uses lr."""
    length_exponent: float = 0.5
    """How fast the rate falls with the length of a run."""
    reference_pixels: Optional[int] = None
    """Pixels of a batch for which the optimizer's lr was tuned. Batches 1/N as large lower the rate by the fourth root
    of N, larger ones do not change it. None: the rate does not depend on the batch."""
    max_steps: Optional[int] = None
    """Step at which the decay ends. None: --max-num-iterations."""


class CosineScheduler(Scheduler):
    """Builds a CosineLR from its config."""

    config: CosineSchedulerConfig

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LRScheduler:
        """The schedule of an optimizer, whose lr it takes."""
        config = self.config
        return CosineLR(
            optimizer, config.warmup_steps, config.final_ratio, config.max_steps, config.reference_steps,
            config.reference_pixels, config.length_exponent,
        )  # fmt: skip


class CosineLR(LRScheduler):
    """Warm-up and cosine decay in closed form.

    Args:
        optimizer: The optimizer.
        warmup_steps: See ``CosineSchedulerConfig``, as for the others.
        final_ratio: Learning rate at the last step, as a fraction of the highest.
        max_steps: Last step of the decay; None until ``fit_run`` is called, and no decay until then.
        reference_steps: Number of steps for which the optimizer's lr was tuned.
        reference_pixels: Pixels of a batch for which it was tuned.
        length_exponent: The rate is that of ``reference_steps``, divided by the ratio of the lengths to this power.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int,
        final_ratio: float,
        max_steps: Optional[int],
        reference_steps: Optional[int] = None,
        reference_pixels: Optional[int] = None,
        length_exponent: float = 0.5,
    ):
        self.warmup_steps, self.final_ratio, self.max_steps = warmup_steps, final_ratio, max_steps
        self.reference_steps, self.reference_pixels = reference_steps, reference_pixels
        self.pixels, self.length_exponent = reference_pixels, length_exponent
        super().__init__(optimizer)

    def fit_run(self, end: int, pixels: int) -> None:
        """Sets the step at which the decay ends, unless the config sets it, and the pixels of a batch."""
        if self.max_steps is None:
            self.max_steps = end
        self.pixels = pixels

    def factor(self, step: int) -> float:
        """The learning rate at ``step`` as a fraction of the optimizer's lr."""
        return self.peak * self._shape(step)

    @property
    def peak(self) -> float:
        """The highest learning rate as a fraction of the optimizer's lr; lower for longer runs and smaller batches."""
        factor = 1.0
        if self.reference_steps is not None and self.max_steps is not None:
            factor = min(MAX_PEAK, (self.reference_steps / self.max_steps) ** self.length_exponent)
        if self.reference_pixels is not None and self.pixels is not None:
            factor *= min(1.0, (self.pixels / self.reference_pixels) ** 0.25)
        return factor

    def _shape(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.max_steps is None:
            return 1.0
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.max_steps - self.warmup_steps))
        return self.final_ratio + (1 - self.final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))

    def get_lr(self) -> List[float]:
        """The learning rates of all parameter groups at the current step."""
        return [float(base) * self.factor(self.last_epoch) for base in self.base_lrs]
