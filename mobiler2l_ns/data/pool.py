"""The pool of the newest teacher views, in memory as uint8.

H, W: pixels of a stored view; s: upscale factor; B: batch; hc, wc: cells of a patch; C: channels, 3 for colours, 4
with alpha, 5 with depth, 6 with 1 where the others are known and 0 elsewhere.
"""

import json
import math
import os
import zlib
from pathlib import Path
from typing import List, Optional, Tuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from nerfstudio.utils import comms
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from mobiler2l_ns.cameras import cell_centres, pinhole_rays
from mobiler2l_ns.data.patches import Patches, cut_patches
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.files import write_json
from mobiler2l_ns.student.sampler import DepthRange

UNIT_RANGE = DepthRange(0.0, 1.0)
NUMBER = 14  # column of a view's running number in a cache's records, after its pose and its corner


class ViewPool:
    """The newest teacher views. When the pool is full, a new view replaces the oldest one.

    A stored view may be a tile of a larger one; ``corner`` is the tile's position in it.

    Args:
        capacity: The largest number of stored views.
        tile: (H, W) of a stored view.
        size: (H, W) of the whole view, which the pinhole camera describes.
        focal: Focal length in pixels.
        upscale: s.
        device: Device of the stored views.
        cache: Folder in which the views are stored too, so that an interrupted run need not render them again; with
            several processes, each in its own folder rank-N inside.
        identity: Names what the views depend on; a cache with another identity is refused.
        channels: C.
        depths: The planes between which depth is stored.
    """

    def __init__(
        self, capacity: int, tile: Tuple[int, int], size: Tuple[int, int], focal: float, upscale: int,
        device="cpu", cache: Optional[Path] = None, identity: str = "",
        channels: int = 3, depths: DepthRange = UNIT_RANGE,
    ):  # fmt: skip
        self.capacity, self.tile, self.size, self.focal, self.upscale = capacity, tile, size, focal, upscale
        self.depths = depths
        self.images = torch.zeros((capacity, *tile, channels), dtype=torch.uint8, device=device)
        self.c2w = torch.zeros(capacity, 3, 4, device=device)
        self.corner = torch.zeros(capacity, 2, dtype=torch.long, device=device)
        self.added_at = np.zeros(capacity)
        self.num_added = 0
        self._cache, self._cache_depths = None, depths
        if cache is not None:
            cache = cache if comms.get_world_size() == 1 else cache / f"rank-{comms.get_rank()}"
            self._cache, self._cache_depths = _open_cache(cache, (capacity, *tile, channels), identity, depths)
            self._restore()

    def __len__(self) -> int:
        return min(self.num_added, self.capacity)

    @property
    def nbytes(self) -> int:
        """Bytes that the full pool takes."""
        return self.images.numel() + 4 * self.c2w.numel() + 8 * self.corner.numel()

    def mean_age(self, step: int) -> float:
        """How many steps ago the stored views were added, on average. Views of a cache count as added at step 0."""
        return step - float(self.added_at[: len(self)].mean()) if len(self) else 0.0

    def add(
        self, image: Float[Tensor, "H W C"], c2w: Float[Tensor, "3 4"], corner: Tuple[int, int] = (0, 0), step: int = 0
    ) -> None:
        """Stores one teacher view, over the oldest one if the pool is full.

        Args:
            image: Colours and alpha in 0..1, and z in world units, 0 where it is not known.
            c2w: Its pose.
            corner: Its top left pixel (y, x) in the whole view.
            step: The present step.
        """
        slot = self.num_added % self.capacity
        self.images[slot] = to_bytes(image, self.depths)
        self.c2w[slot] = c2w
        self.corner[slot, 0], self.corner[slot, 1] = corner  # plain numbers: a GPU would wait for a copy of a tensor
        self.added_at[slot] = step
        if self._cache is not None:
            views, records = self._cache
            # A view must never have the pose of another one, so its record is removed first and written last.
            records[slot] = np.nan
            records.flush()
            pixels = views[slot] = to_bytes(image, self._cache_depths).cpu().numpy()
            views.flush()
            record = [*self.c2w[slot].flatten().tolist(), *corner, self.num_added]
            records[slot] = np.array([*record, checksum(pixels, record)])
            records.flush()
        self.num_added += 1

    def sample(self, count: int, hc: int, wc: int, even_borders: bool = False) -> Patches:
        """Patches of hc x wc cells from stored views drawn at random, see ``random_starts``."""
        indices = torch.randint(len(self), (count,), device=self.images.device)
        pixels, corner = cut_patches(self.images, indices, hc * self.upscale, wc * self.upscale, even_borders)
        cells = cell_centres(hc, wc, (self.upscale, self.upscale), self.images.device)
        coords = (corner + self.corner[indices])[:, None, None, :] + cells
        return Patches(pinhole_rays(self.c2w[indices], self.focal, *self.size, coords), pixels)

    def _restore(self) -> None:
        assert self._cache is not None
        views, records = self._cache
        written = np.flatnonzero(np.isfinite(records[:, -1]))
        whole = {slot for slot in written if records[slot, -1] == checksum(views[slot], records[slot, :-1].tolist())}
        if not whole:
            return
        newest = max(whole, key=lambda slot: records[slot, NUMBER])
        self.num_added = int(records[newest, NUMBER]) + 1
        for slot in range(len(self)):
            # A half-written or damaged view is replaced next; until then the newest view is used in its place.
            source = slot if slot in whole else newest
            # The planes between which depth is stored may be others than those of the run that filled the cache.
            view = from_bytes(torch.from_numpy(np.array(views[source])), self._cache_depths)
            self.images[slot] = to_bytes(view, self.depths).to(self.images.device)
            self.c2w[slot] = torch.from_numpy(records[source, :12].reshape(3, 4)).to(self.c2w)
            self.corner[slot] = torch.from_numpy(records[source, 12:14]).long()


