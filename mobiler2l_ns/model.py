"""The student as a nerfstudio Model: sampler, embedder and network put together, and nothing else learned.

B: batch; h, w: ray grid; s: upscale factor.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Callable, Dict, List, Literal, Optional, Tuple, Type

import torch
import torch.nn.functional as F
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.models.base_model import Model, ModelConfig
from nerfstudio.utils import colormaps, comms
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from mobiler2l_ns.cameras import (
    bundle_camera,
    cell_centres,
    crop_camera,
    pinhole_rays,
    ray_lengths,
    sphere_bounds,
    student_rays,
    student_view,
    to_camera_size,
)
from mobiler2l_ns.data.photos import on_white
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.geometry import up_direction
from mobiler2l_ns.student.coverage import coverage_ratio, trained_extent
from mobiler2l_ns.student.crop_box import background_colour, crop
from mobiler2l_ns.student.embedder import Embedder, to_network_input
from mobiler2l_ns.student.network import MobileR2LNetwork, NetworkConfig, Outputs, check_network
from mobiler2l_ns.student.sampler import Sampler
from mobiler2l_ns.student.viewing_range import NUM_VIEWPOINTS
from mobiler2l_ns.training.losses import alpha_loss, depth_loss, rgb_loss
from mobiler2l_ns.training.metrics import error_map, image_metrics, patch_errors, psnr

UNBOUNDED_DEPTH = 1e9
MAX_RAYS = 1 << 16  # R2L's 1008 codes of as many rays take 0.26 GB
FADE_MARGIN = (
    0.05  # of the trained extent: where a picture begins to fade beyond it, and ends another such part farther
)


@dataclass
class MobileR2LModelConfig(ModelConfig):
    """The student."""

    _target: Type = field(default_factory=lambda: MobileR2LModel)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Shape of the network."""
    outputs: Outputs = "rgbad"
    """What the student predicts: colours, accumulation (alpha), distance (depth)."""
    alpha_weight: float = 0.1
    """Weight of the accumulation's squared error beside that of the colours."""
    depth_weight: float = 0.1
    """Weight of the depth's squared error, in units of the range from near to far (of z, or of 1/z if the points are
    unbounded), beside that of the colours."""
    num_points: int = 8
    """K: points on each ray."""
    points: Literal["auto", "bounded", "unbounded"] = "auto"
    """Where the points lie. bounded: even in z between near and far; unbounded: even in 1/z, and the far ones drawn
    together. auto: bounded where the photos have a transparent background (an object), else unbounded."""
    num_frequencies: int = 6
    """L: octaves of the positional code."""
    jitter_points: bool = False
    """Move the points at random along their rays while training, as published."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network while it trains; auto: bf16 where the device computes in it. Weights, evaluation and
    the exported files are always fp32."""
    export_when_done: bool = True
    """Write the files for onnxruntime and Lens Studio to RUN/export when training ends."""
    enable_collider: bool = False
    """A light field samples between its own near and far planes."""


