"""The photos that a student is trained on, with the teacher's depth, and reprojected views of them.

N: photos; H, W: pixels of the student's view; s: upscale factor; C: channels of a photo.
"""

from typing import Callable, Optional, Tuple

from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.utils import comms
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from mobiler2l_ns.data.photos import PhotoSet, load_photos
from mobiler2l_ns.data.pool import ViewPool
from mobiler2l_ns.data.poses import PoseSampler
from mobiler2l_ns.data.reprojection import DENSITY, ReprojectedViews, Reprojector, render_depths, reprojection_bytes
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.training.distributed import local_share


class PhotoSource:
    """Loads the training photos of a capture.

    Args:
        dataset: The training split.
        size: H and W.
        upscale: s.
        channels: What the student learns: 3 colours, 4: and alpha, 5: and depth.
        photo_share: The photos' fraction of a batch.
        num_held_out: Photos that are held out of the training.
        photo_depth: Whether the photos teach the teacher's depth; with reprojected views they always do.
        num_reprojected: Reprojected views that this process keeps; 0: none.
        device: Where the photos go.
    """

    def __init__(
        self, dataset: InputDataset, size: Tuple[int, int], upscale: int, channels: int, photo_share: float,
        num_held_out: int, photo_depth: bool, num_reprojected: int, device,
    ):  # fmt: skip
        self.dataset, self.size, self.upscale, self.device = dataset, size, upscale, device
        self.with_alpha = channels > 3 and dataset.metadata["transparent_background"]
        # Reprojected views need the depth anyway.
        self.photo_depth = (photo_depth or num_reprojected > 0) and channels == 5
        self.num_held_out, self.num_reprojected = num_held_out, num_reprojected
        self.is_used = photo_share > 0 or num_held_out > 0 or num_reprojected > 0

    @property
    def shape(self) -> Tuple[int, int, int, int]:
        """N, H, W and C of the photos, those that are held out included."""
        channels = 5 if self.photo_depth else 4 if self.with_alpha else 3
        return len(self.dataset) if self.is_used else 0, *self.size, channels

    @property
    def reprojection_bytes(self) -> int:
        """Bytes that the reprojected views and their photos and depths take."""
        if self.num_reprojected == 0:
            return 0
        return reprojection_bytes(self.num_reprojected, len(self.dataset), self.size, 4 if self.with_alpha else 3)

    def load_few(self) -> PhotoSet:
        """Four small photos, which show what the scene is."""
        height, width = (max(8, round(48 * side / max(self.size))) for side in self.size)
        return load_photos(self.dataset, height, width, 1, self.device, limit=4)

    def load(self, density: int = 1) -> Tuple[Optional[PhotoSet], Optional[PhotoSet]]:
        """The training photos, and the held-out photos. Each is None if there are none or if nothing uses them.

        Args:
            density: Pixels of a photo for each of the student's view, along each axis.
        """
        if not self.is_used:
            return None, None
        # Divided on the CPU, so that the device never holds the photos twice.
        photos = load_photos(self.dataset, *self.size, self.upscale, "cpu", with_alpha=self.with_alpha, density=density)
        total, photos = len(photos), photos.of_one_scale()
        if len(photos) < total and density == 1 and comms.is_main_process():
            CONSOLE.print(f"{total - len(photos)} of {total} photos have another shape or lens than most: the student "
                          "learns nothing from them.")  # fmt: skip
        rest, held_out = photos.hold_out(self.num_held_out)
        return rest.to(self.device), None if held_out is None else held_out.to(self.device)

    def add_depth(
        self, photos: Optional[PhotoSet], render: Callable[[Cameras], Float[Tensor, "H W 5"]], pool: ViewPool,
        poses: PoseSampler,
    ) -> Tuple[Optional[PhotoSet], Optional[ReprojectedViews]]:  # fmt: skip
        """The photos with the teacher's depth, and reprojected views of them, where these are wanted.

        A teacher that renders no depth changes nothing.

        Args:
            photos: The photos that are not held out; None if none are used.
            render: Renders the teacher's colours, alpha and z.
            pool: The teacher's views.
            poses: Where reprojected views are drawn from.
        """
        if photos is None or not self.photo_depth:
            return photos, None
        z, alpha = render_depths(render, photos.cameras)
        if not bool((z > 0).any()):
            if comms.is_main_process():
                CONSOLE.print("The teacher renders no depth: photos teach none, and no view is reprojected.")
            return photos, None
        reprojected = None
        large, _ = self.load(DENSITY) if self.num_reprojected > 0 else (None, None)
        if large is not None:
            views = ViewPool(
                self.num_reprojected, pool.size, pool.size, pool.focal, pool.upscale, self.device, channels=6,
                depths=pool.depths,
            )  # fmt: skip
            reprojected = ReprojectedViews(views, poses, Reprojector(large, z, pool.focal))
        return photos.with_geometry(alpha, z, pool.depths), reprojected


def num_reprojected_views(share: float, total: int, channels: int) -> int:
    """How many reprojected views this process keeps; 0 and a printed line for a student that learns no depth.

    Args:
        share: Their share of the patches that do not come from the photos; 0: none are kept.
        total: The number over all processes.
        channels: What the student learns, see ``PhotoSource``.

    Raises:
        UserError: There is a share, but no view; or nothing else would be learned.
    """
    if share == 0:
        return 0
    if share == 1:
        raise UserError(
            "--pipeline.datamanager.reprojected-share needs a number below 1, as reprojected views show only what the "
            "photos show: pass 0.9 at most."
        )
    if total < 1:
        raise UserError(
            f"--pipeline.datamanager.reprojected-views needs at least 1, not {total}: for none pass "
            "--pipeline.datamanager.reprojected-share 0."
        )
    if channels < 5:
        if comms.is_main_process():
            CONSOLE.print("No view is reprojected, because the student learns no depth and has no surface code.")
        return 0
    return max(1, local_share(total))
