"""The stream of new teacher views into the pool, within the teacher's time budget."""

from typing import Callable, Dict

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import track
from torch import Tensor

from mobiler2l_ns.cameras import crop_camera, pinhole_cameras
from mobiler2l_ns.data.pool import ViewPool
from mobiler2l_ns.data.poses import PoseSampler
from mobiler2l_ns.data.time_budget import TimeBudget
from mobiler2l_ns.training.distributed import broadcast_from_main, local_share


class ViewStream:
    """Renders teacher views from new poses into the pool.

    Args:
        pool: Where the views go.
        poses: Where they are rendered from.
        budget: How much time the teacher may take.
        render: Renders a camera (1,): the view with the pool's channels.
        initial_views: Views rendered before the first step, over all processes.
    """

    def __init__(
        self, pool: ViewPool, poses: PoseSampler, budget: TimeBudget,
        render: Callable[[Cameras], Float[Tensor, "H W C"]], initial_views: int,
    ):  # fmt: skip
        self.pool, self.poses, self.budget, self.render = pool, poses, budget, render
        self.initial_views = initial_views

    def advance(self, step: int) -> None:
        """Renders the initial views before the first step; later, as many views as the budget allows.

        Args:
            step: The present step, from which a view's age is counted.
        """
        pool, budget = self.pool, self.budget
        if not budget.has_started:
            missing = min(local_share(self.initial_views), pool.capacity) - len(pool)
            for _ in track(range(max(1, missing)), "Teacher renders the first views", console=CONSOLE, transient=True):
                self.render_view(step)
            budget.start()
        if budget.teacher_share > 0 or budget.filling_share > 0:
            # Processes wait for each other in every step, so all render in the same ones, by the main one's clock.
            for _ in range(broadcast_from_main(lambda: budget.views_due(pool.capacity - len(pool), pool.capacity))):
                self.render_view(step)

    def render_view(self, step: int) -> None:
        """Renders one view, or a random tile of it, from a new pose."""
        with self.budget.rendering():
            (height, width), (tile_h, tile_w) = self.pool.size, self.pool.tile
            c2w = self.poses.sample(1)
            top, left = int(torch.randint(height - tile_h + 1, ())), int(torch.randint(width - tile_w + 1, ()))
            camera = crop_camera(pinhole_cameras(c2w, self.pool.focal, height, width), top, left, tile_h, tile_w)
            with torch.autocast(device_type=c2w.device.type, enabled=False):
                view = self.render(camera)
            self.pool.add(view.to(self.pool.images.device), c2w[0], (top, left), step)

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
