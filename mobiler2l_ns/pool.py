"""Pictures in memory, and random windows of them.

The pool holds the newest teacher views, as uint8; the photo set holds the capture's photos. Both hand out the same
thing: windows of pixels with the cameras and the pixel coordinates of the rays through their cells.

H, W: pixels of a stored picture; s: upscale factor; B: batch; hc, wc: cells of a window.
"""

import json
from pathlib import Path
from typing import Iterator, NamedTuple, Optional, Tuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from mobiler2l_ns.cameras import cell_centres, pinhole_rays, rays_at
from mobiler2l_ns.errors import UserError


class Windows(NamedTuple):
    """A batch of picture windows and the rays through their cells."""

    rays: RayBundle
    """(B, hc, wc)"""
    pixels: Float[Tensor, "B Hc Wc 3"]
    """0..1"""


def cut_windows(
    images: UInt8[Tensor, "N H W 3"], indices: Int[Tensor, "B"], height: int, width: int
) -> Tuple[Float[Tensor, "B height width 3"], Int[Tensor, "B 2"]]:
    """Random windows of given pictures, at any whole pixel, and their top left corners (y, x)."""
    b, device = len(indices), images.device
    top = (torch.rand(b, device=device) * (images.shape[1] - height + 1)).long()
    left = (torch.rand(b, device=device) * (images.shape[2] - width + 1)).long()
    rows = (top[:, None] + torch.arange(height, device=device))[:, :, None]
    columns = (left[:, None] + torch.arange(width, device=device))[:, None, :]
    return images[indices[:, None, None], rows, columns].float() / 255, torch.stack([top, left], dim=-1)


class PhotoSet:
    """The capture's photos at the student's resolution.

    Args:
        images: (N, H, W, 3) uint8.
        cameras: Their cameras (N,), for H x W pixels.
        upscale: s.
    """

    def __init__(self, images: UInt8[Tensor, "N H W 3"], cameras: Cameras, upscale: int):
        self.images, self.cameras, self.upscale = images, cameras, upscale

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Tuple[Cameras, Float[Tensor, "H W 3"]]]:
        """Each photo's camera (1,) and its colours in 0..1."""
        for i in range(len(self)):
            yield self.cameras[i : i + 1], self.images[i].float() / 255

    @property
    def nbytes(self) -> int:
        """Bytes that the photos take."""
        return self.images.numel()

    def hold_out(self, count: int) -> Tuple["PhotoSet", "PhotoSet"]:
        """Two sets: the photos without ``count`` evenly spaced ones, and those."""
        held = torch.linspace(0, len(self) - 1, count + 2)[1:-1].round().long()
        kept = torch.ones(len(self), dtype=torch.bool)
        kept[held] = False
        return tuple(
            PhotoSet(self.images[index], self.cameras[index], self.upscale) for index in (kept.nonzero()[:, 0], held)
        )

    def sample(self, count: int, hc: int, wc: int) -> Windows:
        """Windows of hc x wc cells from photos drawn at random."""
        indices = torch.randint(len(self.images), (count,), device=self.images.device)
        pixels, corner = cut_windows(self.images, indices, hc * self.upscale, wc * self.upscale)
        cells = cell_centres(hc, wc, (self.upscale, self.upscale), self.images.device)
        return Windows(rays_at(self.cameras, indices, corner[:, None, None, :] + cells), pixels)


