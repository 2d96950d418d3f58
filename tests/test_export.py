"""The command ns-export-mobiler2l: files and report, comparison with photos, options, and errors."""

import importlib.util
import json
import math
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from builders import KINDS, STUDENT_CAMERA, make_student, one_sentence, write_run
from export_builders import export_run, some_poses, torch_image
from mobiler2l_ns.method_configs import mobiler2l_teacher_small
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from PIL import Image

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export import command as export
from mobiler2l_ns.export.comparison import Comparison
from mobiler2l_ns.export.output_folder import files_of
from mobiler2l_ns.runtime import Renderer

ONNX_FILES = {"Sampler.onnx", "Embedder.onnx", "MobileR2L.onnx", "pipeline.onnx"}
SNAP_FILES = {"Sampler.onnx", "Embedder.onnx", "lego_SnapGELU.onnx"}


@pytest.fixture
def config_path(tmp_path):
    return write_run(tmp_path / "run")


def test_export_run_writes_files_and_report(config_path, tmp_path):
    pool = {"views": 3}
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


@pytest.mark.parametrize("content", ["{", "[]", "\N{LATIN SMALL LETTER U WITH DIAERESIS}"])
def test_a_damaged_record_of_the_training_is_named(config_path, tmp_path, content):
    path = config_path.parent / "distillation.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        export_run(config_path, tmp_path / "out")
    assert re.fullmatch(rf"mobiler2l: {path} cannot be read \(.*\): delete it .*\.", one_sentence(caught))
    assert not (tmp_path / "out").exists()


