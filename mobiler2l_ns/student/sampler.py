"""From a camera pose to K points on each ray of the student's grid. Exported as Sampler.onnx; torch only.

h, w: ray grid; hw: its rays, h*w, row-major; K: points per ray. Ray directions are not normalised (see cameras.py): the
``z`` of a point is its distance from the camera plane, as in Snap's Lens template and in MobileR2L (Cao et al. 2023,
Sec. 3.1).

Bounded scenes: points are evenly spaced in z and enter the network as they are. Unbounded scenes: points are evenly
spaced in 1/z and are contracted far from the cameras, so that the positional code resolves points at any distance.
"""

from typing import Literal, NamedTuple, Optional, Sequence, Union, overload

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

Points = Literal["bounded", "unbounded"]
Number = Union[float, Float[Tensor, ""]]
Values = Union[float, Float[Tensor, "*shape"]]


class DepthRange(NamedTuple):
    """Near and far plane of points and depths, and their spacing: even in z, or in 1/z if unbounded."""

    near: Number
    far: Number
    unbounded: bool = False

    @overload
    def denormalize(self, depth: float) -> Number: ...

    @overload
    def denormalize(self, depth: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]: ...

    def denormalize(self, depth: Values) -> Values:
        """Normalised depth (0: near plane, 1: far plane) to z in world units."""
        if self.unbounded:
            return self.near * self.far / (self.far - (self.far - self.near) * depth)
        return self.near + (self.far - self.near) * depth

    @overload
    def normalize(self, z: float) -> Number: ...

    @overload
    def normalize(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]: ...

    def normalize(self, z: Values) -> Values:
        """z in world units to normalised depth; the inverse of ``denormalize``."""
        depth = (z - self.near) / (self.far - self.near)
        return depth * self.far / z if self.unbounded else depth


