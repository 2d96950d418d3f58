"""The fast nerfacto against closed forms, against nerfstudio's own parts, and against the stock renderer."""

import math

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.field_components.spatial_distortions import SceneContraction
from nerfstudio.model_components.ray_samplers import PDFSampler, UniformSampler
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig

from mobiler2l_ns.cameras import crop_camera, pinhole_cameras
from mobiler2l_ns.compat import without_lpips_download
from mobiler2l_ns.teacher import fast_nerfacto
from mobiler2l_ns.teacher import frozen as teacher
from mobiler2l_ns.teacher.fast_nerfacto import (
    FastNerfacto,
    intersect_aabb,
    inverse_cdf,
    render_weights,
    renders_as_nerfacto,
)
from mobiler2l_ns.teacher.frozen import FrozenTeacher
from mobiler2l_ns.teacher.nerfacto import TeacherModelConfig
from mobiler2l_ns.training.metrics import psnr

BOX = SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
GRIDS = {"hidden_dim": 8, "log2_hashmap_size": 12, "num_levels": 2, "max_res": 16, "use_linear": False}
TINY = {
    "implementation": "torch", "num_levels": 2, "base_res": 4, "max_res": 8, "log2_hashmap_size": 10, "hidden_dim": 8,
    "hidden_dim_color": 8, "num_proposal_iterations": 1, "proposal_net_args_list": [GRIDS],
    "num_proposal_samples_per_ray": (64,), "num_nerf_samples_per_ray": 64,
}  # fmt: skip
RADIUS = 0.6


@pytest.fixture(autouse=True)
def small_grid(monkeypatch):
    monkeypatch.setattr(fast_nerfacto, "GRID_RESOLUTION", 64)


def build(config=TeacherModelConfig, **options) -> NerfactoModel:
    """A tiny nerfacto in eval mode: a cloud around the centre, in colours with contrast."""
    torch.manual_seed(0)
    with without_lpips_download():
        model = config(**{**TINY, **options}).setup(scene_box=BOX, num_train_data=3, metadata={}, device="cpu")
    model.field.mlp_base = Cloud(model.field.geo_feat_dim)
    for network in model.proposal_networks:
        network.mlp_base = Cloud(0)
    model.field.mlp_head.layers[-1].weight.data *= 20
    return model.eval().requires_grad_(False)


class Cloud(torch.nn.Module):
    """Stands in for a field's base network: density e^4 at the centre and e^-6 where the camera is.

    Args:
        num_features: Width of the features, which tell where a point is.
    """

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, positions):
        log_density = 4 - 60 * (positions - 0.5).square().sum(dim=-1, keepdim=True)
        return torch.cat([log_density, positions.repeat(1, 5)[:, : self.num_features]], dim=-1)


