"""Renders a frozen nerfacto several times faster than nerfacto itself.

nerfacto evaluates proposal networks to place the samples of each ray, and density and colour at all samples, also for
rays through empty space. Here the last proposal network is baked into a grid once, rays that meet nothing are not
sampled, and colour is evaluated only at visible samples. Field, number of samples, spacing and compositing are those of
the model. On a CPU with numba, ``fused_nerfacto`` places and shades the samples.

N: rays, E: edges of the intervals on a ray, K: samples on a ray, M: visible samples, G: geometry features.
"""

from typing import Dict, Tuple, TypeGuard

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.field_components.spatial_distortions import SceneContraction
from nerfstudio.fields.base_field import get_normalized_directions
from nerfstudio.fields.density_fields import HashMLPDensityField
from nerfstudio.fields.nerfacto_field import NerfactoField
from nerfstudio.model_components.ray_samplers import SpacedSampler
from nerfstudio.model_components.renderers import RGBRenderer
from nerfstudio.models.base_model import Model
from nerfstudio.models.nerfacto import NerfactoModel
from torch import Tensor

from mobiler2l_ns.cameras import cell_centres, is_pinhole
from mobiler2l_ns.teacher.density_grid import DensityGrid
from mobiler2l_ns.teacher.fused_nerfacto import FusedNerfacto, can_fuse

GRID_RESOLUTION = 128
NUM_INTERVALS = 128
# Fraction of samples that is spread over the whole ray, for surfaces that the grid lacks.
PADDING = 0.1
# Rays of smaller opacity and samples of smaller weight are skipped: errors of at most 0.01 and 0.001 in 0..1.
MIN_OPACITY, MIN_WEIGHT = 1e-2, 1e-3


