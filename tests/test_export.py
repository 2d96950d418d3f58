"""The exported files: their layout, their numbers against torch, and what a failed export leaves behind (nothing)."""

import copy
import errno
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
import yaml
from builders import KINDS, STUDENT_CAMERA, make_student, write_run
from nerfstudio.data.scene_box import SceneBox

from mobiler2l_ns import method_configs
from mobiler2l_ns.cameras import cell_centres, pinhole_cameras, rays_at, student_rays
from mobiler2l_ns.data.student_camera import StudentCamera
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export import command as export
from mobiler2l_ns.export import onnx_files, onnx_graph, output_folder, snap_files, verification
from mobiler2l_ns.export.command import ExportMobileR2L
from mobiler2l_ns.export.snap_operators import check_snap_operators
from mobiler2l_ns.runtime import Renderer
from mobiler2l_ns.student.viewing_range import viewing_range

ONNX_FILES = {"Sampler.onnx", "Embedder.onnx", "MobileR2L.onnx", "pipeline.onnx"}
SNAP_FILES = {"Sampler.onnx", "Embedder.onnx", "lego_SnapGELU.onnx"}


def template_orbit(theta, phi, radius):
    """Snap's Lens template: c2w = M Rtheta (Rphi T(0, 0, R)); angles in degrees."""
    theta, phi = math.radians(theta), math.radians(phi)
    shift = np.eye(4)
    shift[2, 3] = radius
    tilt, turn = np.eye(4), np.eye(4)
    tilt[1:3, 1:3] = [[math.cos(phi), -math.sin(phi)], [math.sin(phi), math.cos(phi)]]
    turn[np.ix_([0, 2], [0, 2])] = [[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]]
    to_z_up = np.array([[-1.0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    return (to_z_up @ turn @ (tilt @ shift)).astype(np.float32)


def some_poses():
    orbit = viewing_range(make_student())  # none was recorded: around the origin
    poses = [np.vstack([p.numpy(), [0, 0, 0, 1]]) for p in orbit.sample(2, seed=11)]
    poses += [template_orbit(theta, phi, 3.5) for theta, phi in ((0, -30), (137, -75), (-80, -15))]
    return [pose.astype(np.float32) for pose in poses]


@torch.no_grad()
def torch_image(model, c2w):
    """What the student renders in nerfstudio, through nerfstudio's own cameras."""
    return model.renderer.render_rays(*student_rays(nerfstudio_rays(model, c2w)))[0].permute(1, 2, 0).numpy()


def nerfstudio_rays(model, c2w):
    h, w = model.sampler.grid.tolist()
    cameras = pinhole_cameras(torch.from_numpy(c2w[None, :3]), model.focal, *model.size)
    return rays_at(cameras, torch.zeros(1, dtype=torch.long), cell_centres(h, w, (model.upscale,) * 2)[None])


@pytest.fixture(scope="module", params=KINDS)
def exported(request, tmp_path_factory):
    """A student of each kind and the folder it was written to."""
    model = make_student(**KINDS[request.param])
    folder = write_both(model, tmp_path_factory.mktemp(request.param))
    return model, folder


def write_both(model, folder, outputs="rgb"):
    """The onnx and the snap folder of a student."""
    for target in ("onnx", "snap"):
        (folder / target).mkdir()
    onnx_files.write_onnx_files(model, folder / "onnx", outputs)
    snap_files.write_snap_files(model, folder / "snap", "lego", outputs)
    return folder


def check(model, folder, poses):
    """Figures of all files of both folders."""
    truth = verification.compute_truth(model, poses)
    entries = verification.verify_onnx(model, truth, folder / "onnx")
    snap = verification.verify_snap(model, truth, folder / "snap", "lego")
    return truth, {**entries, **{f"snap/{name}": entry for name, entry in snap.items()}}


# -- the files ------------------------------------------------------------------------------------------------------


def test_names_shapes_and_opset_follow_the_contract(exported):
    model, folder = exported
    (h, w), (height, width) = model.sampler.grid.tolist(), model.size
    snap_network = snap_files.snap_network_name(model, "lego")
    network = {"input": (1, 312, h, w), "output": (1, 3, height, width)}
    wanted = {
        "onnx/MobileR2L.onnx": network,
        f"snap/{snap_network}": network,
        "onnx/pipeline.onnx": {"c2w": ("batch", 3, 4), "rgb": ("batch", 3, height, width)},
    }
    for target in ("onnx", "snap"):
        wanted[f"{target}/Sampler.onnx"] = {"c2w33": (1, 1, 3, 3), "c2w13": (1, 1, 1, 3), "pts": (1, 1, h * w, 24)}
        wanted[f"{target}/Embedder.onnx"] = {"rays": (1, 1, h * w, 24), "embbrays": (1, 13, h * w, 24)}
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


def test_camera_facts_are_in_every_file(exported):
    model, folder = exported
    facts = json.loads((folder / "onnx" / "intrinsics.json").read_text())
    assert json.loads((folder / "snap" / "intrinsics.json").read_text()) == facts
    (h, w), s = model.sampler.grid.tolist(), model.upscale
    assert (facts["H"], facts["W"], facts["n_sample"], facts["multires"]) == (h, w, 8, 6)
    assert facts["focal"] == pytest.approx(70 / s) and facts["image_focal"] == pytest.approx(70)
    if model.sampler.unbounded:  # 2 / (1/2 + 1/200)
        assert (facts["near"], facts["far"]) == (2.0, 200.0) and facts["radius"] == pytest.approx(3.960396)
        assert facts["contraction_centre"] == pytest.approx([0.1, -0.2, 0.3]) and facts["contraction_radius"] == 3.0
    else:
        assert (facts["near"], facts["far"], facts["radius"]) == (2.0, 5.0, 3.5) and "contraction_centre" not in facts
    assert facts["output_scale"] == 255
    assert (facts["image_height"], facts["image_width"], facts["upscale"]) == (48, 72, s)
    assert 0.5 * 72 / math.tan(0.5 * facts["cam_angle"]) == pytest.approx(70)
    for path in folder.rglob("*.onnx"):
        assert {p.key: p.value for p in onnx.load(path).metadata_props} == {
            key: str(value) for key, value in facts.items()
        }


def test_sampler_and_embedder_are_small_at_the_published_size(tmp_path):
    model = make_student(camera={**STUDENT_CAMERA, "height": 800, "width": 800, "focal": 1111.0})
    graphs = onnx_files.trace_front(model)
    assert sum(len(graphs[name].SerializeToString()) for name in ("Sampler.onnx", "Embedder.onnx")) < 300_000


# -- numbers --------------------------------------------------------------------------------------------------------


def test_every_file_agrees_with_torch(exported):
    model, folder = exported
    _, entries = check(model, folder, viewing_range(model).sample(2, seed=5))
    verification.check_parity(entries, folder)
    network = snap_files.snap_network_name(model, "lego")
    snap = {f"snap/{name}" for name in ("Sampler.onnx", "Embedder.onnx", network)}
    chains = {"chain (nchw)", "chain (hwc)"}
    assert set(entries) == ONNX_FILES | snap | chains
    for name, entry in entries.items():
        assert 0 < entry["mean_abs"] <= entry["max_abs"] <= entry["tolerance"] <= 2e-4 and entry["psnr"] > 90
        if name not in chains:
            path = folder / (name if name in snap else f"onnx/{name}")
            assert entry["size_bytes"] == path.stat().st_size and entry["latency_ms"] > 0


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("method", ["mobiler2l", "mobiler2l_small", "mobiler2l_paper", "r2l"])
def test_every_preset_and_activation(method, activation, tmp_path):
    """The presets' own networks, on two by three rays."""
    config = copy.deepcopy(getattr(method_configs, method).config.pipeline.model)
    config.network.activation = activation
    s = config.network.upscale
    camera = {**STUDENT_CAMERA, "height": 2 * s, "width": 3 * s, "focal": 3.0 * s}
    box = SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    model = config.setup(scene_box=box, num_train_data=1, metadata={"student_camera": StudentCamera(**camera)}).eval()
    _, entries = check(model, write_both(model, tmp_path), viewing_range(model).sample(1))
    verification.check_parity(entries, tmp_path)


def test_only_the_chain_of_a_steep_student_may_differ_by_more(tmp_path):
    """Points rounded to float32 move a steep student's picture, in torch as well."""
    model = make_student(steepness=1.5)
    _, entries = check(model, write_both(model, tmp_path), viewing_range(model).sample(2, seed=5))
    verification.check_parity(entries, tmp_path)
    assert 2e-4 < entries["chain (nchw)"]["tolerance"] == entries["pipeline.onnx"]["tolerance"] < 2e-2
    assert entries["MobileR2L.onnx"]["tolerance"] == 2e-4


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
    """The test above can fail: a host that reads code-major instead of coordinate-major renders something else."""
    model, folder = exported
    renderer = Renderer(folder)
    c2w = some_poses()[0]
    pose = {"c2w33": c2w[None, None, :3, :3], "c2w13": c2w[None, None, None, :3, 3]}
    (points,) = renderer.session("Sampler.onnx").run(None, pose)
    (codes,) = renderer.session("Embedder.onnx").run(None, {"rays": points})
    network = renderer.session("MobileR2L.onnx")
    wrong = codes.transpose(0, 1, 3, 2).reshape(network.get_inputs()[0].shape)
    (image,) = network.run(None, {"input": wrong})
    assert np.abs(image[0].transpose(1, 2, 0) - torch_image(model, c2w)).max() > 0.05


def test_sampler_points_lie_on_nerfstudio_rays(exported):
    model, folder = exported
    if model.sampler.unbounded:
        return  # their points lie on rays no more: test_network has them by hand
    depths = np.linspace(2.0, 5.0, 8)
    for c2w in some_poses():
        bundle = nerfstudio_rays(model, c2w)
        directions = (bundle.directions * bundle.metadata["directions_norm"]).reshape(-1, 3).numpy()
        expected = c2w[None, None, :3, 3] + depths[None, :, None] * directions[:, None, :]
        (points,) = (
            Renderer(folder, num_threads=1)
            .session("Sampler.onnx")
            .run(None, {"c2w33": c2w[None, None, :3, :3], "c2w13": c2w[None, None, None, :3, 3]})
        )
        np.testing.assert_allclose(points[0, 0].reshape(-1, 8, 3), expected, atol=1e-5)


def test_template_orbit_looks_at_the_origin_from_above():
    c2w = template_orbit(40, -30, 3.5)
    assert np.linalg.norm(c2w[:3, 3]) == pytest.approx(3.5) and np.linalg.det(c2w[:3, :3]) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(c2w[:3, 3] - 3.5 * c2w[:3, 2], 0, atol=1e-5)
    assert c2w[2, 3] == pytest.approx(3.5 * math.sin(math.radians(30)), abs=1e-5)


# -- what verification refuses --------------------------------------------------------------------------------------


def corrupt(path, amount=0.05):
    """Changes one weight of the last convolution."""
    model = onnx.load(path)
    convolution = [node for node in model.graph.node if node.op_type == "Conv"][-1]
    (tensor,) = [t for t in model.graph.initializer if t.name == convolution.input[1]]
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[0] += amount
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


@pytest.fixture
def student(tmp_path):
    model = make_student()
    folder = tmp_path / "files"
    folder.mkdir()
    return model, write_both(model, folder)


def test_a_changed_weight_is_a_mismatch(student):
    model, folder = student
    for name in ("onnx/MobileR2L.onnx", "onnx/pipeline.onnx", "snap/lego_SnapGELU.onnx"):
        corrupt(folder / name)
    _, entries = check(model, folder, viewing_range(model).sample(1))
    for name in ("MobileR2L.onnx", "pipeline.onnx", "snap/lego_SnapGELU.onnx"):
        assert entries[name]["max_abs"] > entries[name]["tolerance"]
    with pytest.raises(UserError, match=r"MobileR2L\.onnx differs from the trained student by \d"):
        verification.check_parity(entries, folder)


@pytest.mark.parametrize("tolerance", [1e-4, None])
def test_nan_is_a_mismatch(tolerance):
    entries = {"Sampler.onnx": {"max_abs": float("nan"), "tolerance": tolerance}, "x.mlpackage": {}}
    with pytest.raises(UserError, match="Sampler.onnx"):
        verification.check_parity(entries, Path("out"))


def test_too_many_rays_for_files_are_one_sentence(capsys):
    """800 x 800 rays of 312 codes are 0.8 GB; the same rays with super-resolution behind them are few."""
    camera = {**STUDENT_CAMERA, "height": 800, "width": 800}
    model = make_student(camera, **KINDS["r2l"])
    with pytest.raises(UserError, match="800x800 pixels would pass 0.80 GB.*--pipeline.datamanager.image-size"):
        onnx_files.check_size(model)
    onnx_files.check_size(make_student(camera))
    (callback,) = model.get_training_callbacks(None)
    callback.run_callback(step=1)  # a finished training ends well, without files
    assert "No export" in capsys.readouterr().out


def test_a_training_without_onnx_ends_well(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    (callback,) = make_student().get_training_callbacks(SimpleNamespace(trainer=SimpleNamespace(base_dir=tmp_path)))
    callback.run_callback(step=1)
    said = capsys.readouterr().out
    assert "No export" in said and "needs onnx" in said and not list(tmp_path.iterdir())


# -- the runtime ----------------------------------------------------------------------------------------------------


def test_renderer_needs_neither_torch_nor_nerfstudio(student):
    _, folder = student
    script = (
        "import sys, numpy as np; from mobiler2l_ns.runtime import Renderer;"
        f"image = Renderer({str(folder)!r}).render(np.eye(4)); assert image.shape == (48, 72, 3);"
        "assert not {'torch', 'nerfstudio'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_renderer_explains_mistakes(student, tmp_path):
    _, folder = student
    renderer = Renderer(folder)
    with pytest.raises(ValueError, match="NaN"):
        renderer.render(np.full((3, 4), np.nan))
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        renderer.render(np.eye(3))
    with pytest.raises(ValueError, match="layout"):
        renderer.render_chain(np.eye(4), "nhwc")
    (folder / "onnx" / "Embedder.onnx").unlink()
    with pytest.raises(FileNotFoundError, match="Embedder.onnx"):
        Renderer(folder)


# -- the command ----------------------------------------------------------------------------------------------------


def export_run(config_path, output_dir, **options):
    """What the command does, without pictures unless asked for."""
    return ExportMobileR2L(config_path, output_dir, **{"num_views": 0, **options}).export()


@pytest.fixture
def config_path(tmp_path):
    return write_run(tmp_path / "run")


def test_export_run_writes_files_and_report(config_path, tmp_path):
    pool = {"frames": 3}
    (config_path.parent / "distillation.json").write_text(json.dumps({"pool": pool}))
    output_dir = tmp_path / "a" / "b"
    report = export_run(config_path, output_dir)
    assert {path.name for path in output_dir.iterdir()} == {"onnx", "snap", "report.json"}
    assert {path.name for path in (output_dir / "onnx").iterdir()} == {*ONNX_FILES, "intrinsics.json"}
    assert {path.name for path in (output_dir / "snap").iterdir()} >= {*SNAP_FILES, "intrinsics.json"}
    assert json.loads((output_dir / "report.json").read_text()) == report
    assert report["run"] == {"config": str(config_path), "step": 7, "method": "mobiler2l-small"}
    assert report["image"] == {"height": 48, "width": 72} and report["grid"] == {"height": 6, "width": 9}
    assert report["params"] > 0 and report["gmac"] > 0 and report["pool"] == pool
    files = {f"onnx/{name}" for name in ONNX_FILES} | {f"snap/{name}" for name in SNAP_FILES}
    assert files == set(report["latency_ms"]) == set(report["size_bytes"]) == set(report["operators"])
    assert set(report["parity"]["max_abs"]) == files | {"onnx/chain (nchw)", "onnx/chain (hwc)"}
    assert all(0 < difference < 2e-4 for difference in report["parity"]["max_abs"].values())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "run"]
    assert output_dir.stat().st_mode & 0o777 == (tmp_path / "a").stat().st_mode & 0o777
    np.testing.assert_allclose(
        Renderer(output_dir).render(some_poses()[0]), torch_image(make_student(), some_poses()[0]), atol=2e-4
    )


def test_same_run_is_replaced_another_is_not(config_path, tmp_path):
    output_dir = tmp_path / "out"
    export_run(config_path, output_dir, num_views=0)
    (output_dir / "onnx" / "Sampler.onnx").write_bytes(b"old")
    export_run(config_path, output_dir, targets=("onnx",))
    assert (output_dir / "onnx" / "Sampler.onnx").stat().st_size > 1000 and not (output_dir / "snap").exists()
    other = write_run(tmp_path / "other")
    with pytest.raises(UserError, match="--overwrite True"):
        export_run(other, output_dir, num_views=0)
    assert export_run(other, output_dir, num_views=0, overwrite=True)["run"]["config"] == str(other)


def test_foreign_files_are_refused_and_survive_overwriting(config_path, tmp_path):
    output_dir = tmp_path / "out"
    output_dir.mkdir()
    (output_dir / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="--overwrite True"):
        export_run(config_path, output_dir, num_views=0)
    assert [path.name for path in output_dir.iterdir()] == ["thesis.tex"]
    export_run(config_path, output_dir, num_views=0, overwrite=True)
    (output_dir / "onnx" / "notes").mkdir()
    (output_dir / "onnx" / "notes" / "mine.txt").write_text("mine too")
    export_run(config_path, output_dir, num_views=0, overwrite=True)
    assert (output_dir / "onnx" / "notes" / "mine.txt").read_text() == "mine too"
    assert (output_dir / "thesis.tex").read_text() == "mine" and (output_dir / "onnx" / "MobileR2L.onnx").exists()
    with pytest.raises(UserError, match="files of yours"):
        export_run(config_path, output_dir, num_views=0)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device"), None])
def test_failure_leaves_nothing_behind(config_path, tmp_path, monkeypatch, error):
    def fail(model, folder, *options):
        write_snap_files(model, folder, *options)
        if error is not None:
            raise error
        corrupt(folder / "lego_SnapGELU.onnx")

    def contents():
        return {path: path.read_bytes() for path in (tmp_path / "kept").rglob("*") if path.is_file()}

    write_snap_files = snap_files.write_snap_files
    export_run(config_path, tmp_path / "kept", num_views=0)
    before = contents()
    monkeypatch.setattr(snap_files, "write_snap_files", fail)
    expected, match = {
        KeyboardInterrupt: (KeyboardInterrupt, None),
        OSError: (UserError, "No space left"),
        type(None): (UserError, "snap/lego_SnapGELU.onnx differs"),
    }[type(error)]
    for target in (tmp_path / "kept", tmp_path / "new" / "deep"):
        with pytest.raises(expected, match=match):
            export_run(config_path, target, num_views=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept", "run"]
    assert contents() == before


def test_output_paths_that_cannot_be_written(config_path, tmp_path):
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="file"):
            export_run(config_path, target, num_views=0)
    assert (tmp_path / "file").read_text() == "x"


def test_students_that_cannot_be_exported(tmp_path):
    never_trained = make_student(camera=None)
    broken = make_student()
    with torch.no_grad():
        broken.network.tail[0].weight[0, 0] = float("nan")
    for name, model, complaint in (("a", never_trained, "never saw a camera"), ("b", broken, "NaN")):
        with pytest.raises(UserError, match=complaint):
            export_run(write_run(tmp_path / name, model), tmp_path / "out", num_views=0)
    assert not (tmp_path / "out").exists()


def test_a_teacher_is_not_a_student(tmp_path):
    from mobiler2l_ns.method_configs import mobiler2l_teacher_small

    (tmp_path / "config.yml").write_text(yaml.dump(mobiler2l_teacher_small.config))
    with pytest.raises(UserError, match="not a student"):
        export_run(tmp_path / "config.yml", tmp_path / "out", num_views=0)


def test_pictures_are_merged_or_skipped(config_path, tmp_path, monkeypatch, capsys):
    import types

    def compare(config, model, folder, num_views):
        if num_views == 9:
            raise UserError("there are no photos.")
        (folder / "view.png").write_bytes(b"picture")
        return {"psnr": 30.0}

    monkeypatch.setitem(sys.modules, "mobiler2l_ns.export.comparison", types.SimpleNamespace(compare=compare))
    report = export_run(config_path, tmp_path / "out", num_views=2)
    assert report["psnr"] == 30.0 and "view.png" in report["files"]
    assert "psnr" not in export_run(config_path, tmp_path / "out", num_views=9)
    assert "no photos" in capsys.readouterr().out and not (tmp_path / "out" / "view.png").exists()


def test_command_line(config_path, tmp_path, monkeypatch, capsys):
    arguments = ["--load-config", str(config_path), "--output-dir", str(tmp_path / "out"), "--num-views", "0"]
    monkeypatch.setattr(sys, "argv", ["ns-export-mobiler2l", *arguments, "--overwrite", "True"])
    export.entrypoint()
    printed = capsys.readouterr().out
    assert "lego_SnapGELU.onnx" in printed and "Next:" in printed


# -- fewer bits, other outputs, bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "size", "psnr"), [("fp16", 0.75, 55), ("int8", 2.0, 20)])
def test_fewer_bits(config_path, tmp_path, precision, size, psnr):
    """At this tiny size constants outweigh the weights; scripts/bench_export.py has the published network."""
    full = export_run(config_path, tmp_path / "fp32", targets=("onnx",))
    report = export_run(config_path, tmp_path / "out", targets=("onnx",), precision=precision)
    name = "onnx/pipeline.onnx"
    assert report["size_bytes"][name] < size * full["size_bytes"][name]
    assert psnr < report["parity"]["psnr"][name] < 90 < full["parity"]["psnr"][name]
    assert name not in report["parity"]["tolerance"]
    types = {tensor.data_type for tensor in onnx.load(tmp_path / "out" / name).graph.initializer}
    assert (onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.INT8) in types


def test_alpha_and_depth(tmp_path):
    """A network with five channels: the one graph returns them by name, depth in world units."""
    model = make_student(outputs="rgbad")
    folder = tmp_path / "onnx"
    folder.mkdir()
    onnx_files.write_onnx_files(model, folder, outputs="rgbad")
    truth = verification.compute_truth(model, viewing_range(model).sample(2))
    verification.check_parity(verification.verify_onnx(model, truth, folder, "rgbad"), folder)
    pictures = Renderer(folder).render_all(some_poses()[0])
    assert {name: picture.shape for name, picture in pictures.items()} == {
        "rgb": (48, 72, 3), "alpha": (48, 72, 1), "depth": (48, 72, 1),
    }  # fmt: skip
    assert 0 <= pictures["alpha"].min() < pictures["alpha"].max() <= 1
    assert 2.0 <= pictures["depth"].min() < pictures["depth"].max() <= 5.0
    assert Renderer(folder).render_chain(some_poses()[0]).shape == (48, 72, 3)


@pytest.mark.parametrize("outputs", ["rgb", "rgba", "rgbad"])
def test_a_run_with_alpha_and_depth_is_exported(tmp_path, outputs):
    """Verified, whatever is asked for: a picture an output, and never another number of channels."""
    config_path = write_run(tmp_path / "run", make_student(outputs="rgbad"))
    out = tmp_path / "out"
    export_run(config_path, out, outputs=outputs, targets=("onnx", "snap"))
    names = [output.name for output in onnx.load(out / "onnx" / "pipeline.onnx").graph.output]
    assert names == ["rgb", "alpha", "depth"][: len(outputs) - 2]
    for path in (out / "onnx" / "MobileR2L.onnx", out / "snap" / "lego_SnapGELU.onnx"):
        shapes = {
            picture.name: [size.dim_value for size in picture.type.tensor_type.shape.dim]
            for picture in onnx.load(path).graph.output
        }
        expected = {"output": [1, 3, 48, 72], "alpha": [1, 1, 48, 72], "depth01": [1, 1, 48, 72]}
        assert shapes == {name: expected[name] for name in list(expected)[: len(outputs) - 2]}


def test_a_wrong_alpha_is_a_mismatch(tmp_path):
    model = make_student(outputs="rgbad")
    folder = write_both(model, tmp_path, "rgbad")
    corrupt(folder / "snap" / "lego_SnapGELU.onnx")  # its last convolution is that of depth
    truth = verification.compute_truth(model, viewing_range(model).sample(1))
    entries = verification.verify_snap(model, truth, folder / "snap", "lego", "rgbad")
    with pytest.raises(UserError, match=r"lego_SnapGELU\.onnx differs"):
        verification.check_parity(entries, folder)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"opset": 10}, "--opset 10 .* from 11 to 20"),
        ({"opset": 23}, "--opset 23 .* from 11 to 20"),
        ({"targets": ()}, "--targets"),
        ({"outputs": "rgba"}, "without alpha: pass --outputs rgb"),
        ({"ort_dist": Path("dist")}, "add web to --targets"),
        ({"targets": ("web",), "ort_dist": Path("dist")}, "dist has no ort.webgpu.min.mjs: run `npm pack"),
        ({"targets": ("web",), "precision": "int8"}, "--precision fp32 or fp16"),
    ],
)
def test_options_that_cannot_be_had(config_path, tmp_path, options, complaint):
    with pytest.raises(UserError, match=complaint):
        export_run(config_path, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("opset", [11, 17])
def test_older_opsets_say_the_same(config_path, tmp_path, opset):
    report = export_run(config_path, tmp_path / "out", targets=("onnx",), opset=opset)
    assert onnx.load(tmp_path / "out" / "onnx" / "pipeline.onnx").opset_import[0].version == opset
    assert report["parity"]["max_abs"]["onnx/pipeline.onnx"] < 2e-4


@pytest.mark.parametrize("option", [["--targets", "onnx", "tflite"], ["--precision", "int4"]])
def test_unknown_words_end_the_command(config_path, tmp_path, monkeypatch, capsys, option):
    arguments = ["--load-config", str(config_path), "--output-dir", str(tmp_path / "out"), *option]
    monkeypatch.setattr(sys, "argv", ["ns-export-mobiler2l", *arguments])
    with pytest.raises(SystemExit) as stop:
        export.entrypoint()
    assert stop.value.code not in (0, None) and not (tmp_path / "out").exists()
    assert "invalid choice" in "".join(capsys.readouterr())


def test_every_target_in_one_folder(config_path, tmp_path):
    """One truth for all; the report lists every file, packages' inner ones included."""
    targets = ("onnx", "snap", "web", *(("coreml",) if importlib.util.find_spec("coremltools") else ()))
    report = export_run(config_path, tmp_path / "out", targets=targets)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*targets, "report.json"}
    assert set(report["files"]) == output_folder.files_of(tmp_path / "out")
    assert report["parity"]["max_abs"]["web/model.onnx"] <= 2e-4
    assert all(any(name.startswith(f"{target}/") for name in report["size_bytes"]) for target in targets)
    again = export_run(config_path, tmp_path / "out", targets=targets)
    assert again["files"] == report["files"]
