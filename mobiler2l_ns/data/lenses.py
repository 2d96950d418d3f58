"""Directions of the rays through photos, kept for each lens.

nerfstudio inverts lens distortion by iteration, three times for each ray. For the few rays of a batch that takes longer
than all else that draws it. The photos of a capture mostly have one lens, so its directions are kept.

N: cameras; L: lenses; H, W: pixels of a photo; B: grids; h, w: rays of a grid.
"""

from functools import cached_property

import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from mobiler2l_ns.cameras import cell_centres, is_pinhole, nerfstudio_rays, rays_at, student_rays

MAX_LENSES = 4  # whose directions are kept; photos may have a lens each


class Lenses:
    """The lenses of cameras of one size.

    Args:
        cameras: Cameras (N,) of H x W pixels.
        offset: Where in a pixel the rays are: 0.5 for its centre, 0 for its top left corner.

    Attributes:
        number: The number of each camera's lens.
        count: L.
    """

    def __init__(self, cameras: Cameras, offset: float = 0.5):
        self.cameras, self.offset = cameras, offset
        parts = [cameras.fx, cameras.fy, cameras.cx, cameras.cy, cameras.camera_type, cameras.distortion_params]
        lenses = torch.cat([part.double() for part in parts if part is not None], dim=-1)
        distinct, self.number = torch.unique(lenses, dim=0, return_inverse=True)
        self.count = len(distinct)

    @property
    def are_kept(self) -> bool:
        """Whether there are few enough lenses to keep their directions."""
        return self.count <= MAX_LENSES

    @cached_property
    def are_pinholes(self) -> bool:
        """Whether no lens has distortion."""
        return is_pinhole(self.cameras)

    @property
    def nbytes(self) -> int:
        """Bytes that the directions take."""
        pixels = int(self.cameras.height[0]) * int(self.cameras.width[0])
        return self.count * 3 * 4 * pixels if self.are_kept else 0

    def directions(self, indices: Int[Tensor, "B"]) -> Float[Tensor, "B 3 H W"]:
        """Directions of unit depth through all pixels of cameras, in their own axes.

        Args:
            indices: The cameras.
        """
        return self._kept[self.number[indices]] if self.are_kept else self._directions(indices)

    def rays(self, indices: Int[Tensor, "B"], coords: Float[Tensor, "B h w 2"]) -> RayBundle:
        """The rays (B, h, w) of ``rays_at``; ``pixel_area`` leaves lens distortion out.

        Args:
            indices: Index of each grid's camera.
            coords: Pixel coordinates (y, x), whose fractions are ``offset``.
        """
        if self.are_kept:
            y, x = coords.long().unbind(-1)
            local = self._kept[self.number[indices][:, None, None], :, y, x]
        elif self.are_pinholes:
            local = self._pinhole_directions(indices, coords)
        else:
            return rays_at(self.cameras, indices, coords)
        pose = self.cameras.camera_to_worlds[indices][:, None, None]
        directions = (pose[..., :3] @ local[..., None])[..., 0]
        area = 1 / (self.cameras.fx * self.cameras.fy)[indices][:, None, None]
        return nerfstudio_rays(pose[..., 3].expand_as(directions), directions, area)

    @cached_property
    def _kept(self) -> Float[Tensor, "L 3 H W"]:
        numbers = self.number.tolist()
        return self._directions(self.number.new_tensor([numbers.index(lens) for lens in range(self.count)]))

    def _directions(self, indices: Int[Tensor, "B"]) -> Float[Tensor, "B 3 H W"]:
        height, width = int(self.cameras.height[0]), int(self.cameras.width[0])
        coords = cell_centres(height, width, (1, 1), indices.device) - 0.5 + self.offset
        coords = coords.expand(len(indices), -1, -1, -1)
        if self.are_pinholes:
            return self._pinhole_directions(indices, coords).permute(0, 3, 1, 2)
        cameras = self.cameras[indices]
        cameras.camera_to_worlds = torch.eye(3, 4, device=indices.device).repeat(len(indices), 1, 1)
        rays = rays_at(cameras, torch.arange(len(indices), device=indices.device), coords)
        return student_rays(rays)[1].permute(0, 3, 1, 2)

    def _pinhole_directions(
        self, indices: Int[Tensor, "B"], coords: Float[Tensor, "B h w 2"]
    ) -> Float[Tensor, "B h w 3"]:
        lens = self.cameras.fx, self.cameras.fy, self.cameras.cx, self.cameras.cy
        fx, fy, cx, cy = (number[indices][:, None] for number in lens)
        y, x = coords.unbind(-1)
        return torch.stack([(x - cx) / fx, (cy - y) / fy, -torch.ones_like(x)], dim=-1)
