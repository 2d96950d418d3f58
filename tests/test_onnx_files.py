"""The files for onnxruntime and Lens Studio: names, shapes, operators and metadata, and the images that they render."""

import json
import math

import numpy as np
import onnx
import pytest
import torch
from builders import KINDS, STUDENT_CAMERA, make_student
from export_builders import nerfstudio_rays, some_poses, template_orbit, torch_image, write_both

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export import onnx_files, onnx_graph, snap_files
from mobiler2l_ns.export.snap_operators import check_snap_operators
from mobiler2l_ns.runtime import Renderer

ONNX_FILES = {"Sampler.onnx", "Embedder.onnx", "MobileR2L.onnx", "pipeline.onnx"}


@pytest.fixture(scope="module", params=KINDS)
def exported(request, tmp_path_factory):
    """A student of each kind and the folder it was written to."""
    model = make_student(**KINDS[request.param])
    return model, write_both(model, tmp_path_factory.mktemp(request.param))


# -- the files ------------------------------------------------------------------------------------------------------


def test_names_shapes_and_opset_follow_the_contract(exported):
    model, folder = exported
    (h, w), (height, width) = model.sampler.grid.tolist(), model.size
    snap_network = snap_files.snap_network_name(model, "lego")
    surface = model.config.surface_octaves
    channels = 24 + 3 * (2 * surface + 1) if surface else 312
    network = {"input": (1, channels, h, w), "output": (1, 3, height, width)}
    codes = (1, 1, h * w, channels) if surface else (1, 13, h * w, 24)
    wanted = {
        "onnx/MobileR2L.onnx": network,
        f"snap/{snap_network}": network,
        "onnx/pipeline.onnx": {"c2w": ("batch", 3, 4), "rgb": ("batch", 3, height, width)},
    }
    for target in ("onnx", "snap"):
        wanted[f"{target}/Sampler.onnx"] = {"c2w33": (1, 1, 3, 3), "c2w13": (1, 1, 1, 3), "pts": (1, 1, h * w, 24)}
        wanted[f"{target}/Embedder.onnx"] = {"rays": (1, 1, h * w, 24), "embbrays": codes}
    assert {path.name for path in (folder / "onnx").iterdir()} == {*ONNX_FILES, "intrinsics.json"}
    assert {"Sampler.onnx", "Embedder.onnx", snap_network} <= {path.name for path in (folder / "snap").iterdir()}
    for name, shapes in wanted.items():
        graph = onnx.load(folder / name)
        found = {
            value.name: tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
            for value in (*graph.graph.input, *graph.graph.output)
        }
        assert found == shapes
        opset = 20 if "pipeline" in name else 11
        assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", opset)]


def test_operators(exported):
    model, folder = exported
    network = snap_files.snap_network_name(model, "lego")
    for name in ("Sampler.onnx", "Embedder.onnx", network):
        check_snap_operators(folder / "snap" / name)
    types = [node.op_type for node in onnx.load(folder / "snap" / network).graph.node]
    activations = sum(isinstance(m, (torch.nn.GELU, torch.nn.ReLU)) for m in model.network.modules())
    expected, absent = ("GeluSnap", "Relu") if model.network.config.activation == "gelu" else ("Relu", "GeluSnap")
    assert types.count(expected) == activations and absent not in types
    assert "BatchNormalization" not in types
    assert {"ConvTranspose", "Erf", "BatchNormalization"}.isdisjoint(
        node.op_type for node in onnx.load(folder / "onnx" / "pipeline.onnx").graph.node
    )


def test_files_are_valid_once_gelusnap_is_renamed(exported):
    model, folder = exported
    for path in folder.rglob("*.onnx"):
        graph = onnx.load(path)
        if path.name == "lego_SnapGELU.onnx":
            with pytest.raises(onnx.checker.ValidationError):
                onnx.checker.check_model(graph)
        onnx_graph.rename_operators(graph, "GeluSnap", "Relu")
        onnx.checker.check_model(graph, full_check=True)


