"""The time that the teacher may take: a fraction of the training time.

A phase begins when training starts, when the pool is full, and when a fraction is changed. Each phase has its own
account: what the teacher took before it neither adds to its time nor reduces it.
"""

import math
import time
from contextlib import contextmanager
from typing import Callable, Iterator, Optional

import torch


def perf_counter() -> float:
    """Seconds of a clock that only moves forwards."""
    return time.perf_counter()


def synchronize(device) -> None:
    """Waits for the work in a GPU's queue; nothing to wait for on other devices."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


class TimeBudget:
    """Decides how many views the teacher may render now.

    Args:
        filling_share: The teacher's fraction of the training time while the pool fills.
        teacher_share: The same once the pool is full.
        clock: Returns seconds; left out: time.perf_counter.
        synchronize: Waits for the device. Without it the work in a GPU's queue is charged to whoever waits next.

    Attributes:
        teacher_seconds: What the teacher has taken so far.
        views_rendered: How many views it rendered in that time.
    """

    def __init__(
        self,
        filling_share: float,
        teacher_share: float,
        clock: Optional[Callable[[], float]] = None,
        synchronize: Callable[[], None] = lambda: None,
    ):
        self.filling_share, self.teacher_share = filling_share, teacher_share
        self.clock, self.synchronize = clock or perf_counter, synchronize
        self.teacher_seconds, self.views_rendered = 0.0, 0
        self._training_start: Optional[float] = None
        self._phase_start, self._phase_teacher_seconds, self._pool_is_full = 0.0, 0.0, False

    @property
    def has_started(self) -> bool:
        """Whether training has started."""
        return self._training_start is not None

    def start(self) -> None:
        """Training starts. The views rendered before count as the teacher's part of it."""
        self._training_start = self._phase_start = self.clock() - self.teacher_seconds

    def set_share(self, name: str, share: float) -> None:
        """Changes ``filling_share`` or ``teacher_share`` and begins a new phase."""
        setattr(self, name, share)
        self.begin_phase()

    def begin_phase(self) -> None:
        """Starts a new account for the teacher."""
        self._phase_start, self._phase_teacher_seconds = self.clock(), self.teacher_seconds

    def views_due(self, missing: int, capacity: int) -> int:
        """How many views the teacher may render now.

        Args:
            missing: How many views the pool lacks until it is full.
            capacity: How many views the full pool holds.
        """
        if missing == 0 and not self._pool_is_full:
            self._pool_is_full = True
            self.begin_phase()
        share = self.teacher_share if self._pool_is_full else self.filling_share
        used = self.teacher_seconds - self._phase_teacher_seconds
        left = share * (self.clock() - self._phase_start) - used
        if left <= 0:
            return 0
        if self.views_rendered == 0:
            return 1  # the pool came from a cache, and how long a view takes is not known yet
        mean_seconds = self.teacher_seconds / self.views_rendered
        return min(math.ceil(left / mean_seconds), missing or capacity)

    @contextmanager
    def rendering(self) -> Iterator[None]:
        """Around the rendering of one view: its seconds are the teacher's."""
        start = self._synchronized_clock()
        yield
        self.teacher_seconds += self._synchronized_clock() - start
        self.views_rendered += 1

    @contextmanager
    def exclude(self) -> Iterator[None]:
        """Around whatever is not training, such as an evaluation or a pause: its seconds do not count."""
        start = self._synchronized_clock()
        yield
        seconds = self._synchronized_clock() - start
        if self._training_start is not None:
            self._training_start += seconds
            self._phase_start += seconds

    @property
    def share_so_far(self) -> float:
        """The teacher's fraction of the training time until now; 0 before training."""
        elapsed = self.clock() - self._training_start if self._training_start is not None else 0.0
        return self.teacher_seconds / elapsed if elapsed else 0.0

    def _synchronized_clock(self) -> float:
        self.synchronize()
        return self.clock()
