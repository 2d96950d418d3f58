"""Batches: patches of teacher views, photos and hard patches, in the proportions that the options ask for.

B: patches; hc, wc: cells of a patch; Hc, Wc: its pixels; M: patches that know their alpha or depth.
"""

from typing import Dict, List, Optional, Tuple

import torch
from jaxtyping import Float
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.utils import comms
from torch import Tensor

from mobiler2l_ns.data.patches import HardPatches, Patches, alpha_depth_targets, join_bundles, known_pixels
from mobiler2l_ns.data.photos import PhotoSet
from mobiler2l_ns.data.pool import ViewPool
from mobiler2l_ns.data.reprojection import ReprojectedViews
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.training.distributed import local_share

HARD_BATCHES = 20  # R2L keeps as many hard rays as 20 batches have rays


class BatchMixer:
    """Draws this process's part of each batch.

    Args:
        pool: Teacher views.
        photos: The photos, or None if none are used.
        patches_per_batch: Patches in a batch, over all processes.
        patch_cells: Side of a patch in ray-grid cells; None: whole views.
        hard_share: Fraction of each batch that is drawn from hard patches.
        reprojected: Reprojected views, or None if none are used.
        reprojected_share: Their fraction of the patches that do not come from the photos.
        even_borders: Whether patches show the border of images as often as the middle.

    Attributes:
        patch_size: hc and wc.
        hard_patches: The hardest patches of the last batches, or None without a hard_share.
    """

    def __init__(
        self, pool: ViewPool, photos: Optional[PhotoSet], patches_per_batch: int, patch_cells: Optional[int],
        hard_share: float, reprojected: Optional[ReprojectedViews] = None, reprojected_share: float = 0.0,
        even_borders: bool = False,
    ):  # fmt: skip
        self.pool, self.photos, self.patches_per_batch = pool, photos, patches_per_batch
        self.even_borders = even_borders
        self.reprojected, self.reprojected_share = reprojected, reprojected_share if reprojected is not None else 0.0
        h, w = (side // pool.upscale for side in pool.tile)
        self.patch_size = (h, w) if patch_cells is None else (min(patch_cells, h), min(patch_cells, w))
        count = local_share(patches_per_batch)
        num_hard = int(hard_share * count)
        self.hard_patches = HardPatches(num_hard, HARD_BATCHES * count) if num_hard else None
        self._last: Optional[Tuple[Patches, int]] = None  # a batch, and how many of its patches were new

    @property
    def nbytes(self) -> int:
        """Bytes that pool, photos, hard patches, and reprojected views with their photos take."""
        parts = self.pool, self.reprojected, self.photos, self.hard_patches
        return sum(part.nbytes for part in parts if part is not None)

    def draw(self, photo_share: float) -> Tuple[RayBundle, Dict]:
        """Rays (B, hc, wc) and the batch.

        The batch has ``image`` (B, Hc, Wc, 3); ``alpha`` and ``depth`` (M, Hc, Wc, 1) of its first M patches, where
        the student learns them; ``known`` (B, Hc, Wc, 1) where some pixels are not; and ``sources``, the numbers of
        patches of teacher views, reprojected views, photos and hard patches, which follow each other in this order.

        Args:
            photo_share: Fraction of the new patches that comes from the photos.
        """
        hard = [self.hard_patches.draw()] if self.hard_patches else []
        num_hard, total = sum(len(patches.pixels) for patches in hard), self.patches_per_batch
        num_new, new = local_share(total) - num_hard, total - num_hard * comms.get_world_size()
        num_photos = local_share(round(new * photo_share)) if self.photos is not None else 0
        # Patches that know more about their pixels come first: views, photos, hard patches (colours only).
        parts: List[Patches] = []
        num_reprojected = round((num_new - num_photos) * self.reprojected_share)
        if num_photos + num_reprojected < num_new:
            parts.append(self.pool.sample(num_new - num_photos - num_reprojected, *self.patch_size, self.even_borders))
        if num_reprojected and self.reprojected is not None:
            parts.append(self.reprojected.sample(num_reprojected, *self.patch_size, self.even_borders))
        if num_photos and self.photos is not None:
            parts.append(self.photos.sample(num_photos, *self.patch_size, self.even_borders))
        parts += hard
        patches = Patches(join_bundles([p.rays for p in parts]), torch.cat([p.pixels[..., :3] for p in parts]))
        if self.hard_patches is not None:
            self._last = patches, num_new
        sources = [num_new - num_photos - num_reprojected, num_reprojected, num_photos, num_hard]
        targets = {"image": patches.pixels, **alpha_depth_targets(parts), **known_pixels(parts)}
        return patches.rays, {**targets, "sources": sources}

    def add_hard_patches(self, errors: Float[Tensor, "B"]) -> None:
        """Keeps the hardest new patches of the last batch; those drawn again do not enter twice.

        Args:
            errors: Mean squared error of each of the batch's patches; used only with a hard_share.
        """
        if self.hard_patches is not None and self._last is not None:
            patches, num_new = self._last
            self.hard_patches.add(patches, errors[:num_new])


def check_shares(shares: Dict[str, float]) -> None:
    """Raises UserError for a share that is no fraction.

    Args:
        shares: By their names in the datamanager's config.
    """
    for name, share in shares.items():
        if not 0 <= share <= 1:
            option = f"--pipeline.datamanager.{name.replace('_', '-')}"
            raise UserError(f"{option} needs a number from 0 to 1, not {share}.")


def check_batches(patches_per_batch: int, hard_share: float, num_reprojected: int = 0) -> None:
    """Raises UserError for options that make no batch.

    Processes must take equally many patches, or the mean over them would be skewed.
    """
    size = comms.get_world_size()
    if patches_per_batch % size:
        raise UserError(
            f"--pipeline.datamanager.patches-per-batch {patches_per_batch} cannot be divided among {size} processes: "
            f"pass {size * (patches_per_batch // size + 1)}."
        )
    if not 0 <= hard_share < 1:
        raise UserError(f"--pipeline.datamanager.hard-share needs a number from 0 to below 1, not {hard_share}.")
    if hard_share > 0 and num_reprojected > 0:
        raise UserError(
            "--pipeline.datamanager.hard-share cannot be used with reprojected views, because hard patches do not "
            "store which pixels are unknown: pass --pipeline.datamanager.reprojected-share 0, too."
        )
