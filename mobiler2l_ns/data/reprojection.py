"""Reprojected views: photos moved to new poses by the teacher's depth.

A teacher view costs a second of a CPU and has the teacher's errors. The pixels of three photos, drawn where the
teacher's depth says that they lie, give a view of a new pose in a thirtieth of that, with a photo's colours. Pixels
that no photo shows are unknown and are left out of the loss.

N: photos; n: those that are drawn; H, W: pixels of the student's view; P: pixels of a photo, DENSITY times as many
along each axis.
"""

from typing import Callable, Tuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import track
from torch import Tensor

from mobiler2l_ns.data.lenses import Lenses
from mobiler2l_ns.data.patches import Patches
from mobiler2l_ns.data.photos import PhotoSet
from mobiler2l_ns.data.pool import ViewPool
from mobiler2l_ns.data.poses import PoseSampler
from mobiler2l_ns.data.saved_views import SavedViews

DENSITY = 2  # along each axis; a pixel of a view that is as far from the surface as the photo gets four points
NUM_SOURCES = 3
MIN_POINTS = 2  # a pixel with fewer points is unknown
MAX_DEPTH_RATIO = 1.05  # between neighbouring pixels; a larger one is the edge of something, where depth is a mixture
SAME_SURFACE = 1.03  # points at most this much farther than the nearest one of a pixel count for it
SPARE_PIXELS = 1024  # for the points that fall on no pixel
INITIAL_VIEWS = 30  # before the first step
REFRESH_EVERY = 4  # steps between two new views once the pool is full


class Reprojector:
    """Draws views of new poses from photos with depth.

    Args:
        photos: Photos with DENSITY times the student's resolution.
        depths: The teacher's z at the photos' cameras at the student's resolution; 0 where it is not known.
        focal: Focal length of the new views in pixels.
    """

    def __init__(self, photos: PhotoSet, depths: Float[Tensor, "N H W"], focal: float):
        self.images, self.cameras, self.focal = photos.images, photos.cameras, focal
        self.depths, self.size = depths, (depths.shape[1], depths.shape[2])
        # One at a time: on a GPU the pooling makes indices of eight bytes a pixel.
        self.known = torch.cat([is_smooth(depth) for depth in depths.split(1)])
        self.poses = photos.cameras.camera_to_worlds
        self.position, self.axis = self.poses[:, :, 3], -self.poses[:, :, 2]
        self.scale = torch.cdist(self.position, self.position).median().clamp_min(1e-6)
        self.lenses = Lenses(photos.cameras)

    @property
    def nbytes(self) -> int:
        """Bytes of photos and depths, and of the directions of their rays."""
        kept = self.images, self.depths, self.known
        return sum(tensor.numel() * tensor.element_size() for tensor in kept) + self.lenses.nbytes

    def nearest(self, c2w: Float[Tensor, "3 4"]) -> Int[Tensor, "n"]:
        """Indices of the photos whose cameras are nearest to a pose, in place and direction."""
        distance = (self.position - c2w[:, 3]).norm(dim=-1) / self.scale + 1 + self.axis @ c2w[:, 2]
        return distance.topk(min(NUM_SOURCES, len(distance)), largest=False).indices

    def render(self, c2w: Float[Tensor, "3 4"]) -> Float[Tensor, "H W 6"]:
        """A view: colours, alpha, z, and 1 where these are known."""
        return splat(*self._points(self.nearest(c2w), c2w), self.focal, self.size)

    def _points(
        self, indices: Int[Tensor, "n"], c2w: Float[Tensor, "3 4"]
    ) -> Tuple[Float[Tensor, "3 nP"], Float[Tensor, "3 nP"]]:
        """The surface points of n photos in the axes of another camera, NaN where not known, and their colours."""
        images = self.images[indices]
        z = F.interpolate(self.depths[indices][:, None], scale_factor=DENSITY, mode="bilinear")[:, 0]
        known = self.known[indices].repeat_interleave(DENSITY, 1).repeat_interleave(DENSITY, 2)
        if images.shape[-1] == 4:
            known &= images[..., 3] > 250
        # Picking the known points would take most of the time.
        z = torch.where(known, z, torch.nan).flatten(1)
        poses, rotation = self.poses[indices], c2w[:, :3].T
        shift = (poses[:, :, 3] - c2w[:, 3]) @ c2w[:, :3]
        points = (rotation @ poses[:, :, :3]) @ self.lenses.directions(indices).flatten(2) * z[:, None]
        points += shift[:, :, None]
        return points.transpose(0, 1).flatten(1), images[..., :3].reshape(-1, 3).T / 255