class FramePool:
    """The newest teacher views; when it is full, a new one takes the place of the oldest.

    A stored picture may be a tile of a larger view: ``corner`` is the tile's place in it.

    Args:
        capacity: How many pictures it holds.
        tile: (H, W) of a stored picture.
        size: (H, W) of the whole view that the pinhole camera describes.
        focal: Focal length in pixels.
        upscale: s.
        device: Where the pictures live.
        cache: Optional folder where the pictures are kept too, so that an interrupted run finds them again.
        identity: What the cached pictures show; a cache with another identity is refused.
    """

    def __init__(
        self, capacity: int, tile: Tuple[int, int], size: Tuple[int, int], focal: float, upscale: int,
        device="cpu", cache: Optional[Path] = None, identity: str = "",
    ):  # fmt: skip
        self.capacity, self.tile, self.size, self.focal, self.upscale = capacity, tile, size, focal, upscale
        self.images = torch.zeros((capacity, *tile, 3), dtype=torch.uint8, device=device)
        self.c2w = torch.zeros(capacity, 3, 4, device=device)
        self.corner = torch.zeros(capacity, 2, dtype=torch.long, device=device)
        self.num_added = 0
        self._cache = _open_cache(cache, capacity, tile, identity) if cache is not None else None
        if self._cache is not None:
            self._restore()

    def __len__(self) -> int:
        return min(self.num_added, self.capacity)

    @property
    def nbytes(self) -> int:
        """Bytes that the full pool takes."""
        return self.images.numel() + 4 * self.c2w.numel() + 8 * self.corner.numel()

    def add(self, image: Float[Tensor, "H W 3"], c2w: Float[Tensor, "3 4"], corner: Tuple[int, int] = (0, 0)) -> None:
        """Stores one teacher view (0..1), over the oldest one if the pool is full."""
        slot = self.num_added % self.capacity
        self.images[slot] = (image * 255).round().to(torch.uint8)
        self.c2w[slot] = c2w
        self.corner[slot] = torch.tensor(corner)
        if self._cache is not None:
            frames, records = self._cache
            # A picture never stands beside another picture's pose: the record goes first and comes back last.
            records[slot] = np.nan
            records.flush()
            frames[slot] = self.images[slot].cpu().numpy()
            frames.flush()
            records[slot] = np.array([*self.c2w[slot].flatten().tolist(), *corner, self.num_added])
            records.flush()
        self.num_added += 1

    def sample(self, count: int, hc: int, wc: int) -> Windows:
        """Windows of hc x wc cells from stored views drawn at random."""
        indices = torch.randint(len(self), (count,), device=self.images.device)
        pixels, corner = cut_windows(self.images, indices, hc * self.upscale, wc * self.upscale)
        cells = cell_centres(hc, wc, (self.upscale, self.upscale), self.images.device)
        coords = (corner + self.corner[indices])[:, None, None, :] + cells
        return Windows(pinhole_rays(self.c2w[indices], self.focal, *self.size, coords), pixels)

    def _restore(self) -> None:
        frames, records = self._cache
        whole = np.flatnonzero(np.isfinite(records[:, -1]))
        if len(whole) == 0:
            return
        newest = whole[records[whole, -1].argmax()]
        self.num_added = int(records[newest, -1]) + 1
        for slot in range(len(self)):
            # A view that a kill cut short is next to be replaced; until then the newest one stands in for it.
            source = slot if np.isfinite(records[slot, -1]) else newest
            self.images[slot] = torch.from_numpy(np.array(frames[source])).to(self.images.device)
            self.c2w[slot] = torch.from_numpy(records[source, :12].reshape(3, 4)).to(self.c2w)
            self.corner[slot] = torch.from_numpy(records[source, 12:14]).long()


def _open_cache(folder: Path, capacity: int, tile: Tuple[int, int], identity: str):
    """Memory maps of the cached views (N, H, W, 3) and of their records (N, 15): pose, corner, running number."""
    header = {"capacity": capacity, "tile": list(tile), "identity": identity}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "pool.json"
        if not path.is_file():
            np.lib.format.open_memmap(folder / "frames.npy", "w+", np.uint8, (capacity, *tile, 3))
            np.lib.format.open_memmap(folder / "records.npy", "w+", np.float64, (capacity, 15))[:] = np.nan
            path.write_text(json.dumps(header, indent=2))
        if json.loads(path.read_text()) != header:
            raise UserError(f"{folder} holds views of another teacher, size or capacity: empty it or name another "
                            "folder with --pipeline.datamanager.cache-dir.")  # fmt: skip
        return tuple(np.lib.format.open_memmap(folder / name, "r+") for name in ("frames.npy", "records.npy"))
    except (OSError, ValueError) as error:
        raise UserError(f"the cache folder {folder} cannot be used ({error}): name another one with "
                        "--pipeline.datamanager.cache-dir.") from error  # fmt: skip