class FastNerfacto:
    """Renders a frozen nerfacto.

    Args:
        model: A model that ``renders_as_nerfacto``, in eval mode.
        compiled: Whether ``fused_nerfacto`` renders where it can.

    Attributes:
        grid: Density of the last proposal network; zero, in a bounded model, where the field is empty.
        fused: Renders the rays on a CPU; None where torch does.
    """

    def __init__(self, model: NerfactoModel, compiled: bool = True):
        network, sampler = model.proposal_networks[-1], model.proposal_sampler.initial_sampler
        assert isinstance(network, HashMLPDensityField) and isinstance(sampler, SpacedSampler)
        self.model, self.field, self.proposal_network = model, model.field, network
        self.bounded = self.field.spatial_distortion is None
        self.grid = DensityGrid.bake(self._proposal_density, GRID_RESOLUTION, model.device)
        if self.bounded:
            size = self.field.aabb[1] - self.field.aabb[0]
            self.grid.clear_empty(lambda x: self._field_density(x)[0], float(size.norm()) / GRID_RESOLUTION)
        self.to_spacing, self.to_distance = sampler.spacing_fn, sampler.spacing_fn_inv
        self.num_samples = model.config.num_nerf_samples_per_ray
        self.fused = None
        if compiled and can_fuse(self.field, sampler):
            last_sample = model.renderer_rgb.background_color == "last_sample"
            self.fused = FusedNerfacto(self.field, sampler, self.grid.densities, last_sample, MIN_WEIGHT)
        # With torch, a CPU is fastest while a chunk's intermediate results fit its cache.
        self.chunk = 1 << 12 if model.device.type == "cpu" and self.fused is None else 1 << 16

    @torch.no_grad()
    def outputs_for_camera(self, camera: Cameras) -> Dict[str, Float[Tensor, "H W _"]]:
        """The outputs of nerfacto's ``get_outputs_for_camera`` for a camera of shape (1,).

        Returns:
            ``rgb`` (H, W, 3), ``accumulation`` (H, W, 1) and ``depth`` (H, W, 1), the median distance along the ray in
            world units. Accumulation and depth are 0 for rays that meet nothing.
        """
        bundle = pixel_rays(camera)
        rays = bundle.flatten()
        parts = [self._render(rays[i : i + self.chunk]) for i in range(0, len(rays), self.chunk)]
        return {name: torch.cat([part[name] for part in parts]).view(*bundle.shape, -1) for name in parts[0]}

    def _render(self, rays: RayBundle) -> Dict[str, Float[Tensor, "N _"]]:
        rays_o, rays_d = rays.origins, rays.directions
        edges, index = self._place(rays)
        background = self.model.renderer_rgb.background_color
        outputs = {name: rays_o.new_zeros(len(rays_o), 1) for name in ("accumulation", "depth")}
        outputs["rgb"] = rays_o.new_zeros(len(rays_o), 3)
        if background not in ("last_sample", "random"):
            outputs["rgb"] += RGBRenderer.get_background_color(background, (3,), rays_o.device)
        if len(index) == 0:
            return outputs
        rendered = self._shade(rays_o[index], rays_d[index], edges, outputs["rgb"][index])
        for name, value in rendered.items():
            outputs[name][index] = value
        return outputs

    def _place(self, rays: RayBundle) -> Tuple[Float[Tensor, "M E"], Int64[Tensor, "M"]]:
        """Distances between the samples of the M rays to sample, and the indices of these rays."""
        near, far = self._span(rays)
        count = self.num_samples + 1
        everything = self.model.renderer_rgb.background_color == "last_sample"
        min_opacity = -1 if everything else MIN_OPACITY
        if self.fused is not None:
            unit_rays = self._unit_rays(rays.origins, rays.directions)
            edges, opacity = self.fused.propose(*unit_rays, near, far, count, PADDING, min_opacity)
            index = (opacity > min_opacity).nonzero()[:, 0]
            return edges[index], index
        edges, weights = self._propose(rays, near, far)
        index = (weights.sum(dim=1) > min_opacity).nonzero()[:, 0]
        return self.to_distance(inverse_cdf(edges[index], weights[index], count)), index

    def _span(self, rays: RayBundle) -> Tuple[Float[Tensor, "N 1"], Float[Tensor, "N 1"]]:
        """Where rays start and end, in the model's spacing."""
        assert self.model.collider is not None
        rays = self.model.collider(rays)
        near, far = rays.nears, rays.fars
        assert near is not None and far is not None
        if self.bounded:
            enter, leave = intersect_aabb(rays.origins, rays.directions, self.field.aabb)
            near, far = torch.maximum(near, enter), torch.minimum(far, leave)
        return self.to_spacing(near), self.to_spacing(torch.maximum(near, far))

    def _propose(
        self, rays: RayBundle, near: Float[Tensor, "N 1"], far: Float[Tensor, "N 1"]
    ) -> Tuple[Float[Tensor, "N E"], Float[Tensor, "N E-1"]]:
        """Interval edges in the model's spacing, and the intervals' weights by the grid."""
        edges = near + (far - near) * torch.linspace(0, 1, NUM_INTERVALS + 1, device=near.device)
        distances = self.to_distance(edges)
        middle, width = (distances[:, 1:] + distances[:, :-1]) / 2, distances.diff(dim=1)
        return edges, render_weights(self.grid(self._unit_cube(rays.origins, rays.directions, middle)), width)

    def _shade(
        self,
        rays_o: Float[Tensor, "N 3"],
        rays_d: Float[Tensor, "N 3"],
        edges: Float[Tensor, "N E"],
        background: Float[Tensor, "N 3"],
    ) -> Dict[str, Float[Tensor, "N _"]]:
        """Outputs of rays that are sampled between given distances."""
        if self.fused is not None:
            rgb, accumulation, depth = self.fused.shade(*self._unit_rays(rays_o, rays_d), rays_d, edges)
            return {"rgb": rgb + background * (1 - accumulation), "accumulation": accumulation, "depth": depth}
        middle, width = (edges[:, 1:] + edges[:, :-1]) / 2, edges.diff(dim=1)
        positions = self._unit_cube(rays_o, rays_d, middle)
        density, features = self._field_density(positions.flatten(1).T)
        weights = render_weights(density.view_as(middle), width)
        accumulation = weights.sum(dim=1, keepdim=True)
        median = (weights.cumsum(dim=1) < 0.5).sum(dim=1, keepdim=True).clamp_max(self.num_samples - 1)
        depth = middle.gather(1, median)
        if self.model.renderer_rgb.background_color == "last_sample":
            weights[:, -1:] += 1 - accumulation
        else:
            background = background * (1 - accumulation)
        visible = (weights > MIN_WEIGHT).view(-1).nonzero()[:, 0]
        if len(visible) == 0:  # tiny-cuda-nn takes no empty batches
            return {"rgb": background, "accumulation": accumulation, "depth": depth}
        ray = torch.div(visible, self.num_samples, rounding_mode="floor")
        colour = self._field_colour(rays_d, ray, features[visible]) * weights.view(-1)[visible, None]
        return {"rgb": background.index_add(0, ray, colour), "accumulation": accumulation, "depth": depth}

    def _unit_cube(
        self, rays_o: Float[Tensor, "N 3"], rays_d: Float[Tensor, "N 3"], t: Float[Tensor, "N K"]
    ) -> Float[Tensor, "3 N K"]:
        """Points at distances t, in the coordinates of the model's fields: the unit cube."""
        rays_o, rays_d = self._unit_rays(rays_o, rays_d)
        points = torch.addcmul(rays_o.T[..., None], rays_d.T[..., None], t)
        if self.bounded:
            return points
        # mip-NeRF 360 (Barron et al. 2022), Eq. 10, with the maximum norm: the identity for norms up to 1.
        inverse = 1 / points.abs().amax(dim=0).clamp_min(1)
        return points.mul_((2 - inverse) * inverse / 4).add_(0.5)

    def _unit_rays(
        self, rays_o: Float[Tensor, "N 3"], rays_d: Float[Tensor, "N 3"]
    ) -> Tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
        """Rays in the axes of the unit cube if the model is bounded, else in world axes."""
        if not self.bounded:
            return rays_o, rays_d
        low, size = self.field.aabb[0], self.field.aabb[1] - self.field.aabb[0]
        return (rays_o - low) / size, rays_d / size

    def _proposal_density(self, positions: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        network = self.proposal_network
        # tiny-cuda-nn's encoding is fp16.
        head = network.mlp_base if not network.use_linear else lambda x: network.linear(network.encoding(x).to(x))
        return network.average_init_density * torch.exp(head(positions)[:, 0].float())

    def _field_density(self, positions: Float[Tensor, "N 3"]) -> Tuple[Float[Tensor, "N"], Float[Tensor, "N G"]]:
        hidden = self.field.mlp_base(positions)
        return self.field.average_init_density * torch.exp(hidden[:, 0].float()), hidden[:, 1:]

    def _field_colour(
        self, rays_d: Float[Tensor, "N 3"], ray: Int64[Tensor, "M"], features: Float[Tensor, "M G"]
    ) -> Float[Tensor, "M 3"]:
        """Colours of samples, each of which lies on the ray with index ``ray``."""
        inputs = [self.field.direction_encoding(get_normalized_directions(rays_d))[ray], features]
        if self.field.embedding_appearance is not None:
            appearance = self.field.embedding_appearance.mean(dim=0) * self.field.use_average_appearance_embedding
            inputs.append(appearance.expand(len(ray), -1))
        return self.field.mlp_head(torch.cat(inputs, dim=-1)).float()


def renders_as_nerfacto(model: Model) -> TypeGuard[NerfactoModel]:
    """Whether ``FastNerfacto`` can render a model: its code, fields and options are those of nerfacto.

    It cannot render a bounded model whose last sample extends to infinity, which has colours outside the scene box.
    """
    own = ("forward", "get_outputs", "get_outputs_for_camera", "get_outputs_for_camera_ray_bundle")
    if not isinstance(model, NerfactoModel) or any(
        getattr(type(model), name) is not getattr(NerfactoModel, name) for name in own
    ):
        return False
    distortion = model.field.spatial_distortion
    contracted = type(distortion) is SceneContraction and distortion.order == float("inf")
    return (
        (contracted or (distortion is None and model.renderer_rgb.background_color != "last_sample"))
        and type(model.field) is NerfactoField
        and all(type(network) is HashMLPDensityField for network in model.proposal_networks)
        and isinstance(model.proposal_sampler.initial_sampler, SpacedSampler)
    )


def pixel_rays(camera: Cameras) -> RayBundle:
    """The rays (H, W) of a camera (1,) through its pixels' centres, with origins and unit directions.

    They are float32, also where the capture is float64. For pinhole cameras they are computed several times faster than
    by nerfstudio.
    """
    if not is_pinhole(camera):
        bundle = camera.generate_rays(0, keep_shape=True)
        bundle.origins, bundle.directions = bundle.origins.float(), bundle.directions.float()
        return bundle
    pose = camera.camera_to_worlds[0].float()
    y, x = cell_centres(int(camera.height), int(camera.width), (1, 1), camera.device).split(1, dim=-1)
    right, up = (x[:1] - camera.cx) / camera.fx * pose[:, 0], (camera.cy - y[:, :1]) / camera.fy * pose[:, 1]
    directions = (right + (up - pose[:, 2])).float()
    # torch is slow at norms over an axis of 3.
    a, b, c = directions.unbind(dim=-1)
    directions *= (a * a + b * b + c * c).rsqrt_()[..., None]
    origins = pose[:, 3].expand_as(directions)
    return RayBundle(origins=origins, directions=directions, pixel_area=torch.ones_like(directions[..., :1]))


def render_weights(density: Float[Tensor, "N K"], width: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """Weight of each interval of a ray: T_i (1 - exp(-density_i width_i)); NeRF (Mildenhall et al. 2020), Eq. 3.

    Computed as the difference of the transmittances T before and behind the interval.
    """
    transmittance = torch.exp(-F.pad((density * width).cumsum(dim=1), (1, 0)))
    return transmittance[:, :-1] - transmittance[:, 1:]


def inverse_cdf(edges: Float[Tensor, "N E"], weights: Float[Tensor, "N E-1"], count: int) -> Float[Tensor, "N {count}"]:
    """Positions between which a ray has equal weight, as nerfstudio's ``PDFSampler`` computes them in evaluation.

    Args:
        edges: Interval edges, ascending.
        weights: Weight of each interval, with a sum of at most 1 per ray. PADDING is added, spread over the intervals.
        count: Number of positions. Half of one part's weight lies before the first and half behind the last.
    """
    weights = weights + PADDING / weights.shape[1]
    cdf = F.pad(weights.cumsum(dim=1), (1, 0))
    quantiles = (torch.arange(count, device=edges.device) + 0.5) / count * cdf[:, -1:]
    above = torch.searchsorted(cdf, quantiles, right=True).clamp_(1, weights.shape[1])
    below = above - 1
    fraction = (quantiles - cdf.gather(1, below)) / weights.gather(1, below)
    start = edges.gather(1, below)
    return start + fraction * (edges.gather(1, above) - start)


def intersect_aabb(
    rays_o: Float[Tensor, "N 3"], rays_d: Float[Tensor, "N 3"], aabb: Float[Tensor, "2 3"]
) -> Tuple[Float[Tensor, "N 1"], Float[Tensor, "N 1"]]:
    """Distances, in lengths of rays_d, at which rays enter and leave a box.

    Rays that start inside enter at 0. For rays that miss the box, the second distance is smaller than the first.
    """
    to_corner = (aabb[:, None] - rays_o) / torch.where(rays_d.abs() < 1e-9, 1e-9, rays_d)  # (2, N, 3)
    enter = to_corner.amin(dim=0).amax(dim=-1, keepdim=True).clamp_min(0)
    return enter, to_corner.amax(dim=0).amin(dim=-1, keepdim=True)