def test_students_that_cannot_be_exported(tmp_path):
    never_trained = make_student(camera=None)
    broken = make_student()
    with torch.no_grad():
        broken.network.tail[0].weight[0, 0] = float("nan")
    for name, model, complaint in (("a", never_trained, "without a camera"), ("b", broken, "NaN")):
        with pytest.raises(UserError, match=complaint):
            export_run(write_run(tmp_path / name, model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_teacher_is_not_a_student(tmp_path):
    (tmp_path / "config.yml").write_text(yaml.dump(mobiler2l_teacher_small.config))
    with pytest.raises(UserError, match="not a student"):
        export_run(tmp_path / "config.yml", tmp_path / "out")


def test_command_line(config_path, tmp_path, monkeypatch, capsys):
    arguments = ["--load-config", str(config_path), "--output-dir", str(tmp_path / "out"), "--num-views", "0"]
    monkeypatch.setattr(sys, "argv", ["ns-export-mobiler2l", *arguments, "--overwrite", "True"])
    export.entrypoint()
    printed = capsys.readouterr().out
    assert "lego_SnapGELU.onnx" in printed and "Next:" in printed


# -- the comparison with photos ---------------------------------------------------------------------------------------


def test_the_comparison_is_written_or_skipped(config_path, tmp_path, monkeypatch, capsys):
    def compare(config, model, folder, num_views):
        if num_views == 9:
            raise UserError("there are no photos.")
        assert (folder / "onnx" / "pipeline.onnx").is_file()
        sheet = Image.new("RGB", (8, 8))
        return Comparison({"student": 30.0}, {"student": 0.9}, num_views, 48, 72, 0.5, sheet)

    monkeypatch.setattr(export, "compare", compare)
    report = export_run(config_path, tmp_path / "out", num_views=2)
    assert report["psnr"] == {"student": 30.0} and report["ssim"] == {"student": 0.9}
    assert report["evaluation"] == {"views": 2, "split": "test", "width": 72, "height": 48}
    assert report["precision_loss_db"] == 0.5 and "loses 0.50 dB in fp32" in capsys.readouterr().out
    assert "comparison.png" in report["files"] and (tmp_path / "out" / "comparison.png").is_file()
    assert "psnr" not in export_run(config_path, tmp_path / "out", num_views=9, overwrite=True)
    assert "no photos" in capsys.readouterr().out and not (tmp_path / "out" / "comparison.png").exists()


@pytest.fixture
def run_on_photos(capture, tmp_path, request):
    """A run on a copy of the capture with two test photos of 32 x 32 pixels, and the copy.

    The parameter, if any, is the number of octaves of the surface code.
    """
    data = tmp_path / "capture"
    shutil.copytree(capture, data)
    angle = json.loads((data / "transforms_test.json").read_text())["camera_angle_x"]
    camera = {**STUDENT_CAMERA, "height": 32, "width": 32, "focal": 16 / math.tan(angle / 2)}
    model = make_student(camera, surface_octaves=getattr(request, "param", 0))
    return set_data(write_run(tmp_path / "run_on_photos", model), data), data


def set_data(config_path, data):
    """Sets the capture of a run."""
    config = yaml.load(config_path.read_text(), Loader=yaml.Loader)
    config.pipeline.datamanager.dataparser = BlenderDataParserConfig(data=data)
    config_path.write_text(yaml.dump(config))
    return config_path


@pytest.mark.parametrize("run_on_photos", [0, 8], indirect=True)
def test_photos_are_compared(run_on_photos, tmp_path):
    config_path, _ = run_on_photos
    report = export_run(config_path, tmp_path / "out", targets=("onnx",), num_views=2)
    assert report["evaluation"] == {"views": 2, "split": "test", "width": 32, "height": 32}
    assert set(report["psnr"]) == set(report["ssim"]) == {"student", "onnx"}
    assert report["psnr"]["onnx"] == pytest.approx(report["psnr"]["student"], abs=1e-3)
    assert report["ssim"]["onnx"] == pytest.approx(report["ssim"]["student"], abs=1e-3)
    assert abs(report["precision_loss_db"]) < 1e-3
    with Image.open(tmp_path / "out" / "comparison.png") as sheet:
        assert sheet.width > 4 * 32 * 8  # photo, student, onnxruntime and error, eight times as large


def test_photos_of_another_focal_length_are_compared(config_path, capture, tmp_path):
    """The files have a fixed grid of 6 x 9 rays. At the student's focal length these photos would need 5 x 7."""
    report = export_run(set_data(config_path, capture), tmp_path / "out", targets=("onnx",), num_views=1)
    assert report["evaluation"] == {"views": 1, "split": "test", "width": 72, "height": 48}
    assert set(report["psnr"]) == {"student", "onnx"} and abs(report["precision_loss_db"]) < 1e-3


@pytest.mark.parametrize("damage", ["missing", "broken"])
def test_a_photo_that_cannot_be_read_costs_the_comparison_alone(run_on_photos, tmp_path, capsys, damage):
    config_path, data = run_on_photos
    photo = sorted((data / "test").glob("*.png"))[-1]
    photo.unlink()
    if damage == "broken":
        photo.write_bytes(b"no image")
    report = export_run(config_path, tmp_path / "out", targets=("onnx",), num_views=2)
    assert (tmp_path / "out" / "onnx" / "pipeline.onnx").is_file() and "psnr" not in report
    printed = capsys.readouterr().out
    assert "No comparison with photos: " in printed and photo.name in printed


# -- at the end of training -------------------------------------------------------------------------------------------


def test_a_training_ends_well_where_nothing_can_be_exported(build_pipeline, monkeypatch, capsys, tmp_path):
    pipeline = build_pipeline()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnx", None)
        pipeline._export(tmp_path)
    printed = capsys.readouterr().out
    assert "No export" in printed and "needs onnx" in printed
    pipeline._model = make_student({**STUDENT_CAMERA, "height": 800, "width": 800}, **KINDS["r2l"])
    pipeline._export(tmp_path)
    printed = " ".join(capsys.readouterr().out.split())
    assert "No export" in printed and "of ray codes at once" in printed
    assert not (tmp_path / "export").exists()


# -- fewer bits, other outputs, bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "size", "psnr"), [("fp16", 0.75, 55), ("int8", 2.0, 20)])
def test_fewer_bits(config_path, tmp_path, precision, size, psnr):
    """At this size constants take more bytes than weights; scripts/bench/export.py has the published network."""
    full = export_run(config_path, tmp_path / "fp32", targets=("onnx",))
    report = export_run(config_path, tmp_path / "out", targets=("onnx",), precision=precision)
    name = "onnx/pipeline.onnx"
    assert report["size_bytes"][name] < size * full["size_bytes"][name]
    assert psnr < report["parity"]["psnr"][name] < 90 < full["parity"]["psnr"][name]
    assert name not in report["parity"]["tolerance"]
    types = {tensor.data_type for tensor in onnx.load(tmp_path / "out" / name).graph.initializer}
    assert (onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.INT8) in types


@pytest.mark.parametrize("outputs", ["rgb", "rgba", "rgbad"])
def test_a_run_with_alpha_and_depth_is_exported(tmp_path, outputs):
    """All files are verified and have one output for each of the asked channels."""
    config_path = write_run(tmp_path / "run", make_student(outputs="rgbad"))
    out = tmp_path / "out"
    export_run(config_path, out, outputs=outputs, targets=("onnx", "snap"))
    names = [output.name for output in onnx.load(out / "onnx" / "pipeline.onnx").graph.output]
    assert names == ["rgb", "alpha", "depth"][: len(outputs) - 2]
    for path in (out / "onnx" / "MobileR2L.onnx", out / "snap" / "lego_SnapGELU.onnx"):
        shapes = {
            output.name: [size.dim_value for size in output.type.tensor_type.shape.dim]
            for output in onnx.load(path).graph.output
        }
        expected = {"output": [1, 3, 48, 72], "alpha": [1, 1, 48, 72], "depth01": [1, 1, 48, 72]}
        assert shapes == {name: expected[name] for name in list(expected)[: len(outputs) - 2]}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"opset": 10}, "--opset 10 .* from 11 to 20"),
        ({"opset": 23}, "--opset 23 .* from 11 to 20"),
        ({"opset": 12, "precision": "int8"}, "--opset 12 .* pass --opset 13 or higher"),
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
    """The report lists every file, those inside the CoreML package included."""
    targets = ("onnx", "snap", "web", *(("coreml",) if importlib.util.find_spec("coremltools") else ()))
    report = export_run(config_path, tmp_path / "out", targets=targets)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*targets, "report.json"}
    assert set(report["files"]) == files_of(tmp_path / "out")
    assert report["parity"]["max_abs"]["web/model.onnx"] <= 2e-4
    assert all(any(name.startswith(f"{target}/") for name in report["size_bytes"]) for target in targets)
    again = export_run(config_path, tmp_path / "out", targets=targets, overwrite=True)
    assert again["files"] == report["files"]