def announce_memory(
    pool: Tuple[int, int, int, int], photos: Tuple[int, int, int, int], focal: float, cache_dir: Optional[Path],
    reprojection_bytes: int = 0,
) -> None:  # fmt: skip
    """Prints what the pool, the photos and the reprojected views are going to take, in the main process.

    Args:
        pool: Capacity, H, W and C of a process's pool.
        photos: Number, H, W and C of the photos.
        focal: Focal length of the student's view in pixels.
        cache_dir: Where the pool is also kept.
        reprojection_bytes: Bytes of the reprojected views and of what they are drawn from; 0: there are none.
    """
    if not comms.is_main_process():
        return
    (capacity, tile_h, tile_w, _), (_, height, width, _) = pool, photos
    where = f"also kept in {cache_dir}" if cache_dir else "nothing is written to disk"
    each = f" of each of {comms.get_world_size()} processes" if comms.get_world_size() > 1 else ""
    parts = f"photos ({math.prod(photos) / 1e6:.1f} MB)"
    if reprojection_bytes > 0:
        parts += f" + reprojected views and their photos ({reprojection_bytes / 1e6:.1f} MB)"
    CONSOLE.print(
        f"Student's view {width}x{height}, focal {focal:.1f}. Pool: {capacity} teacher views of {tile_w}x{tile_h} "
        f"({math.prod(pool) / 1e6:.1f} MB) + {parts} in memory{each}; {where}."
    )


def to_bytes(image: Float[Tensor, "H W C"], depths: DepthRange) -> UInt8[Tensor, "H W C"]:
    """A teacher view as the pool stores it.

    One byte of depth is a step of 0.4 % of the range between the planes, in z or in 1/z. That is much less than the
    student's error. 0 means that depth is not known; z in front of the near plane (a floater) becomes 0 too.
    """
    if image.shape[-1] >= 5:
        image = torch.cat([image[..., :4], known_depth(image[..., 4:5], depths), image[..., 5:]], dim=-1)
    return (image * 255).round().to(torch.uint8)


def known_depth(z: Float[Tensor, "*shape"], depths: DepthRange) -> Float[Tensor, "*shape"]:
    """Normalised depth within 0..1; 0 where z is 0, that is, not known."""
    # Dividing by a z of 0 would give infinity or NaN.
    return torch.where(z > 0, depths.normalize(z.clamp_min(1e-9)), 0.0).clamp(0, 1)


def from_bytes(image: UInt8[Tensor, "H W C"], depths: DepthRange) -> Float[Tensor, "H W C"]:
    """The reverse of ``to_bytes``."""
    image = image.float() / 255
    if image.shape[-1] >= 5:
        part = image[..., 4:5]
        z = torch.where(part > 0, depths.denormalize(part), 0.0)
        image = torch.cat([image[..., :4], z, image[..., 5:]], dim=-1)
    return image


def checksum(pixels: UInt8[np.ndarray, "H W C"], record: List[float]) -> int:
    """CRC-32 of a cached view and of its pose, corner and running number."""
    return zlib.crc32(np.array(record, dtype=np.float64).tobytes(), zlib.crc32(np.ascontiguousarray(pixels).data))


def _open_cache(folder: Path, shape: Tuple[int, int, int, int], identity: str, depths: DepthRange):
    """Memory maps of the cached views (N, H, W, C) and of their records (N, 16).

    A record has the view's pose, corner, running number and checksum. Also returns the planes between which the cache
    stores depth: those of the run that created it.
    """
    capacity, height, width, channels = shape
    header = {"version": 2, "capacity": capacity, "tile": [height, width], "channels": channels, "identity": identity}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "pool.json"
        if not path.is_file():
            _allocate(folder / "views.npy", np.uint8, shape)
            _allocate(folder / "records.npy", np.float64, (capacity, NUMBER + 2))[:] = np.nan
            write_json(path, {**header, "depths": depths})
        found = json.loads(path.read_text())
        kept = DepthRange(*found.pop("depths"))
        if found != header:
            raise UserError(f"{folder} has views of another teacher, size, capacity or other outputs: empty it, or "
                            "name another folder with --pipeline.datamanager.cache-dir.")  # fmt: skip
        views, records = (np.lib.format.open_memmap(folder / name, "r+") for name in ("views.npy", "records.npy"))
        if (views.shape, views.dtype) != (shape, np.uint8) or records.shape != (capacity, NUMBER + 2):
            raise ValueError("views.npy or records.npy has another shape than pool.json says")
        return (views, records), kept
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:  # JSON of something else, no array
        raise UserError(f"the cache folder {folder} cannot be used ({error}): name another one with "
                        "--pipeline.datamanager.cache-dir.") from error  # fmt: skip


def _allocate(path: Path, dtype, shape: Tuple[int, ...]) -> np.memmap:
    """A new array on disk, with all its space: writing to a map of a full disk would kill the process."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
