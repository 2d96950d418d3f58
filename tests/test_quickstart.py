"""The quickstart: its stages are commands that parse, done stages are not repeated, and its table has the figures."""

import json
from pathlib import Path

import pytest
import quickstart
from commands import parse
from PIL import Image

REPORT = {
    "image": {"width": 32, "height": 32}, "params": 350000, "gmac": 0.5, "finetuning": None,
    "psnr": {"teacher": 27.5, "student": 25.6, "onnx": 25.6}, "ssim": {"teacher": 0.95, "student": 0.93, "onnx": 0.93},
    "size_bytes": {"onnx/pipeline.onnx": 1500000}, "latency_ms": {"onnx/pipeline.onnx": 8.0},
    "parity": {"max_abs": {"onnx/pipeline.onnx": 1e-6}},
    "pool": {"views": 900, "teacher_seconds": 60.0, "share_of_training_time": 0.25, "bytes": 2e8},
}  # fmt: skip


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """The stages' commands in place of running them; each leaves the file that the next stage needs."""
    called = []

    def run(stage, command, log):
        called.append([Path(command[0]).name, *command[1:]])
        if stage == "export":
            report = tmp_path / "exports" / "scene" / "report.json"
            report.parent.mkdir(parents=True, exist_ok=True)
            report.write_text(json.dumps(REPORT))
        else:
            config = tmp_path / "outputs" / "scene" / command[1] / "now" / "config.yml"
            config.parent.mkdir(parents=True)
            config.touch()

    monkeypatch.setattr(quickstart, "ROOT", tmp_path)
    monkeypatch.setattr(quickstart, "run", run)
    return called


def test_stages_are_commands(capture, commands, tmp_path, capsys):
    quickstart.Quickstart(capture, "scene").run()
    teacher, student, export = map(parse, commands)
    assert (teacher.method_name, student.method_name) == ("mobiler2l-teacher-small", "mobiler2l-small")
    assert student.pipeline.datamanager.teacher.load_config == (
        tmp_path / "outputs" / "scene" / "mobiler2l-teacher-small" / "now" / "config.yml"
    )
    assert student.data == teacher.data == capture and student.pipeline.datamanager.image_size is None
    assert not student.pipeline.model.export_when_done and export.targets == ("onnx", "snap", "web")
    report = json.loads((tmp_path / "exports" / "scene" / "report.json").read_text())
    assert set(report["seconds"]) == {"install", "teacher", "student", "export", "total"}
    assert 1 < report["peak_memory_mb"] < 1e6
    printed = capsys.readouterr().out
    assert "27.50" in printed and "25.60" in printed and "900" in printed
    quickstart.Quickstart(capture, "scene").run()
    assert [command[0] for command in commands[3:]] == ["ns-export-mobiler2l"]


@pytest.mark.parametrize("size, expected", [((1280, 960), (640, 480)), ((160, 96), None), ((101, 50), (100, 48))])
def test_large_photos_are_shrunk_to_a_size_that_the_network_divides(tmp_path, size, expected):
    Image.new("RGB", size).save(tmp_path / "0.png")
    (tmp_path / "transforms.json").write_text(json.dumps({"frames": [{"file_path": "0.png"}]}))
    assert quickstart.find_parser(tmp_path) == "nerfstudio-data"
    assert quickstart.image_size(tmp_path, "nerfstudio-data") == expected


def test_a_real_capture_has_options_of_its_own(commands, tmp_path):
    capture = tmp_path / "mine"
    (capture / "images").mkdir(parents=True)
    (capture / "sparse").mkdir()
    Image.new("RGB", (1280, 960)).save(capture / "images" / "0.jpg")
    quickstart.Quickstart(capture, "scene").run()
    teacher, student, _ = map(parse, commands)
    assert teacher.pipeline.model.num_nerf_samples_per_ray == 24
    assert student.pipeline.datamanager.reprojected_share > 0 and student.pipeline.datamanager.image_size == (640, 480)


def test_a_folder_without_poses(tmp_path):
    with pytest.raises(SystemExit, match="ns-process-data"):
        quickstart.find_parser(tmp_path)


@pytest.mark.parametrize(("platform", "used"), [("darwin", 3 * 1024**3), ("linux", 3 * 1024**2)])
def test_peak_memory_is_in_megabytes(monkeypatch, platform, used):
    """The same 3 GiB: macOS counts bytes, Linux KiB."""
    monkeypatch.setattr(quickstart.sys, "platform", platform)
    monkeypatch.setattr(quickstart.resource, "getrusage", lambda who: type("Usage", (), {"ru_maxrss": used}))
    assert quickstart.peak_memory_mb() == 3 * 1024