class Full(torch.nn.Module):
    """Stands in for a base network of density 1 = e^0 everywhere, with that many outputs."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, positions):
        return torch.zeros(len(positions), self.width)


class Ball(torch.nn.Module):
    """Stands in for a field's base network: opaque within RADIUS of the world's centre; the features are the position.

    Args:
        num_features: Width of the features, the first three of which are used.

    Attributes:
        evaluated: How many points it was asked for.
    """

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features, self.evaluated = num_features, 0

    def forward(self, positions):
        self.evaluated += len(positions)
        world = positions * 2 - 1
        log_density = torch.where(world.norm(dim=-1, keepdim=True) < RADIUS, 4.0, -30.0)
        rest = torch.zeros(len(positions), self.num_features - 3)
        return torch.cat([log_density, 0.5 + 0.5 * world / RADIUS, rest], dim=-1)


class FirstFeatures(torch.nn.Module):
    """Stands in for the colour network: the first three features behind the 16 of the direction."""

    def forward(self, inputs):
        return inputs[:, 16:19]


@pytest.fixture
def ball_model():
    model = build(scene="bounded", num_nerf_samples_per_ray=32)
    model.field.mlp_base, model.field.mlp_head = Ball(model.field.geo_feat_dim), FirstFeatures()
    model.proposal_networks[-1].mlp_base = Ball(3)
    return model


@pytest.fixture
def camera() -> Cameras:
    """From (0, 0, 3) down to the origin; the box covers the middle of the view."""
    pose = torch.eye(4)[None, :3].clone()
    pose[0, 2, 3] = 3.0
    return pinhole_cameras(pose, 40.0, 48, 64)


# -- a ball in closed form ------------------------------------------------------------------------------------------


def test_a_ball_has_its_colour_depth_and_outline(ball_model, camera, stub_teacher):
    outputs = FastNerfacto(ball_model).outputs_for_camera(camera)
    stub_teacher.radius = RADIUS
    rays = camera.generate_rays(0, keep_shape=True)
    distance = stub_teacher.distances(rays.origins, rays.directions)
    miss = (rays.origins - (rays.origins * rays.directions).sum(-1, keepdim=True) * rays.directions).norm(dim=-1)
    through, past = miss < RADIUS - 0.1, miss > RADIUS + 0.25
    assert through.sum() > 100 and past.sum() > 100
    assert (outputs["accumulation"][through] > 0.999).all() and (outputs["accumulation"][past] == 0).all()
    assert (outputs["rgb"][past] == 1).all()
    # 32 samples go where the grid, with cells of 2/32, sees the ball's front.
    assert (outputs["depth"][..., 0] - distance)[through].abs().max() < 2 / 32
    assert (outputs["rgb"] - stub_teacher.colours(rays.origins, rays.directions))[through].abs().max() < 0.06


def test_rays_that_meet_nothing_are_not_sampled(ball_model, camera):
    fast = FastNerfacto(ball_model)
    before = ball_model.field.mlp_base.evaluated
    outputs = fast.outputs_for_camera(camera)
    rays = (ball_model.field.mlp_base.evaluated - before) / 32
    assert (outputs["accumulation"] > 0.5).sum() <= rays < 0.25 * 48 * 64


class Half(torch.nn.Module):
    """An encoding that returns fp16, as tiny-cuda-nn's does."""

    def __init__(self, encoding):
        super().__init__()
        self.encoding = encoding

    def forward(self, positions):
        return self.encoding(positions).half()


def test_a_linear_proposal_network_takes_codes_in_fp16():
    model = build(proposal_net_args_list=[{**GRIDS, "use_linear": True}])
    fast, network, points = FastNerfacto(model), model.proposal_networks[-1], torch.rand(5, 3)
    expected = fast._proposal_density(points)
    network.encoding = Half(network.encoding)
    torch.testing.assert_close(fast._proposal_density(points), expected, rtol=1e-3, atol=0)


def test_no_sample_is_visible(ball_model, camera):
    """tiny-cuda-nn takes no empty batches."""

    class Fog(torch.nn.Module):
        def forward(self, positions):
            return torch.full((len(positions), 1 + ball_model.field.geo_feat_dim), -30.0)

    def head(inputs):
        raise AssertionError("an empty batch")

    fast = FastNerfacto(ball_model)
    ball_model.field.mlp_base, ball_model.field.mlp_head = Fog(), torch.nn.Identity()
    ball_model.field.mlp_head.forward = head
    outputs = fast.outputs_for_camera(camera)
    assert (outputs["rgb"] == 1).all() and outputs["accumulation"].max() < 1e-6


def test_surface_depths_are_z(ball_model, camera, monkeypatch):
    """The nearest point of the ball is straight ahead, 3 - 0.6 away; its outline is farther."""
    monkeypatch.setattr(teacher, "load_teacher", lambda path, device: (ball_model, 0))
    depths = FrozenTeacher(None, "cpu").surface_depths(camera)
    assert len(depths) > 100 and depths.min() > 2.4 - 0.07 and (depths - 2.4).abs().min() < 0.07
    assert depths.max() < 3 - RADIUS**2 / 3 + 0.07  # where rays touch the ball


def test_a_tile_is_a_crop_of_the_view(ball_model, camera):
    fast = FastNerfacto(ball_model)
    whole = fast.outputs_for_camera(camera)
    tile = fast.outputs_for_camera(crop_camera(camera, 10, 20, 16, 24))
    for name in whole:
        torch.testing.assert_close(tile[name], whole[name][10:26, 20:44], atol=1e-4, rtol=1e-4)


