"""Verification: every file agrees with torch, and a file that does not is found."""

import copy
from pathlib import Path

import pytest
import torch
from builders import KINDS, STUDENT_CAMERA, make_student
from export_builders import corrupt, write_both
from nerfstudio.data.scene_box import SceneBox

from mobiler2l_ns import method_configs
from mobiler2l_ns.data.student_camera import StudentCamera
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export import onnx_files, snap_files, verification
from mobiler2l_ns.export.truth import compute_truth
from mobiler2l_ns.export.verification import FileFigures
from mobiler2l_ns.student.viewing_range import viewing_range

ONNX_FILES = {"Sampler.onnx", "Embedder.onnx", "MobileR2L.onnx", "pipeline.onnx"}


@pytest.fixture(scope="module", params=KINDS)
def exported(request, tmp_path_factory):
    """A student of each kind and the folder it was written to."""
    model = make_student(**KINDS[request.param])
    return model, write_both(model, tmp_path_factory.mktemp(request.param))


def check(model, folder, poses):
    """Figures of all files of both folders."""
    truth = compute_truth(model, poses)
    entries = verification.verify_onnx(model, truth, folder / "onnx")
    snap = verification.verify_snap(model, truth, folder / "snap", "lego")
    return truth, {**entries, **{f"snap/{name}": entry for name, entry in snap.items()}}


def test_every_file_agrees_with_torch(exported):
    model, folder = exported
    _, entries = check(model, folder, viewing_range(model).sample(2, seed=5))
    verification.check_parity(entries, folder)
    network = snap_files.snap_network_name(model, "lego")
    snap = {f"snap/{name}" for name in ("Sampler.onnx", "Embedder.onnx", network)}
    chains = {"chain (nchw)", "chain (hwc)"}
    assert set(entries) == ONNX_FILES | snap | chains
    for name, entry in entries.items():
        # The fastest code of a surface is 128 or 256 times as steep as the surface itself.
        limit = 1e-3 if name.endswith("Embedder.onnx") and model.config.surface_octaves else 2e-4
        assert 0 < entry.mean_abs <= entry.max_abs <= entry.tolerance <= limit and entry.psnr > 90
        if name not in chains:
            path = folder / (name if name in snap else f"onnx/{name}")
            assert entry.size_bytes == path.stat().st_size and entry.latency_ms > 0


@pytest.mark.parametrize(("method", "activation"), [("mobiler2l", "relu"), ("mobiler2l_compact", "gelu")])
def test_presets_that_no_other_test_exports(method, activation, tmp_path):
    """On two by three rays. tests/test_method_configs.py trains and exports the others."""
    config = copy.deepcopy(getattr(method_configs, method).config.pipeline.model)
    config.network.activation = activation
    s = config.network.upscale
    camera = {**STUDENT_CAMERA, "height": 2 * s, "width": 3 * s, "focal": 3.0 * s}
    box = SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    model = config.setup(scene_box=box, num_train_data=1, metadata={"student_camera": StudentCamera(**camera)}).eval()
    _, entries = check(model, write_both(model, tmp_path), viewing_range(model).sample(1))
    verification.check_parity(entries, tmp_path)


def test_only_the_chain_of_a_steep_student_may_differ_by_more(tmp_path):
    """Rounding points to float32 changes the image of a steep student, in torch as well."""
    model = make_student(steepness=1.5)
    _, entries = check(model, write_both(model, tmp_path), viewing_range(model).sample(2, seed=5))
    verification.check_parity(entries, tmp_path)
    assert 2e-4 < entries["chain (nchw)"].tolerance == entries["pipeline.onnx"].tolerance < 2e-2
    assert entries["MobileR2L.onnx"].tolerance == 2e-4


def test_a_changed_weight_is_a_mismatch(tmp_path):
    model = make_student()
    folder = write_both(model, tmp_path)
    for name in ("onnx/MobileR2L.onnx", "onnx/pipeline.onnx", "snap/lego_SnapGELU.onnx"):
        corrupt(folder / name)
    _, entries = check(model, folder, viewing_range(model).sample(1))
    for name in ("MobileR2L.onnx", "pipeline.onnx", "snap/lego_SnapGELU.onnx"):
        assert entries[name].max_abs > entries[name].tolerance
    with pytest.raises(UserError, match=r"MobileR2L\.onnx differs from the trained student by \d"):
        verification.check_parity(entries, folder)


@pytest.mark.parametrize("tolerance", [1e-4, None])
def test_nan_is_a_mismatch(tolerance):
    entries = {"Sampler.onnx": FileFigures(max_abs=float("nan"), tolerance=tolerance), "x.mlpackage": FileFigures()}
    with pytest.raises(UserError, match="Sampler.onnx"):
        verification.check_parity(entries, Path("out"))


def test_a_changed_weight_of_the_surface_is_a_mismatch(tmp_path):
    """The last convolution of the Embedder's file that is not fixed: its logits move by a hundredth."""
    model = make_student(surface_octaves=8, refinements=1)
    folder = write_both(model, tmp_path)
    with torch.no_grad():
        model.embedder.head[-1].weight[0] += 1e-2
    _, entries = check(model, folder, viewing_range(model).sample(1))
    for name in ("Embedder.onnx", "pipeline.onnx", "snap/Embedder.onnx", "chain (nchw)"):
        assert entries[name].max_abs > entries[name].tolerance
    with pytest.raises(UserError, match=r"Embedder\.onnx differs from the trained student by \d"):
        verification.check_parity(entries, folder)


def test_a_wrong_alpha_is_a_mismatch(tmp_path):
    model = make_student(outputs="rgbad")
    folder = write_both(model, tmp_path, "rgbad")
    corrupt(folder / "snap" / "lego_SnapGELU.onnx")  # its last convolution is that of depth
    truth = compute_truth(model, viewing_range(model).sample(1))
    entries = verification.verify_snap(model, truth, folder / "snap", "lego", "rgbad")
    with pytest.raises(UserError, match=r"lego_SnapGELU\.onnx differs"):
        verification.check_parity(entries, folder)


def test_alpha_and_depth_agree_with_torch(tmp_path):
    """Depth is compared in world units, of a bounded and an unbounded student."""
    for kind in ("gelu", "unbounded", "surface"):
        model = make_student(outputs="rgbad", **KINDS[kind])
        (tmp_path / kind).mkdir()
        onnx_files.write_onnx_files(model, tmp_path / kind, outputs="rgbad")
        truth = compute_truth(model, viewing_range(model).sample(2))
        figures = verification.verify_onnx(model, truth, tmp_path / kind, "rgbad")
        verification.check_parity(figures, tmp_path)
