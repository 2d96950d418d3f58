"""Patches: random crops of rays and pixels, which make up a batch, and the hardest of them.

B: patches; hc, wc: cells of a patch; Hc, Wc: its pixels; C: channels, 3 for colours, 4 with alpha, 5 with depth, 6 with
1 where the others are known and 0 elsewhere.
"""

from typing import Dict, List, NamedTuple, Tuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor


class Patches(NamedTuple):
    """Patches of pixels, and the rays through their cells."""

    rays: RayBundle
    """(B, hc, wc)"""
    pixels: Float[Tensor, "B Hc Wc C"]
    """0..1. Depth is normalised (see DepthRange), and 0 where it is not known."""


def cut_patches(
    images: UInt8[Tensor, "N H W C"], indices: Int[Tensor, "B"], height: int, width: int, even_borders: bool = False
) -> Tuple[Float[Tensor, "B height width C"], Int[Tensor, "B 2"]]:
    """Random patches of given images, at any whole pixel, and their top left corners (y, x), see ``random_starts``."""
    b, device = len(indices), images.device
    top = random_starts(b, images.shape[1] - height, height, even_borders, device)
    left = random_starts(b, images.shape[2] - width, width, even_borders, device)
    rows = (top[:, None] + torch.arange(height, device=device))[:, :, None]
    columns = (left[:, None] + torch.arange(width, device=device))[:, None, :]
    return images[indices[:, None, None], rows, columns].float() / 255, torch.stack([top, left], dim=-1)


def random_starts(count: int, last: int, length: int, even_borders: bool, device=None) -> Int[Tensor, "{count}"]:
    """First pixels, from 0 to ``last``, of random pieces of an image along one axis.

    Pieces that start anywhere inside show the first pixel once where they show a pixel of the middle ``length`` times.
    With even borders, pieces start anywhere where they meet the image, and those that leave it are moved inside.

    Args:
        count: Number of pieces.
        last: The image's pixels less those of a piece.
        length: Pixels of a piece.
        even_borders: Whether all pixels are shown about as often.
        device: Where the result goes.
    """
    outside = length - 1 if even_borders else 0
    starts = (torch.rand(count, device=device) * (last + 1 + 2 * outside)).long() - outside
    return starts.clamp(0, last)


class HardPatches:
    """The patches with the largest errors of the last batches (R2L's hard rays, Wang et al. 2022).

    No call waits for a GPU.

    Args:
        count: Patches that each batch adds, and that each batch draws.
        capacity: Patches that are stored, at least ``count``; when it is full, new ones replace the oldest.
    """

    def __init__(self, count: int, capacity: int):
        self.count, self.capacity, self.num_added = count, capacity, 0
        self._stored: List[Tensor] = []

    def __len__(self) -> int:
        return min(self.num_added, self.capacity)

    @property
    def nbytes(self) -> int:
        """Bytes of the full store; 0 before the first ``add``."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._stored)

    def add(self, patches: Patches, errors: Float[Tensor, "N"]) -> None:
        """Stores the patches with the largest errors.

        Args:
            patches: A batch.
            errors: Errors of its first N patches; the others are ignored.
        """
        worst = errors.topk(min(self.count, len(errors))).indices
        rays = patches.rays
        pixels = (patches.pixels[worst] * 255).round().to(torch.uint8)
        parts = (rays.origins, rays.directions, rays.pixel_area, rays.metadata["directions_norm"])
        new = [pixels, *(part[worst] for part in parts)]
        if not self._stored:
            self._stored = [tensor.new_empty((self.capacity, *tensor.shape[1:])) for tensor in new]
        slots = (self.num_added + torch.arange(len(worst), device=worst.device)) % self.capacity
        for stored, tensor in zip(self._stored, new):
            stored[slots] = tensor
        self.num_added += len(worst)

    def draw(self) -> Patches:
        """``count`` stored patches at random; a patch may be drawn twice."""
        chosen = torch.randint(len(self), (self.count,), device=self._stored[0].device)
        pixels, origins, directions, pixel_area, norm = (tensor[chosen] for tensor in self._stored)
        return Patches(RayBundle(origins, directions, pixel_area, metadata={"directions_norm": norm}), pixels / 255)


def alpha_depth_targets(parts: List[Patches]) -> Dict[str, Float[Tensor, "M Hc Wc 1"]]:
    """``alpha`` and ``depth`` of the patches that have them, in the batch's order; a batch may have none."""
    found = {}
    for channel, name in ((3, "alpha"), (4, "depth")):
        known = [part.pixels[..., channel : channel + 1] for part in parts if part.pixels.shape[-1] > channel]
        if known:
            found[name] = torch.cat(known)
    return found


def known_pixels(parts: List[Patches]) -> Dict[str, Bool[Tensor, "B Hc Wc 1"]]:
    """``known``: which pixels of a batch are known; nothing if all are."""
    if all(part.pixels.shape[-1] < 6 for part in parts):
        return {}
    masks = [part.pixels[..., 5:6] > 0 if part.pixels.shape[-1] == 6 else part.pixels[..., :1] >= 0 for part in parts]
    return {"known": torch.cat(masks)}


def join_bundles(bundles: List[RayBundle]) -> RayBundle:
    """One bundle of several (B, h, w) ones."""
    return RayBundle(
        origins=torch.cat([b.origins for b in bundles]),
        directions=torch.cat([b.directions for b in bundles]),
        pixel_area=torch.cat([b.pixel_area for b in bundles]),
        metadata={"directions_norm": torch.cat([b.metadata["directions_norm"] for b in bundles])},
    )