def test_chunks_make_no_difference(ball_model, camera):
    fast = FastNerfacto(ball_model)
    whole = fast.outputs_for_camera(camera)
    fast.chunk = 100
    torch.testing.assert_close(fast.outputs_for_camera(camera)["rgb"], whole["rgb"])


def test_there_is_nothing_outside_the_box(camera):
    """A box of density 1, seen from far away with a collider that does not clip rays to the box."""
    model = build(NerfactoModelConfig, disable_scene_contraction=True, background_color="white")
    model.field.mlp_base, model.proposal_networks[-1].mlp_base = Full(16), Full(1)
    outputs = FastNerfacto(model).outputs_for_camera(camera)
    rays = camera.generate_rays(0, keep_shape=True)
    enter, leave = intersect_aabb(rays.origins.view(-1, 3), rays.directions.view(-1, 3), BOX.aabb)
    inside = (leave - enter).clamp_min(0).view(48, 64, 1)
    assert (outputs["accumulation"][inside == 0] == 0).all() and (outputs["rgb"][(inside == 0)[..., 0]] == 1).all()
    # Half a sample's share at either end is left out, as nerfstudio does.
    assert (outputs["accumulation"] - (1 - torch.exp(-inside))).abs().max() < 0.02


# -- parts ----------------------------------------------------------------------------------------------------------


def test_weights_by_hand():
    """Each interval lets half through."""
    weights = render_weights(torch.tensor([[1.0, 2.0, math.inf]]), torch.tensor([[math.log(2), math.log(2) / 2, 1]]))
    torch.testing.assert_close(weights, torch.tensor([[0.5, 0.25, 0.25]]))


def test_samples_agree_with_nerfstudios_pdf_sampler(camera):
    torch.manual_seed(0)
    rays = camera.generate_rays(0).flatten()[:50]
    rays.nears, rays.fars = torch.full((50, 1), 2.0), torch.full((50, 1), 4.0)
    intervals = UniformSampler(num_samples=20).eval()(rays)
    weights = torch.rand(50, 20) ** 4 / 20
    weights[0] = 0
    own = PDFSampler(include_original=False, histogram_padding=fast_nerfacto.PADDING / 20).eval()
    expected = own(rays, intervals, weights[..., None], num_samples=8)
    edges = torch.linspace(0, 1, 21).expand(50, -1).contiguous()
    found = inverse_cdf(edges, weights, 9)
    torch.testing.assert_close(found[:, :-1], expected.spacing_starts[..., 0], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:, 1:], expected.spacing_ends[..., 0], atol=1e-4, rtol=0)


def test_a_box_is_entered_and_left():
    """Through it, past it, from inside, and away from it."""
    rays_o = torch.tensor([[0.0, 0, 3], [2, 0, 3], [0.5, 0, 0], [0, 0, 3]])
    rays_d = torch.tensor([[0.0, 0, -2], [0, 0, -1], [1, 0, 0], [0, 0, 1]])
    enter, leave = intersect_aabb(rays_o, rays_d, BOX.aabb)
    assert (float(enter[0]), float(leave[0])) == pytest.approx((1, 2))
    assert leave[1] < enter[1] and leave[3] < enter[3]
    assert (float(enter[2]), float(leave[2])) == pytest.approx((0, 0.5))


@pytest.mark.parametrize("scene", ["bounded", "unbounded"])
def test_positions_are_those_of_the_models_field(scene):
    model = build(scene=scene)
    model.field.aabb = torch.tensor([[-1.0, -2, -3], [3, 2, 1]])
    generator = torch.Generator().manual_seed(0)
    rays_o, rays_d, t = (torch.rand(shape, generator=generator) for shape in ((20, 3), (20, 3), (20, 5)))
    world = rays_o[:, None] + 10 * t[..., None] * rays_d[:, None]
    if scene == "bounded":
        expected = SceneBox.get_normalized_positions(world, model.field.aabb)
    else:
        expected = (SceneContraction(order=float("inf"))(world) + 2) / 4
    found = FastNerfacto(model)._unit_cube(rays_o, rays_d, 10 * t)
    torch.testing.assert_close(found.movedim(0, -1), expected)


