"""The CoreML package: inputs, outputs and number formats, and its results operation by operation."""

import functools
import shutil
import sys

import numpy as np
import pytest
import torch
from builders import FEW_LAYERS, KINDS, STUDENT_CAMERA, make_student

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export.coreml_files import check_coreml, is_network, write_coreml_files
from mobiler2l_ns.export.onnx_files import intrinsics
from mobiler2l_ns.export.pose_graph import OUTPUT_NAMES, PoseToImage
from mobiler2l_ns.student.viewing_range import viewing_range

INSTALL = "uv pip install 'mobiler2l-ns[coreml]'"


SHALLOW = {
    "gelu": FEW_LAYERS, "batch_norm": {**FEW_LAYERS, "batch_norm": True}, "r2l": KINDS["r2l"],
    "pruned": KINDS["pruned"], "surface_unbounded": KINDS["surface_unbounded"],
}  # fmt: skip


@pytest.fixture(scope="module")
def ct():
    """coremltools; without it these tests are skipped."""
    return pytest.importorskip("coremltools", reason=f"CoreML IS NOT TESTED: coremltools is missing ({INSTALL})")


@pytest.fixture(scope="module")
def package_of(ct, tmp_path_factory):
    """A student of a kind and the package it was written to, once."""

    @functools.cache
    def write(kind):
        model = make_student(**SHALLOW[kind])
        folder = tmp_path_factory.mktemp(kind)
        write_coreml_files(model, folder, "my scene")
        return model, folder / "my-scene.mlpackage"

    return write


@pytest.fixture(scope="module", params=SHALLOW)
def package(request, package_of):
    """Students and their packages. The pruned one predicts a surface, the unbounded one has the activation relu."""
    return package_of(request.param)


def test_the_package_is_as_meant(package):
    model, path = package
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    check_coreml(path, model)


def test_the_camera_travels_along(package, ct):
    model, path = package
    metadata = ct.utils.load_spec(str(path)).description.metadata
    camera = {name: str(value) for name, value in intrinsics(model).to_dict().items()}
    assert camera.items() <= dict(metadata.userDefined).items()
    assert "light field" in metadata.shortDescription and not metadata.author


def test_its_numbers_are_the_students(package):
    """The package, run operation by operation, gives torch's image up to the float16 of the network."""
    from ml_program import load_program, run

    model, path = package
    function = load_program(path)
    student = PoseToImage(model.sampler, model.embedder, model.network).eval()
    half = PoseToImage(model.sampler, model.embedder, model.network, dtype=torch.float16).eval()
    for pose in viewing_range(model).sample(2):
        with torch.no_grad():
            (truth,), (rounded,) = student(pose[None]), half(pose[None])
        difference = np.abs(run(function, pose[None].numpy())["rgb"] - truth.numpy())
        assert truth.std() > 0.05  # else a wrong order of numbers could pass
        # Single pixels differ by more where torch with a float16 network does, too.
        assert difference.max() < max(0.02, 2 * float((rounded - truth).abs().max())) and difference.mean() < 1e-3


def test_alpha_and_depth(ct, tmp_path):
    from ml_program import load_program, run

    model, outputs = make_student(outputs="rgbad", **FEW_LAYERS), "rgbad"
    write_coreml_files(model, tmp_path, "deep", outputs)
    check_coreml(tmp_path / "deep.mlpackage", model, outputs)
    pose = viewing_range(model).sample(1)
    with torch.no_grad():
        truth = PoseToImage(model.sampler, model.embedder, model.network, outputs).eval()(pose)
    images = run(load_program(tmp_path / "deep.mlpackage"), pose.numpy())
    assert tuple(images) == OUTPUT_NAMES[outputs]
    for name, expected in zip(OUTPUT_NAMES[outputs], truth):
        assert np.abs(images[name] - expected.numpy()).max() < (0.06 if name == "depth" else 0.02)


def test_float16_codes_would_be_worse(ct, monkeypatch, tmp_path):
    """The reason for two precisions: in float16 alone, the error is several times as large."""
    from ml_program import load_program, run

    from mobiler2l_ns.export import coreml_files

    model = make_student(steepness=1.0, activation="relu", **FEW_LAYERS)
    pose = viewing_range(model).sample(1)
    with torch.no_grad():
        truth = PoseToImage(model.sampler, model.embedder, model.network).eval()(pose)[0].numpy()
    errors = {}
    for name, selector in (("mixed", coreml_files.is_network), ("float16", lambda operation: True)):
        monkeypatch.setattr(coreml_files, "is_network", selector)
        write_coreml_files(model, tmp_path, name)
        errors[name] = np.abs(run(load_program(tmp_path / f"{name}.mlpackage"), pose.numpy())["rgb"] - truth).mean()
    assert errors["float16"] > 4 * errors["mixed"]
    with pytest.raises(UserError, match="float16.mlpackage has points or codes that are not float32"):
        check_coreml(tmp_path / "float16.mlpackage", model)


def test_the_surface_is_predicted_in_float32(package_of, monkeypatch, tmp_path):
    """The Embedder has eight convolutions, eight for a refinement, and a softmax. In float16 the package is refused."""
    from ml_program import load_program

    from mobiler2l_ns.export import coreml_files

    types = {"conv": [], "softmax": []}
    for operation in load_program(package_of("surface_unbounded")[1]).operations:
        if operation.op_type in types:
            types[operation.op_type].append(operation.outputs[0].dtype.__name__)
    assert types["softmax"] == ["fp32"] and types["conv"][:16] == ["fp32"] * 16
    assert set(types["conv"][16:]) == {"fp16"}
    # Its convolutions alone in float16: that is as wrong as all of it.
    monkeypatch.setattr(coreml_files, "is_network", lambda found: found.op_type == "conv" or is_network(found))
    model = make_student(surface_octaves=8, **FEW_LAYERS)
    write_coreml_files(model, tmp_path, "head16")
    with pytest.raises(UserError, match="head16.mlpackage has points or codes that are not float32"):
        check_coreml(tmp_path / "head16.mlpackage", model)


def test_wrong_packages_are_refused(package_of, tmp_path):
    model, written = package_of("gelu")
    path = shutil.copytree(written, tmp_path / "x.mlpackage")
    with pytest.raises(UserError, match="x.mlpackage does not have the inputs and outputs"):
        check_coreml(path, make_student({**STUDENT_CAMERA, "height": 64}))
    weights = path / "Data/com.apple.CoreML/weights/weight.bin"
    weights.write_bytes(weights.read_bytes() * 3)
    with pytest.raises(UserError, match="bytes of weights"):
        check_coreml(path, model)


def test_float32_networks_are_refused(ct, monkeypatch, tmp_path):
    from mobiler2l_ns.export import coreml_files

    monkeypatch.setattr(coreml_files, "is_network", lambda operation: False)
    model = make_student(**FEW_LAYERS)
    write_coreml_files(model, tmp_path, "x")
    with pytest.raises(UserError, match="x.mlpackage has a convolution that is not float16"):
        check_coreml(tmp_path / "x.mlpackage", model)


def test_half_the_size_of_float32(ct, tmp_path):
    model = make_student(width=256, **FEW_LAYERS)
    write_coreml_files(model, tmp_path, "x")
    size = (tmp_path / "x.mlpackage/Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    assert size / sum(4 * p.numel() for p in model.network.parameters()) == pytest.approx(0.5, abs=0.05)


def test_without_coremltools_it_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(UserError) as error:
        write_coreml_files(make_student(), tmp_path, "x")
    assert INSTALL in str(error.value)
    assert not list(tmp_path.iterdir())