def test_the_camera_is_in_every_file(exported):
    model, folder = exported
    camera = json.loads((folder / "onnx" / "intrinsics.json").read_text())
    assert json.loads((folder / "snap" / "intrinsics.json").read_text()) == camera
    (h, w), s = model.sampler.grid.tolist(), model.upscale
    assert (camera["H"], camera["W"], camera["n_sample"], camera["multires"]) == (h, w, 8, 6)
    assert camera["focal"] == pytest.approx(70 / s) and camera["image_focal"] == pytest.approx(70)
    if model.sampler.unbounded:  # 2 / (1/2 + 1/200)
        assert (camera["near"], camera["far"]) == (2.0, 200.0) and camera["radius"] == pytest.approx(3.960396)
        assert camera["contraction_centre"] == pytest.approx([0.1, -0.2, 0.3]) and camera["contraction_radius"] == 3.0
    else:
        assert (camera["near"], camera["far"], camera["radius"]) == (
            2.0,
            5.0,
            3.5,
        ) and "contraction_centre" not in camera
    assert camera["output_scale"] == 255 and camera.get("surface_octaves", 0) == model.config.surface_octaves
    assert (camera["image_height"], camera["image_width"], camera["upscale"]) == (48, 72, s)
    assert 0.5 * 72 / math.tan(0.5 * camera["cam_angle"]) == pytest.approx(70)
    for path in folder.rglob("*.onnx"):
        assert {p.key: p.value for p in onnx.load(path).metadata_props} == {
            key: str(value) for key, value in camera.items()
        }


def test_sampler_and_embedder_are_small_at_the_published_size(tmp_path):
    model = make_student(camera={**STUDENT_CAMERA, "height": 800, "width": 800, "focal": 1111.0})
    graphs = onnx_files.trace_front(model)
    assert sum(len(graphs[name].SerializeToString()) for name in ("Sampler.onnx", "Embedder.onnx")) < 300_000


def test_surface_codes_change_nothing_but_embedder_and_network(tmp_path):
    """The host's script and the Sampler are those of a student without a surface code."""
    plain, surface = make_student(), make_student(surface_octaves=8)
    graphs = [onnx_files.trace_front(model)["Sampler.onnx"].SerializeToString() for model in (plain, surface)]
    assert graphs[0] == graphs[1]
    # The codes of K points stay within the Embedder: 24 coordinates and 51 codes of the surface leave it, not 312.
    assert surface.network.in_channels == 75


def test_too_many_rays_for_files_are_one_sentence():
    """800 x 800 rays of 312 codes are 0.8 GB. With super-resolution, 800 x 800 pixels need fewer rays."""
    camera = {**STUDENT_CAMERA, "height": 800, "width": 800}
    model = make_student(camera, **KINDS["r2l"])
    with pytest.raises(UserError, match="800x800 pixels would hold 0.80 GB.*--pipeline.datamanager.image-size"):
        onnx_files.check_size(model)
    with pytest.raises(UserError, match="would hold 0.80 GB"):  # within the Embedder
        onnx_files.check_size(make_student(camera, surface_octaves=8, **KINDS["r2l"]))
    onnx_files.check_size(make_student(camera))


# -- images -----------------------------------------------------------------------------------------------------------


def test_both_chains_render_what_torch_renders(exported):
    model, folder = exported
    renderer = Renderer(folder, num_threads=1)
    for c2w in some_poses():
        truth = torch_image(model, c2w)
        assert truth.std() > 0.05  # else a wrong order of channels could pass
        for layout in ("nchw", "hwc"):
            image = renderer.render_chain(c2w, layout)
            assert image.shape == (*model.size, 3) and image.dtype == np.float32
            assert np.abs(image - truth).max() < 2e-4


