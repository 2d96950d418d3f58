"""The compiled nerfacto against closed forms, against nerfstudio's own parts, and against the version in torch."""

import math
import sys

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.field_components.encodings import HashEncoding
from nerfstudio.field_components.mlp import MLP
from nerfstudio.model_components.ray_samplers import LogSampler, UniformLinDispPiecewiseSampler, UniformSampler
from nerfstudio.models.nerfacto import NerfactoModel

from mobiler2l_ns.cameras import pinhole_cameras
from mobiler2l_ns.compat import without_lpips_download
from mobiler2l_ns.teacher import fast_nerfacto, fused_math, fused_nerfacto, fused_sampling, fused_shading
from mobiler2l_ns.teacher.fast_nerfacto import FastNerfacto, inverse_cdf, pixel_rays
from mobiler2l_ns.teacher.fused_nerfacto import FusedNerfacto, can_fuse
from mobiler2l_ns.teacher.nerfacto import TeacherModelConfig

BOX = SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
GRIDS = {"hidden_dim": 8, "log2_hashmap_size": 12, "num_levels": 2, "max_res": 16, "use_linear": False}
TINY = {
    "implementation": "torch", "num_levels": 3, "base_res": 4, "max_res": 16, "log2_hashmap_size": 12, "hidden_dim": 12,
    "hidden_dim_color": 10, "appearance_embed_dim": 5, "num_proposal_iterations": 1, "proposal_net_args_list": [GRIDS],
    "num_proposal_samples_per_ray": (64,), "num_nerf_samples_per_ray": 31,
    "use_average_appearance_embedding": True, "scene": "unbounded",
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_grid(monkeypatch):
    monkeypatch.setattr(fast_nerfacto, "GRID_RESOLUTION", 32)


def build(**options) -> NerfactoModel:
    """A tiny nerfacto in eval mode with clouds of random shape and colour, as thick as those of a trained one."""
    torch.manual_seed(0)
    with without_lpips_download():
        config = TeacherModelConfig(**{**TINY, **options})
        model = config.setup(scene_box=BOX, num_train_data=3, metadata={}, device="cpu")
    for encoding in (m for m in model.modules() if isinstance(m, HashEncoding)):
        encoding.hash_table.data = torch.randn_like(encoding.hash_table)
    model.field.mlp_base.model[1].layers[-1].weight.data[0] *= 8
    model.field.mlp_head.layers[-1].weight.data *= 10
    return model.eval().requires_grad_(False)


@pytest.fixture
def camera() -> Cameras:
    """From (0, 0, 3) down to the origin; the box covers the middle of the view."""
    pose = torch.eye(4)[None, :3].clone()
    pose[0, 2, 3] = 3.0
    return pinhole_cameras(pose, 30.0, 24, 40)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


# -- the loops ------------------------------------------------------------------------------------------------------


def test_the_exponential():
    x = np.linspace(-80, 80, 2001, dtype=np.float32)
    found = np.array([fused_math.exponential(value) for value in x])
    assert np.abs(found / np.exp(x.astype(np.float64)) - 1).max() < 1e-5  # x log2(e) itself is rounded to 4e-6
    assert fused_math.exponential(np.float32(0)) == 1
    assert fused_math.exponential(np.float32(-np.inf)) < 1e-34
    assert np.isfinite(fused_math.exponential(np.float32(np.inf)))


@pytest.mark.parametrize("features", [1, 2, 3, 4])
def test_the_hash_grid_is_nerfstudios(features):
    """Also for an odd number of features, which get a zero beside them."""
    model = build(features_per_level=features)
    positions = random(3, 50)
    expected = HashEncoding.pytorch_fwd(model.field.mlp_base.model[0], torch.from_numpy(positions.T.copy()))
    table, scalings, _, _ = fused_nerfacto._density_network(model.field)
    found = np.full((3 * table.shape[2], 50), np.nan, dtype=np.float32)
    fused_shading.encode(table, scalings, positions, 49, found)
    assert np.isnan(found[:, 49]).all()
    found = found.reshape(3, -1, 50)[:, :features, :49].reshape(-1, 49)
    np.testing.assert_allclose(found.T, expected[:49], atol=2e-5)


@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_the_network_is_nerfstudios(num_layers):
    torch.manual_seed(0)
    mlp = MLP(in_dim=6, num_layers=num_layers, layer_width=9, out_dim=5).requires_grad_(False)
    packed = fused_nerfacto._pack([(layer.weight, layer.bias) for layer in mlp.layers])
    x, other = np.zeros((12, 40), dtype=np.float32), np.zeros((12, 40), dtype=np.float32)
    x[:6] = random(6, 40) - 0.5
    expected = mlp(torch.from_numpy(x[:6].T.copy()))
    found = fused_shading.forward(packed, 0, x, other, 40)
    np.testing.assert_allclose(found[:5].T, expected, atol=1e-5)


def test_a_spent_ray_is_not_marched_to_its_end():
    """Density 10 in the first half of a ray of length 1: e^-5 is left, and the second half has no effect then."""
    grid = np.zeros((8, 8, 8), dtype=np.float32)
    grid[:, :, :4] = 10
    o, d = np.array([0.5, 0.5, 0], dtype=np.float32), np.array([0, 0, 1], dtype=np.float32)
    near, far, weights = np.float32(0), np.float32(1), np.empty(fused_sampling.NUM_INTERVALS, dtype=np.float32)
    buffers = np.empty(fused_sampling.BLOCK, dtype=np.int32), np.empty(fused_sampling.BLOCK, dtype=np.float32)
    ray = o, d, near, far, grid, False, False
    total = fused_sampling.march(*ray, np.float32(1e-3), weights, *buffers)
    assert total == pytest.approx(1 - math.exp(-5), abs=1e-5)
    assert weights[0] == pytest.approx(1 - math.exp(-10 / fused_sampling.NUM_INTERVALS), rel=1e-4)
    grid[:, :, 4:] = np.nan
    assert np.isnan(fused_sampling.march(*ray, np.float32(1e-3), weights, *buffers))
    assert fused_sampling.march(*ray, np.float32(1e-2), weights, *buffers) == pytest.approx(total)
    assert (weights[fused_sampling.NUM_INTERVALS // 2 :] == 0).all()


# -- the parts, against the version in torch ------------------------------------------------------------------------


@pytest.mark.parametrize("scene", ["bounded", "unbounded"])
def test_samples_are_placed_as_by_torch(scene, camera):
    fast = FastNerfacto(build(scene=scene))
    fast.grid.densities = torch.from_numpy(random(32, 32, 32)) ** 8 * (20 if scene == "bounded" else 2)
    fast.fused.grid = fast.grid.densities.numpy()
    rays = pixel_rays(camera).flatten()
    near, far = fast._span(rays)
    edges, weights = fast._propose(rays, near, far)
    expected = fast.to_distance(inverse_cdf(edges, weights, 32))
    unit = fast._unit_rays(rays.origins, rays.directions)
    found, opacity = fast.fused.propose(*unit, near, far, 32, fast_nerfacto.PADDING, -1)
    torch.testing.assert_close(opacity, weights.sum(dim=1), atol=2e-3, rtol=0)
    assert 0.05 < opacity.std()
    # Rounding moves a few samples at the borders of cells.
    off = (fast.to_spacing(found) - fast.to_spacing(expected)).abs() / (far - near).clamp_min(1e-6)
    assert off.median() < 1e-4 and (off > 0.01).float().mean() < 0.01


@pytest.mark.parametrize(
    "options",
    [
        {"scene": "bounded"},
        {},
        {"use_average_appearance_embedding": False},
        {"use_appearance_embedding": False},
        {"background_color": "black"},
        {"background_color": "random"},
        {"features_per_level": 1, "hidden_dim": 7, "hidden_dim_color": 5},
    ],
    ids=str,
)
def test_agrees_with_torch(options, camera, monkeypatch):
    model = build(**options)
    model.field.embedding_appearance and model.field.embedding_appearance.embedding.weight.data.normal_()
    monkeypatch.setattr(fused_nerfacto, "GROUP_WEIGHT", 0.0)
    torch.manual_seed(0)
    fast = FastNerfacto(model)
    found = fast.outputs_for_camera(camera)
    assert fast.fused is not None
    fast.fused = None
    expected = fast.outputs_for_camera(camera)
    assert expected["rgb"].std() > 0.05 and expected["accumulation"].max() > 0.9
    for name, tolerance in (("rgb", 3e-3), ("accumulation", 3e-3), ("depth", 0.01)):
        assert found[name].shape == expected[name].shape
        assert (found[name] - expected[name]).abs().mean() < tolerance, name
        assert ((found[name] - expected[name]).abs() > 0.05).float().mean() < 0.02, name


def test_samples_of_a_group_share_a_colour(camera, monkeypatch):
    """Density and accumulation do not change at all, and the colour little."""
    model = build(scene="bounded")
    views = []
    for group in (0.0, fused_nerfacto.GROUP_WEIGHT, 2.0):
        monkeypatch.setattr(fused_nerfacto, "GROUP_WEIGHT", group)
        torch.manual_seed(0)
        views.append(FastNerfacto(model).outputs_for_camera(camera))
    single, some, all_samples = views
    torch.testing.assert_close(some["accumulation"], single["accumulation"])
    torch.testing.assert_close(some["depth"], single["depth"])
    error, largest = ((view["rgb"] - single["rgb"]).abs().mean() for view in (some, all_samples))
    assert 0 < error < 0.01 and error < largest


# -- a field in closed form -----------------------------------------------------------------------------------------


def uniform(density: float, **options) -> FusedNerfacto:
    """A field of one density, with a colour of 0.5 in all channels."""
    model = build(scene="bounded", **options)
    for layer in [*model.field.mlp_base.model[1].layers, *model.field.mlp_head.layers]:
        layer.weight.data.zero_()
        layer.bias.data.zero_()
    model.field.mlp_base.model[1].layers[-1].bias.data[0] = math.log(density / model.field.average_init_density)
    sampler = model.proposal_sampler.initial_sampler
    last_sample = options.get("background_color") == "last_sample"
    return FusedNerfacto(model.field, sampler, torch.zeros(4, 4, 4), last_sample, fast_nerfacto.MIN_WEIGHT)


def shade(fused: FusedNerfacto, edges: torch.Tensor):
    rays_o, rays_d = torch.tensor([[0.5, 0.5, 0.0]]).expand(len(edges), 3), torch.tensor([[0.0, 0, 1]])
    rays_d = rays_d.expand_as(rays_o)
    return fused.shade(rays_o, rays_d, rays_d, edges)


def test_a_uniform_cloud():
    """Density 2 over a length of 1, and over 0.25: opacity 1 - e^-2 and 1 - e^-0.5. Half is reached at ln(2) / 2."""
    rgb, accumulation, depth = shade(uniform(2.0), torch.tensor([[1.0], [0.25]]) * torch.linspace(0, 1, 21))
    opacity = [1 - math.exp(-2), 1 - math.exp(-0.5)]
    assert accumulation[:, 0].tolist() == pytest.approx(opacity, abs=1e-5)
    assert rgb.flatten().tolist() == pytest.approx([opacity[0] / 2] * 3 + [opacity[1] / 2] * 3, abs=1e-5)
    # ln(2) / 2 = 0.347 is in the sample 0.30..0.35. The second ray does not reach it, so it gets its last sample.
    assert depth[:, 0].tolist() == pytest.approx([0.325, 0.25 * 39 / 40], abs=1e-5)


def test_the_last_sample_extends_to_infinity():
    fused = uniform(2.0)
    fused.options = (fused.options[0], True, *fused.options[2:])
    rgb, accumulation, _ = shade(fused, torch.linspace(0, 1, 21)[None])
    assert float(accumulation) == pytest.approx(1 - math.exp(-2), abs=1e-5)
    assert rgb.flatten().tolist() == pytest.approx([0.5] * 3, abs=1e-5)


def test_samples_behind_a_spent_transmittance_are_not_evaluated():
    """Density 100 with samples of 0.1: e^-10 is behind the first. The field has no value beyond 0.5."""
    fused = uniform(100.0)
    table, scalings, network, scale = fused.network
    table = np.zeros((1, 2 * 16 * 16, table.shape[2]), dtype=np.float32)
    scalings = np.array([4.0], dtype=np.float32)
    x, y, z = np.meshgrid(range(5), range(5), (3, 4, 5), indexing="ij")
    rows = (x ^ y * 2654435761 ^ z * 805459861) & (table.shape[1] - 1)
    table[0, rows.ravel()] = np.nan
    fused.network = (table, scalings, network, scale)
    edges = torch.linspace(0, 1, 11)[None]
    assert all(torch.isfinite(value).all() for value in shade(fused, edges))
    fused.options = (*fused.options[:-1], np.float32(0))
    assert torch.isnan(shade(fused, edges)[1]).all()  # the test notices samples there


def test_both_paths_search_the_same_intervals():
    """numba's cache follows the file of a loop only, so the number stands in both."""
    assert fused_sampling.NUM_INTERVALS == fast_nerfacto.NUM_INTERVALS


def test_threads_make_no_difference(monkeypatch):
    edges = (torch.linspace(0, 1, 21) * torch.linspace(0.1, 1, 300)[:, None]).contiguous()
    fused = uniform(3.0)
    alone = shade(fused, edges)
    monkeypatch.setattr(fused_nerfacto, "CHUNK", 7)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for one, three in zip(alone, shade(fused, edges)):
        assert torch.equal(one, three)


# -- rays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("camera_type", [CameraType.PERSPECTIVE, CameraType.FISHEYE])
def test_rays_are_nerfstudios(camera_type):
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(3, 3))[0]
    pose = torch.cat([rotation, torch.tensor([[1.0], [2], [3]])], dim=1)[None].double()  # as a data parser may have it
    focal = torch.tensor([[20.0]]).double()
    camera = Cameras(pose, focal, focal * 1.2, focal / 3, focal / 2, width=16, height=12, camera_type=camera_type)
    found, expected = pixel_rays(camera), camera.generate_rays(0, keep_shape=True)
    assert found.shape == (12, 16)
    torch.testing.assert_close(found.directions, expected.directions.float(), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.origins, expected.origins.float())
    assert found.directions.dtype == found.origins.dtype == torch.float32


# -- where torch renders --------------------------------------------------------------------------------------------


def test_what_can_be_fused():
    model = build()
    field, sampler = model.field, model.proposal_sampler.initial_sampler
    assert can_fuse(field, sampler) and can_fuse(field, UniformSampler())
    assert can_fuse(field, UniformLinDispPiecewiseSampler()) and not can_fuse(field, LogSampler())
    field.mlp_head.activation = torch.nn.Softplus()
    assert not can_fuse(field, sampler)
    field.mlp_head.activation = torch.nn.ReLU()
    assert can_fuse(field, sampler)
    assert not can_fuse(field.half(), sampler)
    assert not can_fuse(field.float().to("meta"), sampler)
    field = build().field
    field.mlp_base.model = torch.nn.Identity()  # with tiny-cuda-nn this is one module and no Sequential
    assert not can_fuse(field, sampler)
    field.mlp_base = torch.nn.Identity()
    assert not can_fuse(field, sampler)


def test_without_numba_torch_renders(camera, monkeypatch):
    model = build()
    torch.manual_seed(0)
    compiled = FastNerfacto(model).outputs_for_camera(camera)
    monkeypatch.setitem(sys.modules, "numba.core", None)
    torch.manual_seed(0)
    fast = FastNerfacto(model)
    assert fast.fused is None
    assert (fast.outputs_for_camera(camera)["rgb"] - compiled["rgb"]).abs().mean() < 0.01


@pytest.mark.parametrize("error", [SystemError, OSError, AttributeError])
def test_a_numba_that_does_not_load(error, monkeypatch):
    class Broken:
        def find_spec(self, name, path, target=None):
            if name == "numba.core":
                raise error("numba needs another numpy")

    monkeypatch.delitem(sys.modules, "numba.core")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    assert not fused_nerfacto._numba_works()


def test_a_numba_that_does_not_compile(monkeypatch):
    monkeypatch.setattr(fused_math.numba.core.config, "DISABLE_JIT", 1)
    assert not fused_nerfacto._numba_works()


def test_without_a_folder_for_the_cache(monkeypatch):
    """numba refuses to cache where it finds no folder that it can write."""
    from numba.core import caching

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    with pytest.raises(RuntimeError, match="cannot cache"):
        fused_math.numba.njit(cache=True)(double)
    assert fused_math.compiled(double)(21) == 42


def double(x):
    return 2 * x