# -- the stock renderer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config, options",
    [
        (TeacherModelConfig, {"scene": "bounded"}),
        (TeacherModelConfig, {"scene": "unbounded"}),
        (TeacherModelConfig, {"scene": "unbounded", "use_average_appearance_embedding": False}),
        (TeacherModelConfig, {"scene": "unbounded", "use_appearance_embedding": False, "predict_normals": True}),
        (TeacherModelConfig, {"scene": "unbounded", "background_color": "black"}),
        (NerfactoModelConfig, {"disable_scene_contraction": True, "background_color": "random"}),
        (
            NerfactoModelConfig,
            {"num_proposal_iterations": 2, "num_proposal_samples_per_ray": (64, 64)},
        ),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value.__name__,
)
def test_agrees_with_nerfstudio(config, options, camera):
    model = build(config, **options)
    assert renders_as_nerfacto(model)
    stock, fast = model.get_outputs_for_camera(camera), FastNerfacto(model).outputs_for_camera(camera)
    assert psnr(fast["rgb"], stock["rgb"]) > 43
    assert (fast["accumulation"] - stock["accumulation"]).abs().mean() < 0.005
    seen = stock["accumulation"] > 0.6
    assert seen.sum() > 10
    assert (fast["depth"] - stock["depth"])[seen].abs().median() < 0.02


@pytest.mark.parametrize(
    "options",
    [{"scene": "unbounded", "background_color": "white"}, {"scene": "bounded"}],
    ids=["unbounded", "bounded"],
)
def test_a_random_background_is_rendered_white(options, camera, monkeypatch):
    """nerfstudio renders a model that was trained on random backgrounds on black."""
    model = build(**options)
    white = FastNerfacto(model).outputs_for_camera(camera)["rgb"]
    model.config.background_color = model.renderer_rgb.background_color = "random"
    monkeypatch.setattr(teacher, "load_teacher", lambda path, device: (model, 0))
    found = FrozenTeacher(None, "cpu").render(camera)
    assert white.mean() > 0.1
    assert (found - white).abs().mean() < 5e-3


# -- what is left to nerfstudio -------------------------------------------------------------------------------------


class OtherOutputs(NerfactoModel):
    """Renders in its own way."""

    def get_outputs(self, ray_bundle):
        return super().get_outputs(ray_bundle)


class OtherModel(torch.nn.Module):
    """Not a nerfacto at all."""

    device, config = torch.device("cpu"), None

    def get_outputs_for_camera(self, camera):
        shape = int(camera.height), int(camera.width)
        return {
            "rgb": torch.full((*shape, 3), 0.25),
            "accumulation": torch.ones(*shape, 1),
            "depth": torch.full((*shape, 1), 7.0),
        }


def test_another_model_is_rendered_by_nerfstudio(camera, monkeypatch):
    monkeypatch.setattr(teacher, "load_teacher", lambda path, device: (OtherModel(), 3))
    frozen = FrozenTeacher(None, "cpu")
    assert frozen.fast is None and frozen.step == 3
    assert (frozen.render(camera) == 0.25).all()
    depths = frozen.surface_depths(camera)
    assert len(depths) == 48 * 64 and depths.max() <= 7 and depths.min() < 6  # along the ray there, z here


def test_variants_of_nerfacto_are_rendered_by_nerfstudio():
    plain = build(NerfactoModelConfig)
    assert renders_as_nerfacto(plain)
    assert not renders_as_nerfacto(build(NerfactoModelConfig, _target=OtherOutputs))
    assert not renders_as_nerfacto(build(NerfactoModelConfig, disable_scene_contraction=True))  # on its last sample
    plain.field.spatial_distortion.order = None
    assert not renders_as_nerfacto(plain)
    plain = build(NerfactoModelConfig)
    plain.field.__class__ = type("OtherField", (type(plain.field),), {})
    assert not renders_as_nerfacto(plain)