def test_the_one_graph_renders_any_number_of_poses(exported):
    model, folder = exported
    poses = np.stack(some_poses())
    images = Renderer(folder, num_threads=1).render(poses)
    assert images.shape == (len(poses), *model.size, 3) and images.dtype == np.float32
    for c2w, image in zip(poses, images):
        assert np.abs(image - torch_image(model, c2w)).max() < 2e-4
    assert np.abs(Renderer(folder / "onnx").render(poses[0]) - images[0]).max() < 1e-5


def test_a_wrong_order_of_codes_shows(exported):
    """A host that reads codes before coordinates renders another image, which the comparisons detect."""
    model, folder = exported
    renderer = Renderer(folder)
    c2w = some_poses()[0]
    pose = {"c2w33": c2w[None, None, :3, :3], "c2w13": c2w[None, None, None, :3, 3]}
    (points,) = renderer.session("Sampler.onnx").run(None, pose)
    (codes,) = renderer.session("Embedder.onnx").run(None, {"rays": points})
    network = renderer.session("MobileR2L.onnx")
    wrong = (codes if model.config.surface_octaves else codes.transpose(0, 1, 3, 2)).reshape(
        network.get_inputs()[0].shape
    )
    (image,) = network.run(None, {"input": wrong})
    assert np.abs(image[0].transpose(1, 2, 0) - torch_image(model, c2w)).max() > 0.05


def test_sampler_points_lie_on_nerfstudio_rays(exported):
    """Evenly spaced in z; or evenly spaced in 1/z and contracted."""
    model, folder = exported
    sampler = Renderer(folder, num_threads=1).session("Sampler.onnx")
    depths = 1 / np.linspace(1 / 2.0, 1 / 200.0, 8) if model.sampler.unbounded else np.linspace(2.0, 5.0, 8)
    for c2w in some_poses():
        bundle = nerfstudio_rays(model, c2w)
        directions = (bundle.directions * bundle.metadata["directions_norm"]).reshape(-1, 3).numpy()
        expected = c2w[None, None, :3, 3] + depths[None, :, None] * directions[:, None, :]
        if model.sampler.unbounded:
            expected = contracted((expected - [0.1, -0.2, 0.3]) / 3.0)
        (points,) = sampler.run(None, {"c2w33": c2w[None, None, :3, :3], "c2w13": c2w[None, None, None, :3, 3]})
        np.testing.assert_allclose(points[0, 0].reshape(-1, 8, 3), expected, atol=1e-5)


def contracted(points):
    """mip-NeRF 360's contraction (..., 3) with the maximum norm."""
    m = np.abs(points).max(axis=-1, keepdims=True)
    return np.where(m > 1, (2 - 1 / m) * points / m, points)


def test_template_orbit_looks_at_the_origin_from_above():
    c2w = template_orbit(40, -30, 3.5)
    assert np.linalg.norm(c2w[:3, 3]) == pytest.approx(3.5) and np.linalg.det(c2w[:3, :3]) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(c2w[:3, 3] - 3.5 * c2w[:3, 2], 0, atol=1e-5)
    assert c2w[2, 3] == pytest.approx(3.5 * math.sin(math.radians(30)), abs=1e-5)


def test_alpha_and_depth(tmp_path):
    """pipeline.onnx returns five channels by name, with depth in world units."""
    model = make_student(outputs="rgbad")
    folder = tmp_path / "onnx"
    folder.mkdir()
    onnx_files.write_onnx_files(model, folder, outputs="rgbad")
    images = Renderer(folder).render_all(some_poses()[0])
    assert {name: image.shape for name, image in images.items()} == {
        "rgb": (48, 72, 3), "alpha": (48, 72, 1), "depth": (48, 72, 1),
    }  # fmt: skip
    assert 0 <= images["alpha"].min() < images["alpha"].max() <= 1
    assert 2.0 <= images["depth"].min() < images["depth"].max() <= 5.0
    assert Renderer(folder).render_chain(some_poses()[0]).shape == (48, 72, 3)
