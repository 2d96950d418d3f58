"""The student as a nerfstudio Model: sampler, embedder, network and coverage put together.

B: batch; h, w: ray grid; H, W: pixels of a view.
"""

from dataclasses import dataclass, field, replace
from typing import Callable, Dict, List, Literal, Optional, Tuple, Type

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.models.base_model import Model, ModelConfig
from nerfstudio.utils import colormaps
from torch import Tensor

from mobiler2l_ns.cameras import bundle_camera, student_rays
from mobiler2l_ns.data.photos import on_white
from mobiler2l_ns.data.student_camera import StudentCamera
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.student.coverage import UNBOUNDED_DEPTH, Coverage
from mobiler2l_ns.student.crop_box import background_colour, crop
from mobiler2l_ns.student.embedder import Embedder
from mobiler2l_ns.student.network import MobileR2LNetwork, NetworkConfig, Outputs, check_network
from mobiler2l_ns.student.renderer import Precision, StudentRenderer, split_channels
from mobiler2l_ns.student.sampler import Sampler
from mobiler2l_ns.student.surface import SurfaceEmbedder
from mobiler2l_ns.training.losses import alpha_loss, depth_loss, rgb_loss, structure_loss, surface_loss
from mobiler2l_ns.training.metrics import error_map, image_metrics, patch_errors, psnr


@dataclass
class MobileR2LModelConfig(ModelConfig):
    """The student."""

    _target: Type = field(default_factory=lambda: MobileR2LModel)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Shape of the network."""
    outputs: Outputs = "rgbad"
    """rgb: the student predicts colours. rgba: colours and accumulation. rgbad: colours, accumulation and depth."""
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
    surface_octaves: int = 0
    """Octaves of the surface code: the student predicts where a ray meets a surface, and its network gets the code of
    that point and the plain coordinates of the K points. 0: no surface code, as published; the network gets the codes
    of the K points."""
    surface_width: int = 64
    """Channels of the small network that predicts the surface."""
    surface_refinements: int = 0
    """R: how often the predicted surface is refined by the code of the point itself, which all views share."""
    surface_weight: float = 1.0
    """Weight of the squared error of the predicted surface's depth, in the units of the depth's, beside that of the
    colours."""
    structure_weight: float = 0.0
    """Weight of 1 - SSIM (of small windows) beside the colours' squared error: sharper details."""
    jitter_points: bool = False
    """Move the points at random along their rays while training, as published."""
    precision: Precision = "auto"
    """Arithmetic of the network while it trains; auto: bf16 where the device computes in it. On NVIDIA GPUs,
    training in fp32 may use TF32. Weights, evaluation and the exported files are always fp32."""
    export_when_done: bool = True
    """Write the files for onnxruntime and Lens Studio to RUN/export when training ends."""
    enable_collider: bool = False
    """A light field samples between its own near and far planes."""


