"""Windows that the student still got wrong, kept to be shown again: R2L's hard rays (Wang et al., ECCV 2022).

R2L keeps single rays; a window of several cells works the same way. Unlike R2L's pool, which replaces the rays that it
has just handed out, this one forgets its oldest: a ray that nobody draws does not stay for ever.

B: windows; hc, wc: cells of a window.
"""

from typing import List

import torch
from jaxtyping import Float
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from mobiler2l_ns.pool import Windows


class HardWindows:
    """The worst windows of the last batches. Nothing in it waits for a GPU.

    Args:
        count: Windows that each batch adds, and that each batch draws.
        capacity: Windows it holds, at least ``count``; then new ones take the place of the oldest.
    """

    def __init__(self, count: int, capacity: int):
        self.count, self.capacity, self.num_added = count, capacity, 0
        self._stored: List[Tensor] = []

    def __len__(self) -> int:
        return min(self.num_added, self.capacity)

    @property
    def nbytes(self) -> int:
        """Bytes that the windows take; all of them from the first ``add`` on."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._stored)

    def add(self, windows: Windows, errors: Float[Tensor, "N"]) -> None:
        """Stores the windows with the largest errors.

        Args:
            windows: A batch.
            errors: Errors of its first N windows; the others are not looked at.
        """
        worst = errors.topk(min(self.count, len(errors))).indices
        rays = windows.rays
        pixels = (windows.pixels[worst] * 255).round().to(torch.uint8)
        parts = (rays.origins, rays.directions, rays.pixel_area, rays.metadata["directions_norm"])
        new = [pixels, *(part[worst] for part in parts)]
        if not self._stored:
            self._stored = [tensor.new_empty((self.capacity, *tensor.shape[1:])) for tensor in new]
        slots = (self.num_added + torch.arange(len(worst), device=worst.device)) % self.capacity
        for stored, tensor in zip(self._stored, new):
            stored[slots] = tensor
        self.num_added += len(worst)

    def draw(self) -> Windows:
        """``count`` stored windows at random; one may come twice."""
        chosen = torch.randint(len(self), (self.count,), device=self._stored[0].device)
        pixels, origins, directions, pixel_area, norm = (tensor[chosen] for tensor in self._stored)
        return Windows(RayBundle(origins, directions, pixel_area, metadata={"directions_norm": norm}), pixels / 255)
