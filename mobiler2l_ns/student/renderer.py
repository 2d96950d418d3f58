"""Renders a student: a camera of any size to a view.

B: batch; h, w: ray grid; s: upscale factor; H, W: pixels of a view; K: points per ray; C: channels of the network, 3
for colours, 4 with alpha, 5 with depth.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Dict, Literal, Optional, Tuple, Union, cast

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from mobiler2l_ns.cameras import (
    cell_centres,
    crop_camera,
    pinhole_rays,
    ray_lengths,
    sphere_bounds,
    student_rays,
    student_view,
    to_camera_size,
)
from mobiler2l_ns.student.coverage import FADE_MARGIN, Coverage
from mobiler2l_ns.student.embedder import Embedder, to_network_input
from mobiler2l_ns.student.network import MobileR2LNetwork
from mobiler2l_ns.student.sampler import Sampler
from mobiler2l_ns.student.surface import SurfaceEmbedder
from mobiler2l_ns.training.arithmetic import computes_in_bf16, full_precision, without_tf32

MAX_RAYS = 1 << 16  # R2L's 1008 codes of as many rays take 0.26 GB
Precision = Literal["auto", "fp32", "bf16"]


class StudentRenderer:
    """Sampler, embedder and network put together. It has no weights of its own and is no module.

    Args:
        sampler: The student's.
        embedder: The student's.
        network: The student's; whether it trains is asked of it.
        coverage: The student's.
        precision: Arithmetic of the network while it trains; auto: bf16 where the device computes in it.
        jitter_points: Move the points at random along their rays while training.
    """

    def __init__(
        self, sampler: Sampler, embedder: Union[Embedder, SurfaceEmbedder], network: MobileR2LNetwork,
        coverage: Coverage, precision: Precision = "auto", jitter_points: bool = False,
    ):  # fmt: skip
        self.sampler, self.embedder, self.network, self.coverage = sampler, embedder, network, coverage
        self.precision, self.jitter_points = precision, jitter_points

    @property
    def upscale(self) -> int:
        """s."""
        return self.network.config.upscale

    @property
    def focal(self) -> float:
        """Focal length of the student's own pinhole camera in pixels."""
        return float(self.sampler.focal) * self.upscale

    @property
    def size(self) -> Tuple[int, int]:
        """(H, W) of the student's own pinhole camera, which the exported files render."""
        h, w = self.sampler.grid.tolist()
        return h * self.upscale, w * self.upscale

    def render_rays(
        self, rays_o: Float[Tensor, "B h w 3"], rays_d: Float[Tensor, "B h w 3"],
        depths: Optional[Float[Tensor, "K"]] = None,
    ) -> Float[Tensor, "B C H W"]:  # fmt: skip
        """The view that belongs to a grid of rays (see cameras.py), with points at given depths or the student's."""
        return self.render_with_surface(rays_o, rays_d, depths)[0]

    def render_with_surface(
        self, rays_o: Float[Tensor, "B h w 3"], rays_d: Float[Tensor, "B h w 3"],
        depths: Optional[Float[Tensor, "K"]] = None,
    ) -> Tuple[Float[Tensor, "B C H W"], Optional[Float[Tensor, "B R1 h w"]]]:  # fmt: skip
        """The view of a grid of rays, and the normalised depths of the surface that each ray is predicted to meet.

        They are those of ``SurfaceEmbedder.predict``, and None for a student without a surface code.
        """
        if self.upscale > 1:
            return self._render_grid(rays_o, rays_d, depths)
        # Without super-resolution rays do not mix, so they fit in any grid. One column is faster than a batch of single
        # cells, and a view of 800 x 800 rays, too large for one pass, may be cut anywhere.
        b, h, w, _ = rays_d.shape
        limit = b * h * w if self.network.training else MAX_RAYS
        parts = zip(rays_o.reshape(1, -1, 1, 3).split(limit, dim=1), rays_d.reshape(1, -1, 1, 3).split(limit, dim=1))
        views, surfaces = zip(*(self._render_grid(*part, depths) for part in parts))
        columns = torch.cat(views, dim=2), None if surfaces[0] is None else torch.cat(surfaces, dim=2)
        view, surface = (None if c is None else c.reshape(-1, b, h, w).transpose(0, 1) for c in columns)
        return cast(Tensor, view), surface

    def _render_grid(
        self, rays_o: Float[Tensor, "B h w 3"], rays_d: Float[Tensor, "B h w 3"], depths: Optional[Tensor]
    ) -> Tuple[Float[Tensor, "B C H W"], Optional[Float[Tensor, "B R1 h w"]]]:
        b, h, w, _ = rays_d.shape
        if self.network.training and self.jitter_points:
            depths = self.sampler.jittered_depths(rays_d)
        with full_precision(rays_d.device):  # the highest octave multiplies an error of a point by hundreds
            points = self.sampler.points(rays_o, rays_d, depths)
            if isinstance(self.embedder, SurfaceEmbedder):
                grid, surface = self.embedder.encode_with_depth(points.permute(0, 3, 1, 2))
            else:
                grid, surface = to_network_input(self.embedder(points.reshape(b, 1, h * w, -1)), h, w), None
        grid = grid.contiguous(memory_format=torch.channels_last)
        with self._arithmetic(grid.device):
            return self.network(grid).to(grid.dtype), surface

    def _arithmetic(self, device: torch.device) -> AbstractContextManager:
        precision = self.precision
        if not self.network.training:
            return without_tf32()
        if precision == "fp32" or (precision == "auto" and not computes_in_bf16(device)):
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)

    def render_camera(self, camera: Cameras) -> Dict[str, Float[Tensor, "H W _"]]:
        """``rgb`` (H, W, 3) on white, and as the student has them ``accumulation`` and ``depth`` (H, W, 1).

        Depth is the distance along the ray. ``far`` (H, W, 1) is that of the far plane.

        Args:
            camera: A camera (1,) of any size and field of view.
        """
        shift, magnification = self.coverage.zoom(camera.camera_to_worlds[0])
        view = self._render_covered(camera, self.focal * magnification, self.sampler.depths + shift)
        outputs = split_channels(view)
        lengths = ray_lengths(camera)
        outputs["far"] = self._distance(torch.ones_like(lengths), lengths, shift)
        if "depth" in outputs:
            outputs["depth"] = self._distance(outputs["depth"], lengths, shift)
        return outputs

    def render_pose(self, c2w: Float[Tensor, "3 4"]) -> Float[Tensor, "H W 3"]:
        """The colours that a pose sees through the student's own pinhole camera, as the exported files render them."""
        height, width = self.size
        h, w = self.sampler.grid.tolist()
        coords = cell_centres(h, w, (self.upscale, self.upscale), c2w.device)[None]
        rays = pinhole_rays(c2w[None], self.focal, height, width, coords)
        return self.render_rays(*student_rays(rays))[0, :3].permute(1, 2, 0)

    def _render_covered(self, camera: Cameras, focal: float, depths: Float[Tensor, "K"]) -> Float[Tensor, "H W C"]:
        """A camera's view, with nothing on white along rays that no training view of an orbit contained.

        The network runs for the part of the image that such rays do not fill, which is all of it for cameras that the
        student was trained on.
        """
        coverage = self.coverage
        if not coverage.is_known:
            return self._render_view(camera, focal, depths)
        extent = coverage.extent(self.size, self.focal)
        cell = math.ceil(self.upscale * float(camera.fy) / focal)  # a cell's colour reaches this many pixels
        radius = float(extent.norm()) * (1 + 2 * FADE_MARGIN)
        top, left, height, width = sphere_bounds(camera, coverage.focus, radius, margin=cell)
        full = int(camera.height), int(camera.width)
        if (height, width) == full:
            return self._render_view(camera, focal, depths, extent)
        view = coverage.focus.new_zeros(*full, max(4, self.network.config.out_channels))
        view[..., :3] = 1
        if height > 0 and width > 0:
            part = self._render_view(crop_camera(camera, top, left, height, width), focal, depths, extent)
            inner = view[top : top + height, left : left + width]
            inner[..., 3] = 1
            inner[..., : part.shape[-1]] = part
        return view

    def _render_view(
        self, camera: Cameras, focal: float, depths: Float[Tensor, "K"], extent: Optional[Float[Tensor, "2"]] = None
    ) -> Float[Tensor, "H W C"]:
        """A camera's view; depth is meaningless where alpha is small.

        Args:
            camera: The camera (1,).
            focal: Focal length at which the grid of rays is laid out, in the student's pixels.
            depths: z of the points on a ray.
            extent: How far from the focus, to the side and upwards, rays are known to the student.
        """
        grid = student_view(camera, focal, self.upscale)
        view = self.render_rays(*student_rays(grid.rays), depths)[0]
        if extent is not None:
            view = self.coverage.mask_uncovered(view, grid.rays, extent)
        view[4:] *= view[3:4]  # so that resizing does not mix the object's depth with the background's
        view = to_camera_size(view, grid)
        view[..., 4:] /= view[..., 3:4].clamp_min(1e-6)
        return view

    def _distance(
        self, depth: Float[Tensor, "H W 1"], lengths: Float[Tensor, "H W 1"], shift: Float[Tensor, ""]
    ) -> Float[Tensor, "H W 1"]:
        """Distance along the ray from normalised depth: the only place where depth becomes nerfstudio's.

        Points that slid along their rays (see ``Coverage.zoom``) are that much farther away than the student believes.
        """
        z = self.sampler.range.denormalize(depth) + shift
        return z.clamp_min(0) * lengths


def split_channels(view: Float[Tensor, "*batch H W C"]) -> Dict[str, Float[Tensor, "*batch H W _"]]:
    """The network's channels under nerfstudio's names, as many as there are."""
    parts = {"rgb": view[..., :3], "accumulation": view[..., 3:4], "depth": view[..., 4:5]}
    return {name: part for name, part in parts.items() if part.shape[-1]}
