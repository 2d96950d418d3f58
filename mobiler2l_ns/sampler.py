"""From a camera pose to K points on each ray of the student's grid. Exported as Sampler.onnx; torch only.

h, w: ray grid; K: points a ray. Rays are not normalised (see cameras.py): a point's ``z`` is its distance from the
camera plane, as in Snap's Lens template and in MobileR2L (Cao et al. 2023, Sec. 3.1).
"""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Sampler(nn.Module):
    """K points a ray, evenly spaced in z between near and far.

    The pinhole (ray grid and its focal length) and the depth range are buffers: they travel with the weights, so an
    exported or reloaded student never has to guess the camera it was trained with.

    Args:
        num_points: K.
    """

    def __init__(self, num_points: int):
        super().__init__()
        self.num_points = num_points
        self.register_buffer("grid", torch.zeros(2, dtype=torch.long))  # h, w
        self.register_buffer("focal", torch.zeros(()))  # in cells: pixels / upscale
        self.register_buffer("near", torch.zeros(()))
        self.register_buffer("far", torch.ones(()))

    def set_camera(self, h: int, w: int, focal: float, near: float, far: float) -> None:
        """Fixes the pinhole and the depth range.

        Args:
            h: Rows of the ray grid.
            w: Columns of the ray grid.
            focal: Focal length in cells.
            near: z of the first point, world units.
            far: z of the last point, world units.
        """
        self.grid.copy_(torch.tensor([h, w]))
        for buffer, value in ((self.focal, focal), (self.near, near), (self.far, far)):
            buffer.fill_(value)

    @property
    def depths(self) -> Tensor:
        """z of the K points, (K,)."""
        steps = torch.linspace(0.0, 1.0, self.num_points, dtype=self.near.dtype, device=self.near.device)
        return self.near + (self.far - self.near) * steps

    def jittered_depths(self, rays_d: Tensor) -> Tensor:
        """One random z in each of the K cells around the even depths, (..., K) for directions (..., 3).

        Stratified sampling as in NeRF (Mildenhall et al. 2020, Eq. 2), which R2L and MobileR2L use as augmentation.
        """
        depths = self.depths
        middle = 0.5 * (depths[1:] + depths[:-1])
        lower, upper = torch.cat([depths[:1], middle]), torch.cat([middle, depths[-1:]])
        return lower + (upper - lower) * torch.rand(*rays_d.shape[:-1], self.num_points, device=rays_d.device)

    def points(self, rays_o: Tensor, rays_d: Tensor, depths: Optional[Tensor] = None) -> Tensor:
        """Points along given rays.

        Args:
            rays_o: (..., 3), or anything that broadcasts against rays_d.
            rays_d: (..., 3), not normalised.
            depths: (..., K) or (K,); left out: the even depths.

        Returns:
            (..., 3K), column 3k + axis.
        """
        depths = self.depths if depths is None else depths
        return torch.cat([rays_o + depths[..., k : k + 1] * rays_d for k in range(self.num_points)], dim=-1)

    def directions(self) -> Tensor:
        """Directions of the grid's rays in camera axes, (h*w, 3), row-major."""
        h, w = self.grid.tolist()
        x = (torch.arange(w, dtype=self.focal.dtype, device=self.focal.device) + 0.5 - w / 2) / self.focal
        y = -(torch.arange(h, dtype=self.focal.dtype, device=self.focal.device) + 0.5 - h / 2) / self.focal
        y, x = torch.meshgrid(y, x, indexing="ij")
        return torch.stack([x, y, -torch.ones_like(x)], dim=-1).view(-1, 3)

    def forward(self, c2w33: Tensor, c2w13: Tensor) -> Tensor:
        """Points of one camera.

        Axes travel as channels, rays as columns: every product then stretches one operand along the columns alone,
        the widest that SnapML documents, and a convolution with constant weights puts all K points on a ray at once.
        Columns are sliced, and the third is added times -1, because SnapML documents neither Gather nor Sub.

        Args:
            c2w33: (1, 1, 3, 3) rotation, camera to world.
            c2w13: (1, 1, 1, 3) camera centre.

        Returns:
            (1, 1, h*w, 3K).
        """
        x, y, _ = self.directions().unbind(-1)
        x, y = (part.expand(3, -1)[None, :, None] for part in (x, y))  # (1, 3, 1, h*w)
        right, up, back = (c2w33[..., axis : axis + 1].transpose(1, 2) for axis in range(3))  # (1, 3, 1, 1)
        rays_d = x * right + y * up + back * -1.0
        along = self.depths[:, None, None] * torch.eye(3, dtype=x.dtype, device=x.device)  # (K, 3, 3)
        origins = torch.cat([c2w13.transpose(1, 3)] * self.num_points, dim=1)  # (1, 3K, 1, 1)
        return (F.conv2d(rays_d, along.reshape(-1, 3, 1, 1)) + origins).permute(0, 2, 3, 1)
