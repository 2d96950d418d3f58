"""The stream of new teacher views into the pool, within the teacher's time budget."""

from typing import Callable, Dict, Tuple

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import track
from torch import Tensor

from mobiler2l_ns.cameras import crop_camera, pinhole_cameras
from mobiler2l_ns.data.patches import random_starts
from mobiler2l_ns.data.pool import ViewPool
from mobiler2l_ns.data.poses import PoseSampler
from mobiler2l_ns.data.saved_views import SavedViews
from mobiler2l_ns.data.time_budget import TimeBudget
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.training.distributed import broadcast_from_main, local_share

MOST_BROKEN = 10  # views that a teacher may fail to render in a run


class ViewStream:
    """Renders teacher views from new poses into the pool.

    Args:
        pool: Where the views go.
        poses: Where they are rendered from.
        budget: How much time the teacher may take.
        render: Renders a camera (1,): the view with the pool's channels.
        initial_views: Views rendered before the first step, over all processes.
        even_borders: Whether tiles show the border of views as often as the middle.

    Attributes:
        num_initial: How many of them this process renders.
        num_broken: How many views were left out, because they have a NaN or an infinite number.
    """

    def __init__(
        self, pool: ViewPool, poses: PoseSampler, budget: TimeBudget,
        render: Callable[[Cameras], Float[Tensor, "H W C"]], initial_views: int, even_borders: bool = False,
    ):  # fmt: skip
        self.pool, self.poses, self.budget, self.render = pool, poses, budget, render
        self.even_borders = even_borders
        self.num_initial, self.num_broken = min(max(1, local_share(initial_views)), pool.capacity), 0

    def advance(self, step: int) -> None:
        """Renders the initial views before the first step; later, as many views as the budget allows.

        Args:
            step: The present step, from which a view's age is counted.
        """
        pool, budget = self.pool, self.budget
        if not budget.has_started:
            missing = self.num_initial - len(pool)
            for _ in track(range(missing), "Teacher renders the first views", console=CONSOLE, transient=True):
                while not self.render_view(step):
                    pass
            budget.start()
        if budget.teacher_share > 0 or budget.filling_share > 0:
            # Processes wait for each other in every step, so all render in the same ones, by the main one's clock.
            for _ in range(broadcast_from_main(lambda: budget.views_due(pool.capacity - len(pool), pool.capacity))):
                self.render_view(step)

    def render_view(self, step: int) -> bool:
        """Renders one view, or a random tile of it, from a new pose.

        Returns:
            Whether it could be used: a view with a NaN or an infinite number is left out.

        Raises:
            UserError: Too many views could not be used.
        """
        with self.budget.rendering():
            (height, width), (tile_h, tile_w) = self.pool.size, self.pool.tile
            c2w = self.poses.sample(1)
            top = int(random_starts(1, height - tile_h, tile_h, self.even_borders))
            left = int(random_starts(1, width - tile_w, tile_w, self.even_borders))
            return self._add_view(c2w[0], (top, left), step)

    def resume(self, saved: SavedViews) -> None:
        """Renders the newest views of an interrupted run again, as many as a run renders before its first step."""
        for c2w, corner, step in saved.newest_for(self.pool, self.num_initial, "Teacher renders the views again"):
            with self.budget.rendering():
                self._add_view(c2w, corner, step)

    def _add_view(self, c2w: Float[Tensor, "3 4"], corner: Tuple[int, int], step: int) -> bool:
        (height, width), tile = self.pool.size, self.pool.tile
        camera = crop_camera(pinhole_cameras(c2w[None], self.pool.focal, height, width), *corner, *tile)
        with torch.autocast(device_type=c2w.device.type, enabled=False):
            view = self.render(camera)
        if not bool(view.isfinite().all()):
            self.num_broken += 1
            if self.num_broken == MOST_BROKEN:
                raise UserError(
                    f"{MOST_BROKEN} of {self.budget.views_rendered + 1} views of the teacher have NaN or infinite "
                    "numbers: train it again, or pass another one with --pipeline.datamanager.teacher.load-config."
                )
            return False
        self.pool.add(view.to(self.pool.images.device), c2w, corner, step)
        return True

    def progress(self, step: int) -> Dict[str, float]:
        """State of the pool.

        ``pool_fill``: from 0 to 1; ``pool_age``: how many steps ago the pool's views were rendered, on average;
        ``teacher_share``: the teacher's fraction of the training time until now.

        Args:
            step: The present step.
        """
        return {
            "pool_fill": len(self.pool) / self.pool.capacity,
            "pool_age": self.pool.mean_age(step),
            "teacher_share": self.budget.share_so_far,
        }

    def statistics(self) -> Dict[str, float]:
        """Size and cost of this process's pool so far."""
        return {
            "capacity": self.pool.capacity,
            "views": self.pool.num_added,
            "view_height": self.pool.tile[0],
            "view_width": self.pool.tile[1],
            "teacher_seconds": round(self.budget.teacher_seconds, 2),
            "share_of_training_time": round(self.budget.share_so_far, 4),
        }