def is_smooth(depths: Float[Tensor, "N H W"]) -> Bool[Tensor, "N H W"]:
    """Whether the depths of a pixel and of all its neighbours are known and nearly equal."""
    farthest = F.max_pool2d(depths[:, None], 3, stride=1, padding=1)[:, 0]
    nearest = -F.max_pool2d(-depths[:, None], 3, stride=1, padding=1)[:, 0]
    return (nearest > 0) & (farthest < MAX_DEPTH_RATIO * nearest)


def splat(
    points: Float[Tensor, "3 M"], colours: Float[Tensor, "3 M"], focal: float, size: Tuple[int, int]
) -> Float[Tensor, "H W 6"]:
    """Draws points as pixels, see ``Reprojector.render``: the mean of a pixel's points on the nearest surface.

    Args:
        points: In the camera's axes, OpenGL convention; a point of NaN is left out.
        colours: Their colours.
        focal: Focal length in pixels.
        size: H and W.
    """
    height, width = size
    z = -points[2]
    scale = focal / z
    x, y = (points[0] * scale + width / 2).floor(), (height / 2 - points[1] * scale).floor()
    inside = (z > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    # All other points share some more pixels: on a GPU, points of one pixel wait for each other.
    outside = height * width + torch.arange(len(z), device=z.device) % SPARE_PIXELS
    pixel = torch.where(inside, y * width + x, outside).long()
    shape = height * width + SPARE_PIXELS
    nearest = torch.full((shape,), torch.inf, device=z.device).scatter_reduce_(0, pixel, z, "amin")
    front = (z <= SAME_SURFACE * nearest[pixel]).float()
    values = torch.stack([*(colours * front), front, z * front])
    total = torch.zeros(5, shape, device=z.device).index_add_(1, pixel, values)[:, : height * width]
    count = total[3]
    known = (count >= MIN_POINTS).float()
    mean = total / count.clamp_min(1) * known
    return torch.cat([mean, known[None]]).T.reshape(height, width, 6)


def render_depths(
    render: Callable[[Cameras], Float[Tensor, "H W 5"]], cameras: Cameras
) -> Tuple[Float[Tensor, "N H W"], Float[Tensor, "N H W"]]:
    """The teacher's z and alpha at the photos' cameras."""
    shape = len(cameras), int(cameras.height[0]), int(cameras.width[0])
    z, alpha = torch.empty(shape, device=cameras.device), torch.empty(shape, device=cameras.device)
    for i in track(range(len(cameras)), "Teacher renders the photos' depth", console=CONSOLE, transient=True):
        view = render(cameras[i : i + 1])
        alpha[i], z[i] = view[..., 3], view[..., 4]
        del view  # before the next one is rendered
    return z, alpha


class ReprojectedViews:
    """A pool of reprojected views at new poses; one view a step is added until it is full, then fewer.

    Args:
        pool: With six channels.
        poses: Where the views are drawn from.
        reprojector: Draws them.
    """

    def __init__(self, pool: ViewPool, poses: PoseSampler, reprojector: Reprojector):
        self.pool, self.poses, self.reprojector = pool, poses, reprojector

    def advance(self, step: int) -> None:
        """Adds the views that are due.

        Args:
            step: The present step.
        """
        is_full = len(self.pool) == self.pool.capacity
        due = int(step % REFRESH_EVERY == 0) if is_full else max(1, INITIAL_VIEWS - len(self.pool))
        for _ in range(min(due, self.pool.capacity)):
            self._add_view(self.poses.sample(1)[0], step)

    def resume(self, saved: SavedViews) -> None:
        """Draws the views of an interrupted run again."""
        for c2w, _, step in saved.newest_for(self.pool, self.pool.capacity, "Views are reprojected again"):
            self._add_view(c2w, step)

    def _add_view(self, c2w: Float[Tensor, "3 4"], step: int) -> None:
        with torch.autocast(device_type=c2w.device.type, enabled=False):
            view = self.reprojector.render(c2w)
        self.pool.add(view, c2w, step=step)

    def sample(self, count: int, hc: int, wc: int, even_borders: bool = False) -> Patches:
        """Patches of hc x wc cells from stored views drawn at random, see ``random_starts``."""
        return self.pool.sample(count, hc, wc, even_borders)

    @property
    def nbytes(self) -> int:
        """Bytes of the full pool, and of what the views are drawn from."""
        return self.pool.nbytes + self.reprojector.nbytes


def reprojection_bytes(capacity: int, num_photos: int, size: Tuple[int, int], channels: int) -> int:
    """Bytes that reprojected views, photos, depths and the directions of one lens take.

    Args:
        capacity: Stored views.
        num_photos: N.
        size: H and W.
        channels: Channels of a photo.
    """
    pixels = size[0] * size[1]
    return pixels * (6 * capacity + num_photos * (channels * DENSITY**2 + 5) + 12 * DENSITY**2)