class Sampler(nn.Module):
    """K points per ray between near and far.

    The pinhole camera (ray grid and focal length), the depth range and the contraction are buffers. They are saved with
    the weights, so a reloaded or exported student has the camera that it was trained with.

    Args:
        num_points: K.
        unbounded: True: points evenly spaced in 1/z, and contracted. False: evenly spaced in z, not contracted.
    """

    grid: Int[Tensor, "2"]
    focal: Float[Tensor, ""]
    near: Float[Tensor, ""]
    far: Float[Tensor, ""]
    centre: Float[Tensor, "3"]
    radius: Float[Tensor, ""]

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
        """Sets the pinhole camera and the depth range.

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

    def set_contraction(self, centre: Union[Sequence[float], Float[Tensor, "3"]], radius: float) -> None:
        """Sets the cube inside which an unbounded sampler does not contract points.

        Args:
            centre: Centre of the cube, (3,), world units.
            radius: Half the cube's side, world units.
        """
        self.centre.copy_(torch.as_tensor(centre))
        self.radius.fill_(radius)

    @property
    def range(self) -> DepthRange:
        """Near plane, far plane and spacing."""
        return DepthRange(self.near, self.far, self.unbounded)

    @property
    def depths(self) -> Float[Tensor, "{self.num_points}"]:
        """z of the K points of each ray, world units."""
        steps = torch.linspace(0.0, 1.0, self.num_points, dtype=self.near.dtype, device=self.near.device)
        return self.range.denormalize(steps)

    def jittered_depths(self, rays_d: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch {self.num_points}"]:
        """One random z in each of the K intervals around ``depths``, for each ray.

        Stratified sampling as in NeRF (Mildenhall et al. 2020, Eq. 2), which R2L and MobileR2L use as augmentation.
        """
        depths = self.depths
        middle = 0.5 * (depths[1:] + depths[:-1])
        lower, upper = torch.cat([depths[:1], middle]), torch.cat([middle, depths[-1:]])
        return lower + (upper - lower) * torch.rand(*rays_d.shape[:-1], self.num_points, device=rays_d.device)

    def points(
        self,
        rays_o: Float[Tensor, "*#batch 3"],
        rays_d: Float[Tensor, "*#batch 3"],
        depths: Optional[Float[Tensor, "*#batch {self.num_points}"]] = None,
    ) -> Float[Tensor, "*batch {3*self.num_points}"]:
        """Points on given rays.

        Args:
            rays_o: Ray origins, world units.
            rays_d: Ray directions, not normalised.
            depths: z of the points; None: ``self.depths``.

        Returns:
            Coordinates of the points, contracted if unbounded; column 3k + axis.
        """
        depths = self.depths if depths is None else depths
        points = [rays_o + depths[..., k : k + 1] * rays_d for k in range(self.num_points)]
        return torch.cat([self.contract(point, axis=-1) for point in points], dim=-1)

    def contract(self, points: Float[Tensor, "*shape"], axis: int) -> Float[Tensor, "*shape"]:
        """Coordinates that the embedder takes: world units if bounded; in [-2, 2] if unbounded.

        The contraction of mip-NeRF 360 (Barron et al. 2022, Eq. 10) with the maximum norm, as in nerfacto. In units of
        the cameras' cube and with m = max |x|, x is unchanged where m <= 1 and becomes (2 - 1/m) x/m elsewhere.

        Args:
            points: World units; ``axis`` holds x, y and z.
            axis: The axis of length 3.
        """
        if not self.unbounded:
            return points
        shape = [1] * points.ndim
        shape[axis] = 3
        points = (points - self.centre.view(shape)) / self.radius
        m = points.abs().amax(dim=axis, keepdim=True).clamp(min=1.0)
        return points * ((2.0 - 1.0 / m) / m)

    def directions(self) -> Float[Tensor, "hw 3"]:
        """Directions of the grid's rays in camera axes, row-major, with z = -1."""
        h, w = self.grid.tolist()
        x = (torch.arange(w, dtype=self.focal.dtype, device=self.focal.device) + 0.5 - w / 2) / self.focal
        y = -(torch.arange(h, dtype=self.focal.dtype, device=self.focal.device) + 0.5 - h / 2) / self.focal
        y, x = torch.meshgrid(y, x, indexing="ij")
        return torch.stack([x, y, -torch.ones_like(x)], dim=-1).view(-1, 3)

    def forward(
        self, c2w33: Float[Tensor, "1 1 3 3"], c2w13: Float[Tensor, "1 1 1 3"]
    ) -> Float[Tensor, "1 1 hw {3*self.num_points}"]:
        """Points of one camera, as ``points`` computes them, in operators that SnapML documents.

        Axes are channels and rays are columns. Every product then broadcasts along columns only, which SnapML
        documents, and one convolution with constant weights computes the K points of all rays. Columns are sliced, and
        the third is multiplied by -1 and added, because SnapML documents neither Gather nor Sub.

        Args:
            c2w33: Rotation, camera to world.
            c2w13: Camera centre, world units.

        Returns:
            Coordinates of the points; last axis 3k + axis.
        """
        x, y, _ = self.directions().unbind(-1)
        x, y = (part.expand(3, -1)[None, :, None] for part in (x, y))  # (1, 3, 1, h*w)
        right, up, back = (c2w33[..., axis : axis + 1].transpose(1, 2) for axis in range(3))  # (1, 3, 1, 1)
        rays_d = x * right + y * up + back * -1.0
        along = self.depths[:, None, None] * torch.eye(3, dtype=x.dtype, device=x.device)  # (K, 3, 3)
        origins = torch.cat([c2w13.transpose(1, 3)] * self.num_points, dim=1)  # (1, 3K, 1, 1)
        points = F.conv2d(rays_d, along.reshape(-1, 3, 1, 1)) + origins
        return (self._contract_channels(points) if self.unbounded else points).permute(0, 2, 3, 1)

    def _contract_channels(
        self, points: Float[Tensor, "1 {3*self.num_points} 1 hw"]
    ) -> Float[Tensor, "1 {3*self.num_points} 1 hw"]:
        """``contract`` of points with channel 3k + axis, without the operators that SnapML lacks.

        max(a, b) is relu(a - b) + b. Convolutions with zeros and ones, which do not round, select one axis of each
        point and copy a point's factor to its three axes.
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
