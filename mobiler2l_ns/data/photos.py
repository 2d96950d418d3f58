"""The photos of a capture at the student's resolution, and the rays of whole training views.

H, W: pixels of a photo; s: upscale factor; C: channels, 3 for colours, 4 with alpha, 5
with depth.
"""

import math
from typing import Iterator, List, Optional, Tuple

import torch
from jaxtyping import Float, Int, UInt8
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import track
from torch import Tensor

from mobiler2l_ns.cameras import cell_centres
from mobiler2l_ns.data.lenses import Lenses
from mobiler2l_ns.data.patches import Patches, cut_patches
from mobiler2l_ns.data.pool import known_depth
from mobiler2l_ns.fitting import fit_cameras, fit_image
from mobiler2l_ns.student.sampler import DepthRange

MAX_SCALE_DIFFERENCE = 0.05  # of a photo's focal length from the median; at 0.05 a cell of 8 pixels is wrong by 0.2


class PhotoSet:
    """The capture's photos at the student's resolution.

    Args:
        images: Colours on white; with the alpha that they had before; and with normalised depth, 0 where it is not
            known.
        cameras: Their cameras (N,), for H x W pixels.
        upscale: s.
    """

    def __init__(self, images: UInt8[Tensor, "N H W C"], cameras: Cameras, upscale: int):
        self.images, self.cameras, self.upscale = images, cameras, upscale
        self.lenses = Lenses(cameras, offset=upscale / 2 % 1)

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Tuple[Cameras, Float[Tensor, "H W 3"]]]:
        """Each photo's camera (1,) and its colours in 0..1."""
        for i in range(len(self)):
            yield self.cameras[i : i + 1], self.images[i, ..., :3].float() / 255

    @property
    def nbytes(self) -> int:
        """Bytes that the photos take."""
        return self.images.numel()

    def to(self, device) -> "PhotoSet":
        """The same photos on another device."""
        return PhotoSet(self.images.to(device), self.cameras.to(device), self.upscale)

    def hold_out(self, count: int) -> Tuple["PhotoSet", Optional["PhotoSet"]]:
        """Two sets: the photos without ``count`` evenly spaced ones, and those; None if there are none.

        Few photos are needed for the training: at most a tenth of them are held out, or one, and never the last.
        """
        count = min(count, max(1, len(self) // 10))
        if not 0 < count < len(self):
            return self, None
        held = torch.linspace(0, len(self) - 1, count + 2)[1:-1].round().long()
        kept = torch.ones(len(self), dtype=torch.bool)
        kept[held] = False
        return self.pick(kept.nonzero()[:, 0]), self.pick(held)

    def of_one_scale(self) -> "PhotoSet":
        """The photos without those of another scale: their cells show a larger or smaller angle than the student's.

        Such photos have another lens, or are across where the student's view is upright.
        """
        focal = self.cameras.fx[:, 0]
        kept = ((focal / focal.median() - 1).abs() < MAX_SCALE_DIFFERENCE).nonzero()[:, 0]
        return self if len(kept) == len(self) else self.pick(kept)

    def pick(self, indices: Int[Tensor, "n"]) -> "PhotoSet":
        """Some of the photos."""
        return PhotoSet(self.images[indices], self.cameras[indices], self.upscale)

    def with_geometry(self, alpha: Float[Tensor, "N H W"], z: Float[Tensor, "N H W"], depths: DepthRange) -> "PhotoSet":
        """The photos with the teacher's depth, and with its alpha where they have none of their own.

        Args:
            alpha: The teacher's accumulation.
            z: The teacher's z, 0 where it is not known.
            depths: The planes between which depth is stored.
        """
        added = (torch.stack([alpha, known_depth(z, depths)], dim=-1) * 255).round().to(torch.uint8)
        own = self.images.shape[-1]
        return PhotoSet(torch.cat([self.images, added[..., own - 3 :]], dim=-1), self.cameras, self.upscale)

    def sample(self, count: int, hc: int, wc: int, even_borders: bool = False) -> Patches:
        """Patches of hc x wc cells from photos drawn at random, see ``random_starts``."""
        indices = torch.randint(len(self.images), (count,), device=self.images.device)
        pixels, corner = cut_patches(self.images, indices, hc * self.upscale, wc * self.upscale, even_borders)
        cells = cell_centres(hc, wc, (self.upscale, self.upscale), self.images.device)
        return Patches(self.lenses.rays(indices, corner[:, None, None, :] + cells), pixels)


def load_photos(
    dataset: InputDataset, height: int, width: int, upscale: int, device, limit: Optional[int] = None,
    with_alpha: bool = False, density: int = 1,
) -> PhotoSet:  # fmt: skip
    """Photos of a split at the student's size, on white where they are transparent.

    Args:
        dataset: The split.
        height: H.
        width: W.
        upscale: s.
        device: Where the photos go.
        limit: At most so many photos, evenly spaced over the split; left out: all.
        with_alpha: Keep their alpha as a fourth channel.
        density: Pixels of a photo for each of H x W, along each axis.
    """
    count = min(limit or len(dataset), len(dataset))
    indices = [slot * len(dataset) // count for slot in range(count)]
    shape = len(indices), density * height, density * width, 4 if with_alpha else 3
    images = torch.empty(shape, dtype=torch.uint8)
    for slot, index in enumerate(track(indices, "Loading photos", console=CONSOLE, transient=True)):
        image = on_white(dataset.get_image_float32(index))
        if with_alpha:
            image = torch.cat([image, photo_alpha(dataset, index)], dim=-1)
        images[slot] = (fit_image(image, height, width, density) * 255).round().to(torch.uint8)
    cameras, _ = fit_cameras(dataset.cameras[torch.tensor(indices)], height, width, density)
    return PhotoSet(images.to(device), cameras.to(device), upscale)


def on_white(image: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch 3"]:
    """Straight-alpha colours (C = 4) on white; colours without alpha (C = 3) unchanged."""
    return image if image.shape[-1] == 3 else image[..., :3] * image[..., 3:] + 1 - image[..., 3:]


def photo_alpha(dataset: InputDataset, index: int) -> Float[Tensor, "H W 1"]:
    """Alpha of a photo, 1 where it has none. It is read from the file: most datasets blend it with a background."""
    image = torch.from_numpy(dataset.get_numpy_image(index))
    return image[..., 3:].float() / 255 if image.shape[-1] == 4 else torch.ones(*image.shape[:2], 1)


class TrainingViewRays:
    """Rays of whole training views, one camera after the other in random order, for nerfstudio's exporters.

    Args:
        cameras: The training cameras (N,).
    """

    def __init__(self, cameras: Cameras):
        self.cameras = cameras
        self._to_visit: List[int] = []

    def next(self, max_rays: int) -> RayBundle:
        """Rays (H, W) of the next view, without lens distortion.

        The view is moved by a fraction of a pixel, so that a camera's second turn brings new points.

        Args:
            max_rays: The largest number of rays; a larger view is scaled down.
        """
        if not self._to_visit:
            self._to_visit = torch.randperm(len(self.cameras)).tolist()
        index = self._to_visit.pop()
        camera = self.cameras[index : index + 1]
        height, width = int(camera.height), int(camera.width)
        factor = min(1.0, math.sqrt(max_rays / (height * width)))
        camera, _ = fit_cameras(camera, max(2, int(height * factor)), max(2, int(width * factor)))
        camera.cx, camera.cy = camera.cx + torch.rand(()) - 0.5, camera.cy + torch.rand(()) - 0.5
        return camera.generate_rays(0, keep_shape=True, disable_distortion=True)