class MobileR2LModel(Model):
    """A neural light field: one network pass from a grid of rays to a view.

    Attributes:
        viewer_outputs: Adds outputs in nerfstudio's viewer; set by the pipeline.
    """

    config: MobileR2LModelConfig

    def populate_modules(self):
        """Builds the student; its camera comes from the datamanager, or later from a checkpoint."""
        super().populate_modules()
        config = self.config
        config.network = replace(config.network, out_channels=len(config.outputs))
        try:
            check_network(config.network)
        except ValueError as error:
            raise UserError(f"{error}: change the --pipeline.model.network options.") from None
        camera: Optional[StudentCamera] = self.kwargs["metadata"].get("student_camera")
        if config.points == "auto":
            # What auto resolved to is saved in config.yml.
            config.points = camera.points if camera is not None else "bounded"
        self.sampler = Sampler(config.num_points, unbounded=config.points == "unbounded")
        if config.surface_octaves > 0:
            if config.jitter_points:
                raise UserError(
                    "a surface code needs the K points at their own depths: pass --pipeline.model.jitter-points False "
                    "or --pipeline.model.surface-octaves 0."
                )
            self.embedder = SurfaceEmbedder(
                config.num_points,
                config.num_frequencies,
                config.surface_octaves,
                config.surface_width,
                config.surface_refinements,
            ).to(memory_format=torch.channels_last)
            in_channels = self.embedder.out_channels
        else:
            self.embedder = Embedder(config.num_frequencies)
            in_channels = 3 * config.num_points * self.embedder.num_codes
        # 1x1 convolutions are matrix products of channels-last tensors: up to twice as fast, on CPU and GPU alike.
        self.network = MobileR2LNetwork(in_channels, config.network).to(memory_format=torch.channels_last)
        self.coverage = Coverage()
        self.renderer = StudentRenderer(
            self.sampler, self.embedder, self.network, self.coverage, config.precision, config.jitter_points
        )
        self.viewer_outputs: Optional[Callable[..., Dict[str, Tensor]]] = None
        if camera is not None:
            self.set_camera(camera)

    def set_camera(self, camera: StudentCamera) -> None:
        """Fills the buffers of sampler and coverage."""
        s = self.upscale
        self.sampler.set_camera(camera.height // s, camera.width // s, camera.focal / s, camera.near, camera.far)
        if self.sampler.unbounded and camera.cube_centre is not None:
            self.sampler.set_contraction(camera.cube_centre, camera.cube_radius)
        if camera.focus is not None and camera.focus_depths is not None:
            self.coverage.set_orbit(camera.focus, camera.focus_depths)
        if camera.viewpoints is not None:
            self.coverage.viewpoints.copy_(camera.viewpoints)

    @property
    def upscale(self) -> int:
        """s: pixels a ray-grid cell."""
        return self.renderer.upscale

    @property
    def focal(self) -> float:
        """Focal length in pixels of the student's own pinhole camera."""
        return self.renderer.focal

    @property
    def size(self) -> Tuple[int, int]:
        """(H, W) of the view that the exported files render."""
        return self.renderer.size

    def get_param_groups(self) -> Dict[str, List[torch.nn.Parameter]]:
        """``matrices``: weights of all convolutions but the network's last; ``others``: all else."""
        groups = {"matrices": [], "others": []}
        for name, parameter in (*self.embedder.named_parameters(), *self.network.named_parameters()):
            groups["matrices" if is_matrix(name, parameter) else "others"].append(parameter)
        return groups

    def copy_to_cpu(self) -> "MobileR2LModel":
        """A copy with the present weights, in eval mode, that training and viewer do not touch."""
        twin = self.config.setup(scene_box=self.scene_box, num_train_data=self.num_train_data, metadata={})
        twin.load_state_dict({name: value.cpu() for name, value in self.state_dict().items()})
        return twin.eval().requires_grad_(False)

    # -- rendering ------------------------------------------------------------------------------------------------

    def get_outputs(self, ray_bundle: RayBundle) -> Dict[str, Tensor]:
        """``rgb`` (B, H, W, 3) for a bundle (B, h, w) of rays through cell centres, as in training.

        A student that has them also returns ``accumulation`` and ``depth`` (B, H, W, 1), the latter normalised: 0 at
        the near plane, 1 at the far plane. One with a surface code also returns ``surface_depth`` (B, h, w, 1 + R)
        in the same units. A bundle (H, W) is a camera's view (ns-export pointcloud).

        Raises:
            UserError: The rays are not a grid (some nerfstudio exports cast single rays).
        """
        if len(ray_bundle.shape) != 3:
            return self.get_outputs_for_camera_ray_bundle(ray_bundle)
        view, surface = self.renderer.render_with_surface(*student_rays(ray_bundle))
        outputs = split_channels(view.permute(0, 2, 3, 1))
        return outputs if surface is None else {**outputs, "surface_depth": surface.permute(0, 2, 3, 1)}

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: Optional[OrientedBox] = None) -> Dict[str, Tensor]:
        """``rgb`` (H, W, 3), ``accumulation`` and ``depth`` (H, W, 1) of a camera of any size and field of view.

        Depth is the distance along the ray, as nerfacto's: to the surface, or to the far plane where accumulation is
        at most a half. A student without alpha is opaque, one without depth lies at the far plane. In nerfstudio's
        viewer ``error`` and ``teacher`` are added, see viewer/teacher_view.py.
        """
        camera = camera.to(self.device)
        rendered = self.renderer.render_camera(camera)
        rgb, depth = rendered["rgb"], rendered.get("depth")
        alpha = rendered.get("accumulation", torch.ones_like(rgb[..., :1]))
        rgb, accumulation = crop(rgb, alpha, depth, camera, obb_box)
        if depth is None:
            depth = rendered["far"]
        outputs = {"rgb": rgb, "accumulation": accumulation}
        outputs["depth"] = torch.where(accumulation > 0.5, depth, rendered["far"])
        return outputs if self.viewer_outputs is None else {**outputs, **self.viewer_outputs(camera, obb_box, rgb)}

    def get_outputs_for_camera_ray_bundle(self, camera_ray_bundle: RayBundle) -> Dict[str, Tensor]:
        """What ``get_outputs_for_camera`` gives for the pinhole camera that a bundle (H, W) of rays belongs to.

        Where accumulation is at most a half, depth is far beyond any scene, so that `ns-export tsdf` carves that space.

        Raises:
            UserError: The rays are those of no pinhole, such as a texture's.
        """
        outputs = self.get_outputs_for_camera(bundle_camera(camera_ray_bundle))
        outputs["depth"] = outputs["depth"].where(outputs["accumulation"] > 0.5, UNBOUNDED_DEPTH)
        return outputs

    def render_pose(self, c2w: Float[Tensor, "3 4"]) -> Float[Tensor, "H W 3"]:
        """The colours that a pose sees through the student's own pinhole camera, as the exported files render them."""
        with torch.no_grad():
            return self.renderer.render_pose(c2w)

    def get_rgba_image(self, outputs: Dict[str, Tensor], output_name: str = "rgb") -> Float[Tensor, "H W 4"]:
        """Straight-alpha image: the colours without the background that they were rendered on."""
        rgb, accumulation = outputs[output_name], outputs["accumulation"]
        colours = (rgb - background_colour(rgb) * (1 - accumulation)) / accumulation.clamp_min(1e-6)
        return torch.cat([colours.clamp(0, 1), accumulation], dim=-1)

    # -- training and evaluation ----------------------------------------------------------------------------------

    def get_loss_dict(self, outputs, batch, metrics_dict=None) -> Dict[str, Tensor]:
        """The losses of the colours, and of alpha and depth where student and batch have them.

        Patches without alpha or depth count with an error of 0. So the mean over several processes is that of the
        batch, however its photos are divided among them.
        """
        names = "image", "alpha", "depth", "known"
        batch = {name: batch[name].to(self.device) for name in names if name in batch}
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
        if self.config.structure_weight > 0:
            found = structure_loss(outputs["rgb"], batch["image"])
            losses["structure_loss"] = self.config.structure_weight * found
        if "surface_depth" in outputs and "depth" in batch:
            m = len(batch["depth"])
            weight = self.config.surface_weight * m / num_patches
            known = batch["known"][:m] if "known" in batch else None
            found = surface_loss(outputs["surface_depth"][:m], batch["depth"], batch["alpha"][:m], known)
            losses["surface_loss"] = weight * found
        return losses

    def get_metrics_dict(self, outputs, batch) -> Dict[str, Tensor]:
        """PSNR of the batch, and of its teacher views and its photos alone if the batch says which they are.

        Pixels that are not known have no error (see ``ignore_unknown``), and do not count. The values are tensors: a
        Python number would make each step wait for the GPU.
        """
        errors = patch_errors(outputs["rgb"].detach(), batch["image"].to(self.device))
        parts = {"psnr": errors / batch["known"].float().mean() if "known" in batch else errors}
        if "sources" in batch:
            parts["psnr_to_teacher"], _, parts["psnr_to_photos"], _ = errors.split(batch["sources"])
        return {name: -10 * torch.log10(part.mean()) for name, part in parts.items() if len(part)}

    def get_image_metrics_and_images(self, outputs, batch) -> Tuple[Dict[str, float], Dict[str, Tensor]]:
        """Metrics against a photo, and images side by side: photo | student | error, brighter is worse.

        If the batch has the teacher's view: photo | student | teacher | error against the photo | error against the
        teacher. The first error is everything that is wrong, the second what more distillation could correct. Alpha
        and depth are images of their own, in false colours.
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


def is_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    """Whether a parameter maps features to features: every convolution's weight but the last one's, whose rows are the
    colours, alpha and depth."""
    return parameter.ndim >= 2 and not name.startswith("tail.")
