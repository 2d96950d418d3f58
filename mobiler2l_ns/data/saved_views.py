"""A pool's views in a checkpoint: their poses alone, from which a run that goes on renders them again."""

from typing import Iterator, NamedTuple, Tuple

import torch
from jaxtyping import Float, Int
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import track
from torch import Tensor

from mobiler2l_ns.data.pool import ViewPool


class SavedViews(NamedTuple):
    """What a checkpoint keeps of a pool with N views, in the order of their slots."""

    c2w: Float[Tensor, "N 3 4"]
    corner: Int[Tensor, "N 2"]
    added_at: Float[Tensor, "N"]
    """Steps."""
    num_added: int
    """How many views were ever added, those that were replaced included."""

    @classmethod
    def of(cls, pool: ViewPool) -> "SavedViews":
        """The poses of a pool's views."""
        count = len(pool)
        added_at = torch.from_numpy(pool.added_at[:count].copy())
        return cls(pool.c2w[:count].cpu(), pool.corner[:count].cpu(), added_at, pool.num_added)

    def newest_for(
        self, pool: ViewPool, limit: int, title: str
    ) -> Iterator[Tuple[Float[Tensor, "3 4"], Tuple[int, int], int]]:
        """Pose, corner and step of the newest views, oldest first, for the caller to add to a pool.

        All views go into the slots that they had. A pool that has views, from a cache, gets none.

        Args:
            pool: The pool of the run that goes on.
            limit: The largest number of views.
            title: Of the progress bar.
        """
        total = len(self.c2w)
        count = min(total, limit, pool.capacity) if len(pool) == 0 else 0
        if count == total == pool.capacity:
            pool.num_added = self.num_added - count
        first = self.num_added - count
        slots = [(first + k) % total for k in range(count)] if total else []
        for slot in track(slots, title, console=CONSOLE, transient=True):
            top, left = self.corner[slot].tolist()
            yield self.c2w[slot].to(pool.c2w), (top, left), int(self.added_at[slot])
