"""From a camera pose to K points on each ray of the student's grid. Exported as Sampler.onnx; torch only.

h, w: ray grid; K: points a ray. Rays are not normalised (see cameras.py): a point's ``z`` is its distance from the
camera plane, as in Snap's Lens template and in MobileR2L (Cao et al. 2023, Sec. 3.1).

Bounded, for objects: even in z, coded as they are. Unbounded, for the world around a camera: even in 1/z, and drawn
together far from the cameras, so that the positional code of a point means something at any distance.
"""

from typing import Literal, NamedTuple, Optional, Sequence, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Points = Literal["bounded", "unbounded"]
Number = Union[float, Tensor]


class DepthRange(NamedTuple):
    """The planes between which points and depth lie, and what is even between them: z, or 1/z if unbounded."""

    near: Number
    far: Number
    unbounded: bool = False

    def denormalize(self, part: Number) -> Number:
        """z at a part of the way: 0 is the near plane, 1 the far plane."""
        if self.unbounded:
            return self.near * self.far / (self.far - (self.far - self.near) * part)
        return self.near + (self.far - self.near) * part

    def normalize(self, z: Number) -> Number:
        """The reverse of ``denormalize``."""
        part = (z - self.near) / (self.far - self.near)
        return part * self.far / z if self.unbounded else part


class Sampler(nn.Module):
    """K points a ray between near and far.

    The pinhole (ray grid and its focal length), the depth range and the contraction are buffers: they travel with the
    weights, so an exported or reloaded student never has to guess the camera it was trained with.

    Args:
        num_points: K.
        unbounded: Points even in 1/z, and contracted; else even in z, as they are.
    """

    def __init__(self, num_points: int, unbounded: bool = False):
        super().__init__()
        self.num_points, self.unbounded = num_points, unbounded
        self.register_buffer("grid", torch.zeros(2, dtype=torch.long))  # h, w
        self.register_buffer("focal", torch.zeros(()))  # in cells: pixels / upscale
        self.register_buffer("near", torch.zeros(()))
        self.register_buffer("far", torch.ones(()))
        if unbounded:
            self.register_buffer("centre", torch.zeros(3))
            self.register_buffer("radius", torch.ones(()))

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

    def set_contraction(self, centre: Sequence[float], radius: float) -> None:
        """Fixes the cube that stays as it is, of an unbounded sampler.

        Args:
            centre: Of the cube, world units.
            radius: Half its side, world units.
        """
        self.centre.copy_(torch.as_tensor(centre))
        self.radius.fill_(radius)

    @property
    def range(self) -> DepthRange:
        """Near and far, and what is even between them."""
        return DepthRange(self.near, self.far, self.unbounded)

    @property
    def depths(self) -> Tensor:
        """z of the K points, (K,)."""
        steps = torch.linspace(0.0, 1.0, self.num_points, dtype=self.near.dtype, device=self.near.device)
        return self.range.denormalize(steps)

    def jittered_depths(self, rays_d: Tensor) -> Tensor:
        """One random z in each of the K cells around the depths, (..., K) for directions (..., 3).

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
            depths: (..., K) or (K,); left out: those of all cameras.

        Returns:
            (..., 3K), column 3k + axis.
        """
        depths = self.depths if depths is None else depths
        points = [rays_o + depths[..., k : k + 1] * rays_d for k in range(self.num_points)]
        return torch.cat([self.contract(point, axis=-1) for point in points], dim=-1)

    def contract(self, points: Tensor, axis: int) -> Tensor:
        """Points as they are coded: unbounded ones in the cube of side 4 around 0.

        That is what mip-NeRF 360 (Barron et al. 2022, Eq. 10) does, with a cube for the ball as in nerfacto: with the
        cameras' cube as the unit, x stays where m = max |x| is at most 1, and becomes (2 - 1/m) x/m outside.

        Args:
            points: World units, with x, y and z along ``axis``.
        """
        if not self.unbounded:
            return points
        shape = [1] * points.ndim
        shape[axis] = 3
        points = (points - self.centre.view(shape)) / self.radius
        m = points.abs().amax(dim=axis, keepdim=True).clamp(min=1.0)
        return points * ((2.0 - 1.0 / m) / m)

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
        points = F.conv2d(rays_d, along.reshape(-1, 3, 1, 1)) + origins
        return (self._contract_channels(points) if self.unbounded else points).permute(0, 2, 3, 1)

    def _contract_channels(self, points: Tensor) -> Tensor:
        """``contract`` of points (1, 3K, 1, h*w), channel 3k + axis, without the operators that SnapML lacks.

        max(a, b) is relu(a - b) + b. Axes are picked, and factors handed to all three of a point, by convolutions with
        zeros and ones, which round nothing.
        """
        axes = torch.eye(3 * self.num_points, dtype=points.dtype, device=points.device)
        x, y, z = axes.view(-1, 3, 3 * self.num_points, 1, 1).unbind(1)
        ones = torch.ones(1, self.num_points, 1, 1, dtype=points.dtype, device=points.device)
        shift = (self.centre * -1.0).repeat(self.num_points)[None, :, None, None]
        points = (points + shift) * (1.0 / self.radius).expand_as(shift)
        size = points.abs()
        larger = F.relu(F.conv2d(size, x - y)) + F.conv2d(size, y)
        largest = F.relu(larger + F.conv2d(size, z * -1.0)) + F.conv2d(size, z)
        outside = F.relu(largest + ones * -1.0)  # m - 1
        shrink = ones / (outside + ones)  # 1/m
        factor = shrink + outside * shrink * shrink  # (2 - 1/m) / m
        return points * F.conv2d(factor, (x + y + z).transpose(0, 1))
