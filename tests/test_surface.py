"""The surface code: the predicted point by hand, layouts, gradients, and old students without it."""

import math

import pytest
import torch
import yaml
from builders import KINDS, make_student, write_run
from export_builders import export_run

from mobiler2l_ns.checkpoints import load_model
from mobiler2l_ns.export.pose_graph import PoseToImage
from mobiler2l_ns.student import renderer
from mobiler2l_ns.student.embedder import Embedder, positional_code, to_network_input
from mobiler2l_ns.student.network import count_macs, count_parameters
from mobiler2l_ns.student.surface import SurfaceEmbedder
from mobiler2l_ns.student.viewing_range import viewing_range


@pytest.fixture
def embedder():
    """Five points, three octaves of their codes, and four of the surface's."""
    torch.manual_seed(0)
    return SurfaceEmbedder(5, 3, 4, width=8)


@pytest.fixture
def points():
    """Points of 2 x 3 rays of two cameras (2, 15, 2, 3)."""
    return torch.randn(2, 15, 2, 3, generator=torch.Generator().manual_seed(1))


def choose(embedder, *chosen):
    """Makes the head choose these points with equal weights, whatever its input."""
    last = embedder.head[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(-100.0)
        last.bias[list(chosen)] = 0.0


@pytest.mark.parametrize("k", range(5))
def test_one_point_is_the_surface(embedder, points, k):
    choose(embedder, k)
    surface, depth = embedder.predict(points)
    torch.testing.assert_close(surface, points[:, 3 * k : 3 * k + 3], atol=1e-6, rtol=0)
    torch.testing.assert_close(depth, torch.full((2, 1, 2, 3), k / 4), atol=1e-6, rtol=0)


def test_two_points_have_their_mean(embedder, points):
    choose(embedder, 1, 4)
    surface, depth = embedder.predict(points)
    torch.testing.assert_close(surface, (points[:, 3:6] + points[:, 12:15]) / 2, atol=1e-6, rtol=0)
    torch.testing.assert_close(depth, torch.full((2, 1, 2, 3), (1 / 4 + 4 / 4) / 2), atol=1e-6, rtol=0)


def test_weights_are_a_softmax_of_the_logits(embedder, points):
    with torch.no_grad():
        embedder.head[-1].weight.zero_()
        embedder.head[-1].bias.copy_(torch.tensor([1.0, 0.0, 2.0, -1.0, 0.5]))
    weights = [math.exp(logit) for logit in (1.0, 0.0, 2.0, -1.0, 0.5)]
    expected = sum(w * points[:, 3 * k : 3 * k + 3] for k, w in enumerate(weights)) / sum(weights)
    torch.testing.assert_close(embedder.predict(points)[0], expected, atol=1e-6, rtol=0)


def test_channels_by_hand(embedder, points):
    """Coordinates of the K points, then sines, cosines and coordinates of the surface, octave by octave."""
    choose(embedder, 2)
    channels = embedder.encode(points)
    assert channels.shape == (2, embedder.out_channels, 2, 3) and embedder.out_channels == 15 + 3 * 9
    torch.testing.assert_close(channels[:, :15], points)
    x, y, z = points[1, 6:9, 0, 2].tolist()
    codes = [math.sin(2**octave * value) for octave in range(4) for value in (x, y, z)]
    codes += [math.cos(2**octave * value) for octave in range(4) for value in (x, y, z)]
    assert channels[1, 15:, 0, 2].tolist() == pytest.approx([*codes, x, y, z], abs=1e-5)


def test_codes_of_the_points_stay_inside(embedder, points):
    """Two sets of points with one surface and equal coordinates elsewhere differ in no other channel."""
    choose(embedder, 0)
    other = points.clone()
    other[:, 12:] += 0.5  # the last point, which is not the surface
    changed = (embedder.encode(points) != embedder.encode(other)).any(dim=(0, 2, 3))
    assert changed.nonzero().flatten().tolist() == [12, 13, 14]


def test_layouts_agree(either, points):
    """``encode`` of an image of rays, ``forward`` of rows of rays, and a flat copy into (H, W, C) memory."""
    encoded = either.encode(points)
    rows = points.permute(0, 2, 3, 1).reshape(2, 1, 6, 15)
    codes = either(rows)
    assert codes.shape == (2, 1, 6, either.out_channels)
    # A refinement computes codes of six octaves, and the surface has four more.
    atol = 2e-4 if either.refinements else 3e-5
    torch.testing.assert_close(to_network_input(codes, 2, 3), encoded, atol=atol, rtol=0)
    memory = codes.permute(0, 2, 3, 1).flatten()  # (H, W, C): rays, channels, one
    torch.testing.assert_close(memory, to_network_input(codes, 2, 3).permute(0, 2, 3, 1).flatten(), atol=0, rtol=0)


# -- refinements ------------------------------------------------------------------------------------------------------


@pytest.fixture
def refined():
    """The same with two refinements."""
    torch.manual_seed(0)
    return SurfaceEmbedder(5, 3, 4, width=8, num_refinements=2)


def shift(refinement, difference):
    """Makes a refinement add a number, whatever its input."""
    with torch.no_grad():
        refinement[-1].weight.zero_()
        refinement[-1].bias.fill_(difference)


def test_a_refined_surface_lies_between_two_points(refined, points):
    """The first depth is that of point 1, 0.25. It becomes 0.35, then 0.8: a fifth of the way from point 3 to 4."""
    choose(refined, 1)
    shift(refined.refinements[0], 0.1)
    shift(refined.refinements[1], 0.45)
    surface, depths = refined.predict(points)
    assert depths.shape == (2, 3, 2, 3)
    for found, expected in zip(depths.unbind(1), (0.25, 0.35, 0.8)):
        torch.testing.assert_close(found, torch.full((2, 2, 3), expected), atol=1e-6, rtol=0)
    expected = 0.8 * points[:, 9:12] + 0.2 * points[:, 12:15]
    torch.testing.assert_close(surface, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("depth", [-0.3, 0.0, 0.1, 0.25, 0.5, 0.99, 1.0, 1.7])
def test_interpolation_by_hand(refined, depth):
    """Beyond the first and the last point there is no other."""
    weights = refined._interpolate(torch.full((1, 1, 1, 1), depth)).flatten().tolist()
    place = min(max(4 * depth, 0), 4)
    assert weights == pytest.approx([max(0.0, 1 - abs(place - k)) for k in range(5)], abs=1e-5)


def test_a_refinement_sees_the_point_that_it_refines(refined, points):
    """Its input changes with the point that was chosen, and with nothing else of the first prediction."""
    seen = []
    refined.refinements[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for k in (1, 3):
        choose(refined, k)
        refined.predict(points)
        torch.testing.assert_close(
            seen[-1][:, :39], positional_code(points[:, 3 * k : 3 * k + 3], 6), atol=1e-4, rtol=0
        )
    assert torch.equal(seen[0][:, 39:], seen[1][:, 39:])


def test_a_new_refinement_changes_little(refined, points):
    _, depths = refined.predict(points)
    assert 0 < (depths[:, 1:] - depths[:, :-1]).abs().max() < 0.2


@pytest.fixture(params=[0, 2], ids=["no refinement", "two refinements"])
def either(request, embedder, refined):
    """An embedder with and without refinements."""
    return refined if request.param else embedder


# -- layouts and weights ----------------------------------------------------------------------------------------------


def test_gradients_reach_every_weight(either, points):
    either.encode(points).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in either.parameters())


def test_depth_teaches_each_prediction(either, points):
    optimizer = torch.optim.Adam(either.parameters(), lr=0.02)
    target = torch.rand(2, 1, 2, 3, generator=torch.Generator().manual_seed(2))
    for _ in range(200):
        loss = (either.predict(points)[1] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1e-3


def test_weights_alone_are_saved(refined):
    """The convolutions with fixed weights follow from the shape."""
    assert {name.split(".")[0] for name in refined.state_dict()} == {"head", "refinements"}
    assert len(refined.state_dict()) == len(list(refined.parameters()))
    assert not Embedder(3).state_dict()


def test_work_of_the_head(embedder):
    """15 * 7 codes to 8 channels, two blocks of two 8 x 8 convolutions, and 5 logits."""
    assert count_macs(embedder, 2, 3) == 6 * (105 * 8 + 4 * 64 + 8 * 5)
    assert count_parameters(embedder) == 105 * 8 + 4 * 64 + 8 * 5 + 5 * 8 + 5
    assert count_macs(Embedder(3), 2, 3) == 0


def test_work_of_a_refinement(embedder, refined):
    """39 codes and 8 features to 8 channels, 8 to 8, and one difference."""
    assert count_macs(refined, 2, 3) - count_macs(embedder, 2, 3) == 2 * 6 * (47 * 8 + 8 * 8 + 8)


def test_batches_of_single_rays(monkeypatch):
    """Without super-resolution rays are rendered as a column, in parts; each keeps its own surface."""
    model = make_student(surface_octaves=8, **KINDS["r2l"])
    rays_o, rays_d = torch.randn(2, 3, 4, 3), torch.randn(2, 3, 4, 3)
    view, depth = model.renderer.render_with_surface(rays_o, rays_d)
    assert view.shape == (2, 3, 3, 4) and depth.shape == (2, 1, 3, 4)
    points = model.sampler.points(rays_o, rays_d).permute(0, 3, 1, 2)
    torch.testing.assert_close(depth, model.embedder.predict(points)[1], atol=1e-5, rtol=0)
    monkeypatch.setattr(renderer, "MAX_RAYS", 5)
    in_parts = model.renderer.render_with_surface(rays_o, rays_d)
    torch.testing.assert_close(in_parts, (view, depth), atol=1e-4, rtol=0)


def test_the_one_graph_has_a_multiple_of_four_channels():
    """onnxruntime then keeps its layout through the network; the channels that are added count for nothing."""
    for octaves, channels in ((0, 312), (8, 76), (9, 84)):
        model = make_student(surface_octaves=octaves)
        graph = PoseToImage(model.sampler, model.embedder, model.network).eval()
        assert graph.head[0].weight.shape[1] == channels
        assert not graph.head[0].weight[:, model.network.in_channels :].any()
        pose = viewing_range(model).sample(1)
        with torch.no_grad():
            image = graph(pose)[0][0].permute(1, 2, 0)
        torch.testing.assert_close(image, model.render_pose(pose[0]), atol=2e-4, rtol=0)


# -- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_is_loaded_with_its_head(tmp_path):
    model = make_student(surface_octaves=8, refinements=2)
    loaded, step = load_model(write_run(tmp_path, model), "cpu")
    assert step == 7 and isinstance(loaded.embedder, SurfaceEmbedder)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_a_run_without_the_fields_loads_and_exports(tmp_path):
    """config.yml of a student from before the surface code."""
    path = write_run(tmp_path / "run", make_student())
    config = yaml.load(path.read_text(), Loader=yaml.Loader)
    for field in [name for name in vars(config.pipeline.model) if name.startswith("surface_")]:
        del vars(config.pipeline.model)[field]
    path.write_text(yaml.dump(config))
    assert "surface" not in path.read_text()
    model, _ = load_model(path, "cpu")
    assert isinstance(model.embedder, Embedder) and model.network.in_channels == 312
    report = export_run(path, tmp_path / "out")
    assert max(report["parity"]["max_abs"].values()) < 2e-4


@pytest.mark.parametrize(
    ("precision", "opset"), [("fp32", 11), ("fp32", 13), ("fp32", 20), ("fp16", 11), ("fp16", 20), ("int8", 13)]
)
def test_a_run_is_exported(tmp_path, precision, opset):
    """With Snap's files once, which have neither precision nor opset."""
    config_path = write_run(tmp_path / "run", make_student(surface_octaves=8, refinements=1, outputs="rgbad"))
    targets = ("onnx", "snap") if (precision, opset) == ("fp32", 11) else ("onnx",)
    options = {"targets": targets, "outputs": "rgbad", "precision": precision, "opset": opset}
    report = export_run(config_path, tmp_path / "out", **options)
    model = make_student(surface_octaves=8, refinements=1, outputs="rgbad")
    parts, grid = (model.embedder, model.network), model.sampler.grid.tolist()
    assert report["params"] == sum(map(count_parameters, parts))
    assert report["gmac"] == pytest.approx(sum(count_macs(part, *grid) for part in parts) / 1e9)
    lowest = {"fp32": 90, "fp16": 50, "int8": 20}[precision]
    assert report["parity"]["psnr"]["onnx/pipeline.onnx"] > lowest