class MobileR2LModel(Model):
    """A neural light field: one network pass from a grid of rays to an image."""

    config: MobileR2LModelConfig

    def populate_modules(self):
        """Builds sampler, embedder and network; the camera comes from the datamanager, or later from a checkpoint."""
        super().populate_modules()
        self.config.network = replace(self.config.network, out_channels=len(self.config.outputs))
        try:
            check_network(self.config.network)
        except ValueError as error:
            raise UserError(f"{error}: change the --pipeline.model.network options.") from None
        camera = self.kwargs["metadata"].get("student_camera")
        if self.config.points == "auto":
            # What auto resolved to goes into config.yml; a run from before there was a choice is bounded.
            self.config.points = (camera or {}).get("points", "bounded")
        self.sampler = Sampler(self.config.num_points, unbounded=self.config.points == "unbounded")
        self.embedder = Embedder(self.config.num_frequencies)
        in_channels = 3 * self.config.num_points * self.embedder.num_codes
        # 1x1 convolutions are matrix products of channels-last tensors: up to twice as fast, on CPU and GPU alike.
        self.network = MobileR2LNetwork(in_channels, self.config.network).to(memory_format=torch.channels_last)
        self.register_buffer("focus", torch.zeros(3))
        self.register_buffer("focus_depths", torch.tensor([-UNBOUNDED_DEPTH, UNBOUNDED_DEPTH]))
        self.register_buffer("viewpoints", torch.zeros(NUM_VIEWPOINTS, 3, 4))
        self.viewer_outputs: Optional[Callable[..., Dict[str, Tensor]]] = None  # set by the pipeline
        if camera is not None:
            s = self.upscale
            self.sampler.set_camera(
                camera["height"] // s, camera["width"] // s, camera["focal"] / s, camera["near"], camera["far"]
            )
            if self.sampler.unbounded:
                self.sampler.set_contraction(*camera["contraction"])
            if camera.get("focus") is not None:
                self.focus.copy_(torch.as_tensor(camera["focus"]))
                self.focus_depths.copy_(torch.tensor(camera["focus_depths"]))
            if camera.get("viewpoints") is not None:
                self.viewpoints.copy_(camera["viewpoints"])

    @property
    def upscale(self) -> int:
        """s: pixels a ray-grid cell."""
        return self.config.network.upscale

    @property
    def focal(self) -> float:
        """Focal length of the student's picture in pixels."""
        return float(self.sampler.focal) * self.upscale

    @property
    def size(self) -> Tuple[int, int]:
        """(H, W) of the picture that the exported files produce."""
        h, w = self.sampler.grid.tolist()
        return h * self.upscale, w * self.upscale

    @property
    def has_focus(self) -> bool:
        """Whether the student was trained on an orbit, which goes around ``focus``."""
        return float(self.focus_depths[1]) < UNBOUNDED_DEPTH

    def get_param_groups(self) -> Dict[str, List[torch.nn.Parameter]]:
        """``matrices``: weights of all convolutions but the last; ``others``: all else."""
        groups = {"matrices": [], "others": []}
        for name, parameter in self.network.named_parameters():
            groups["matrices" if is_matrix(name, parameter) else "others"].append(parameter)
        return groups

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> List[TrainingCallback]:
        """Exports when training ends; a training that is done ends well even where that cannot be."""

        def export(step: int) -> None:
            if self.config.export_when_done and comms.is_main_process():
                from mobiler2l_ns.export.command import ExportMobileR2L
                from mobiler2l_ns.export.onnx_files import check_size

                try:
                    check_size(self)
                    base_dir = training_callback_attributes.trainer.base_dir
                    ExportMobileR2L(base_dir / "config.yml", base_dir / "export", num_views=0).export()
                except UserError as error:
                    CONSOLE.print(f"No export: {error}")

        return [TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN], export)]

    def copy_to_cpu(self) -> "MobileR2LModel":
        """A copy with the present weights, in eval mode, that training and viewer do not touch."""
        twin = self.config.setup(scene_box=self.scene_box, num_train_data=self.num_train_data, metadata={})
        twin.load_state_dict({name: value.cpu() for name, value in self.state_dict().items()})
        return twin.eval().requires_grad_(False)

    # -- rendering ------------------------------------------------------------------------------------------------

    def render_rays(
        self, rays_o: Float[Tensor, "B h w 3"], rays_d: Float[Tensor, "B h w 3"], depths: Optional[Tensor] = None
    ) -> Float[Tensor, "B C H W"]:
        """The picture that belongs to a grid of rays (see cameras.py), at depths (K,) or the even ones."""
        if self.upscale > 1:
            return self._render_grid(rays_o, rays_d, depths)
        # Rays that no super-resolution mixes fit in any grid. One column is faster than a batch of single cells, and a
        # picture of 800 x 800 rays, too large for one pass, may be cut anywhere.
        b, h, w, _ = rays_d.shape
        limit = b * h * w if self.training else MAX_RAYS
        parts = zip(rays_o.reshape(1, -1, 1, 3).split(limit, dim=1), rays_d.reshape(1, -1, 1, 3).split(limit, dim=1))
        column = torch.cat([self._render_grid(*part, depths) for part in parts], dim=2)
        return column.reshape(-1, b, h, w).transpose(0, 1)

    def _render_grid(self, rays_o: Tensor, rays_d: Tensor, depths: Optional[Tensor]) -> Tensor:
        b, h, w, _ = rays_d.shape
        if self.training and self.config.jitter_points:
            depths = self.sampler.jittered_depths(rays_d)
        points = self.sampler.points(rays_o, rays_d, depths)
        codes = self.embedder(points.reshape(b, 1, h * w, -1))
        grid = to_network_input(codes, h, w).contiguous(memory_format=torch.channels_last)
        with self._arithmetic():
            return self.network(grid).to(codes.dtype)

    def _arithmetic(self):
        precision = self.config.precision
        if not self.training or precision == "fp32" or (precision == "auto" and not computes_in_bf16(self.device)):
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def zoom(self, c2w: Float[Tensor, "3 4"]) -> Tuple[Tensor, float]:
        """How a camera that is nearer or farther than those of an orbit is brought back to what was trained.

        In free space a ray shows the same from wherever it starts. So the points slide along the rays to where they
        are for a camera in the orbit's shell, and the grid is laid out so that a cell covers as much of the content.

        Returns:
            What is added to the points' depths, and what the grid's focal length is multiplied with. 0 and 1 for
            cameras in the shell, and for students of a path.
        """
        depth = (self.focus - c2w[:, 3]) @ -c2w[:, 2]
        trained = depth.clamp(self.focus_depths[0], self.focus_depths[1])
        return depth - trained, float((depth / trained).clamp(0.1, 4.0)) if depth != trained else 1.0

    def get_outputs(self, ray_bundle: RayBundle) -> Dict[str, Tensor]:
        """``rgb`` (B, H, W, 3) for a bundle (B, h, w) of rays through cell centres, as in training.

        A student that has them also returns ``accumulation`` and ``depth`` (B, H, W, 1), the latter as it learns it:
        from 0 at the near plane to 1 at the far plane, even in z or in 1/z as the points are. A bundle (H, W) is a
        camera's picture (ns-export pointcloud).

        Raises:
            UserError: The rays are not a grid (some nerfstudio exports cast single rays).
        """
        if len(ray_bundle.shape) != 3:
            return self.get_outputs_for_camera_ray_bundle(ray_bundle)
        return split_channels(self.render_rays(*student_rays(ray_bundle)).permute(0, 2, 3, 1))

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: Optional[OrientedBox] = None) -> Dict[str, Tensor]:
        """``rgb`` (H, W, 3), ``accumulation`` and ``depth`` (H, W, 1) of a camera of any size and field of view.

        Depth is the distance along the ray, as nerfacto's: to what is seen, or, where accumulation is at most a half,
        to the far plane. A student without those heads is opaque and lies there. In nerfstudio's viewer ``error`` and
        ``teacher`` join them, see viewer_controls.py.
        """
        camera = camera.to(self.device)
        shift, magnification = self.zoom(camera.camera_to_worlds[0])
        outputs = split_channels(self._render_covered(camera, self.focal * magnification, self.sampler.depths + shift))
        rgb = outputs["rgb"]
        whole = outputs.get("accumulation", torch.ones_like(rgb[..., :1]))
        far = self._distance(torch.ones_like(whole), camera, shift)
        depth = self._distance(outputs["depth"], camera, shift) if "depth" in outputs else None
        rgb, accumulation = crop(rgb, whole, depth, camera, obb_box)
        depth = far if depth is None else torch.where(accumulation > 0.5, depth, far)
        outputs = {"rgb": rgb, "accumulation": accumulation, "depth": depth}
        return outputs if self.viewer_outputs is None else {**outputs, **self.viewer_outputs(camera, obb_box, rgb)}

    def _render_covered(self, camera: Cameras, focal: float, depths: Tensor) -> Float[Tensor, "H W C"]:
        """A camera's picture, with nothing on white along rays that no training picture of an orbit contained.

        The network runs for the part of the image that such rays do not fill, which is all of it for cameras that the
        student was trained on.
        """
        if not (self.has_focus and bool(self.viewpoints.any())):
            return self._picture(camera, focal, depths)
        extent = trained_extent(self.viewpoints, self.focus, self.size, self.focal)
        cell = math.ceil(self.upscale * float(camera.fy) / focal)  # as far as a cell is felt
        top, left, height, width = sphere_bounds(
            camera, self.focus, float(extent.norm()) * (1 + 2 * FADE_MARGIN), margin=cell
        )
        if (height, width) == (int(camera.height), int(camera.width)):
            return self._picture(camera, focal, depths, extent)
        picture = self.focus.new_zeros(int(camera.height), int(camera.width), max(4, self.config.network.out_channels))
        picture[..., :3] = 1
        if height > 0 and width > 0:
            part = self._picture(crop_camera(camera, top, left, height, width), focal, depths, extent)
            patch = picture[top : top + height, left : left + width]
            patch[..., 3] = 1
            patch[..., : part.shape[-1]] = part
        return picture

    def _picture(
        self, camera: Cameras, focal: float, depths: Tensor, extent: Optional[Tensor] = None
    ) -> Float[Tensor, "H W C"]:
        """A camera's picture; where alpha is small, depth means nothing.

        Args:
            camera: The camera (1,).
            focal: Focal length at which the grid of rays is laid out, in the student's pixels.
            depths: z of the points on a ray.
            extent: How far from the focus, to the side and upwards, rays are known to the student.
        """
        view = student_view(camera, focal, self.upscale)
        picture = self.render_rays(*student_rays(view.rays), depths)[0]
        if extent is not None:
            picture = self._mask_uncovered(picture, view.rays, extent)
        picture[4:] *= picture[3:4]  # so that resizing does not mix the object's depth with the background's
        picture = to_camera_size(picture, view)
        picture[..., 4:] /= picture[..., 3:4].clamp_min(1e-6)
        return picture

    def _mask_uncovered(self, picture: Float[Tensor, "C H W"], rays: RayBundle, extent: Tensor) -> Tensor:
        up = up_direction(self.viewpoints)
        parts = coverage_ratio(rays.origins, rays.directions, self.focus, up, extent)
        if bool((parts <= 1 + FADE_MARGIN).all()):
            return picture
        parts = F.interpolate(parts.permute(0, 3, 1, 2), size=picture.shape[1:], mode="bilinear")[0]
        known = (2 - (parts.amax(dim=0, keepdim=True) - 1) / FADE_MARGIN).clamp(0, 1)
        alpha = picture[3:4] * known if len(picture) > 3 else known
        return torch.cat([1 - known * (1 - picture[:3]), alpha, picture[4:]])

    def _distance(self, depth: Float[Tensor, "H W 1"], camera: Cameras, shift: Tensor) -> Float[Tensor, "H W 1"]:
        """Distance along the ray from depth in 0..1: the only place where the student's depth becomes nerfstudio's.

        Points that slid along their rays (see ``zoom``) are that much farther away than the student believes.
        """
        z = self.sampler.range.denormalize(depth) + shift
        return z.clamp_min(0) * ray_lengths(camera)

    @torch.no_grad()
    def render_pose(self, c2w: Float[Tensor, "3 4"]) -> Float[Tensor, "H W 3"]:
        """The colours that a pose sees through the student's own pinhole, as its exported files render them."""
        height, width = self.size
        h, w = self.sampler.grid.tolist()
        coords = cell_centres(h, w, (self.upscale, self.upscale), c2w.device)[None]
        rays = pinhole_rays(c2w[None], self.focal, height, width, coords)
        return self.render_rays(*student_rays(rays))[0, :3].permute(1, 2, 0)

    def get_outputs_for_camera_ray_bundle(self, camera_ray_bundle: RayBundle) -> Dict[str, Tensor]:
        """What ``get_outputs_for_camera`` gives for the pinhole camera that a bundle (H, W) of rays belongs to.

        Where nothing is seen, depth is far beyond any scene, so that `ns-export tsdf` carves that space away.

        Raises:
            UserError: The rays are those of no pinhole, such as a texture's.
        """
        outputs = self.get_outputs_for_camera(bundle_camera(camera_ray_bundle))
        outputs["depth"] = outputs["depth"].where(outputs["accumulation"] > 0.5, UNBOUNDED_DEPTH)
        return outputs

    def get_rgba_image(self, outputs: Dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """(H, W, 4) straight-alpha picture: the colours without the background that they were rendered on."""
        rgb, accumulation = outputs[output_name], outputs["accumulation"]
        colours = (rgb - background_colour(rgb) * (1 - accumulation)) / accumulation.clamp_min(1e-6)
        return torch.cat([colours.clamp(0, 1), accumulation], dim=-1)

    # -- training and evaluation ----------------------------------------------------------------------------------

    def get_loss_dict(self, outputs, batch, metrics_dict=None) -> Dict[str, Tensor]:
        """The losses of the colours, and of alpha and depth where student and batch have them.

        Patches without alpha or depth count as if they were right, so that the mean over several processes is the
        batch's, however the photos are spread over them.
        """
        batch = {name: batch[name].to(self.device) for name in ("image", "alpha", "depth") if name in batch}
        num_patches = len(batch["image"])
        losses = {"rgb_loss": rgb_loss(outputs["rgb"], batch["image"])}
        if "accumulation" in outputs and "alpha" in batch:
            m = len(batch["alpha"])
            weight = self.config.alpha_weight * m / num_patches
            losses["alpha_loss"] = weight * alpha_loss(outputs["accumulation"][:m], batch["alpha"])
        if "depth" in outputs and "depth" in batch:
            m = len(batch["depth"])
            weight = self.config.depth_weight * m / num_patches
            losses["depth_loss"] = weight * depth_loss(outputs["depth"][:m], batch["depth"], batch["alpha"][:m])
        return losses

    def get_metrics_dict(self, outputs, batch) -> Dict[str, Tensor]:
        """PSNR of the batch, and against its teacher views and its photos alone where it says which they are.

        They are tensors: a Python number would make each step wait for the GPU.
        """
        errors = patch_errors(outputs["rgb"].detach(), batch["image"].to(self.device))
        parts = {"psnr": errors}
        if "sources" in batch:
            parts["psnr_to_teacher"], parts["psnr_to_photos"], _ = errors.split(batch["sources"])
        return {name: -10 * torch.log10(part.mean()) for name, part in parts.items() if len(part)}

    def get_image_metrics_and_images(self, outputs, batch) -> Tuple[Dict[str, float], Dict[str, Tensor]]:
        """Metrics against a photo, and pictures side by side: photo | student | error, brighter being worse.

        Where the batch has the teacher's picture, it stands beside the student's, and two errors tell what is left to
        learn at all from what is left to learn from the teacher: photo | student | teacher | student's distance from
        the photo | and from the teacher. Alpha and depth are pictures of their own, in colours.
        """
        photo, student = on_white(batch["image"].to(self.device)), outputs["rgb"]
        metrics = image_metrics(student, photo)
        row, targets = [photo, student], [photo]
        if "teacher" in batch:
            teacher = batch["teacher"].to(self.device)
            metrics.update(psnr_teacher=psnr(teacher, photo), psnr_to_teacher=psnr(student, teacher))
            row, targets = [photo, student, teacher], [photo, teacher]
        images = {"img": torch.cat([*row, *(error_map(student, target) for target in targets)], dim=1)}
        if self.config.outputs != "rgb":
            images["accumulation"] = colormaps.apply_colormap(outputs["accumulation"])
        if self.config.outputs == "rgbad":
            images["depth"] = colormaps.apply_depth_colormap(outputs["depth"], outputs["accumulation"])
        return metrics, images


def split_channels(picture: Float[Tensor, "*batch H W C"]) -> Dict[str, Tensor]:
    """The network's channels under nerfstudio's names, as many as there are."""
    parts = {"rgb": picture[..., :3], "accumulation": picture[..., 3:4], "depth": picture[..., 4:5]}
    return {name: part for name, part in parts.items() if part.shape[-1]}


def computes_in_bf16(device: torch.device) -> bool:
    """Whether a device has bf16 arithmetic of its own; emulating it would be slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def is_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    """Whether a parameter maps features to features: every convolution's weight but the last one's, whose rows are the
    colours, alpha and depth."""
    return parameter.ndim >= 2 and not name.startswith("tail.")
