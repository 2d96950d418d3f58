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


@pytest.mark.parametrize("content", ["", "[]", '{"data": "mine"}', '{"data": "mine", "seconds": 3}'])
def test_a_damaged_state_is_named(capture, commands, tmp_path, content):
    path = tmp_path / "outputs" / "scene" / "quickstart.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(SystemExit) as stop:
        quickstart.Quickstart(capture, "scene")
    assert stop.value.code == f"mobiler2l: {path} is damaged: delete it to start anew."


@pytest.mark.parametrize("size, expected", [((1280, 960), (640, 480)), ((160, 96), None), ((101, 50), (100, 48))])
def test_large_photos_are_shrunk_to_a_size_that_the_network_divides(tmp_path, size, expected):
    Image.new("RGB", size).save(tmp_path / "0.png")
    (tmp_path / "transforms.json").write_text(json.dumps({"frames": [{"file_path": "0.png"}]}))
    assert quickstart.find_parser(tmp_path) == "nerfstudio-data"
    assert quickstart.first_photo(tmp_path, "nerfstudio-data") == (*size, False)
    assert quickstart.student_size(*size) == expected


def test_a_real_capture_has_options_of_its_own(commands, tmp_path):
    capture = tmp_path / "mine"
    (capture / "images").mkdir(parents=True)
    (capture / "sparse").mkdir()
    Image.new("RGB", (1280, 960)).save(capture / "images" / "0.jpg")
    quickstart.Quickstart(capture, "scene").run()
    teacher, student, _ = map(parse, commands)
    assert teacher.pipeline.model.num_nerf_samples_per_ray == 24
    assert student.pipeline.datamanager.reprojected_share > 0 and student.pipeline.datamanager.image_size == (640, 480)


def test_an_object_in_plain_photos_has_the_options_of_an_object(commands, tmp_path):
    Image.new("RGBA", (64, 48)).save(tmp_path / "0.png")
    (tmp_path / "transforms.json").write_text(json.dumps({"frames": [{"file_path": "0.png"}]}))
    quickstart.Quickstart(tmp_path, "scene").run()
    teacher, student, _ = map(parse, commands)
    assert teacher.pipeline.model.num_nerf_samples_per_ray != 24
    assert student.pipeline.datamanager.reprojected_share == 0


@pytest.mark.parametrize("name", ["photos", "walk.mp4"])
def test_poses_are_found_first(monkeypatch, tmp_path, capsys, name):
    """For a folder without poses, and for a video."""
    source, called = tmp_path / name, []
    source.touch() if "." in name else source.mkdir()
    scene = source.stem

    def run(stage, command, log):
        called.append([Path(command[0]).name, *command[1:]])
        posed = tmp_path / "data" / f"{scene}-posed"
        posed.mkdir(parents=True)
        report = {"posed": 11, "unposed": ["a.jpg"], "reprojection_error": 0.5, "points": 100}
        (posed / "process.json").write_text(json.dumps({"report": report}))
        (posed / "transforms.json").touch()

    made = []
    monkeypatch.setattr(quickstart, "ROOT", tmp_path)
    monkeypatch.setattr(quickstart, "run", run)
    monkeypatch.setattr(quickstart.Quickstart, "run", lambda self: made.append(self))
    monkeypatch.setattr(quickstart.sys, "argv", ["quickstart.py", str(source)])
    quickstart.main()
    (command,) = called
    assert parse(command).data == source and parse(command).output_dir == tmp_path / "data" / f"{scene}-posed"
    assert made[0].data == tmp_path / "data" / f"{scene}-posed" and made[0].scene == scene
    assert made[0].parser == "nerfstudio-data" and "poses" in made[0].state["seconds"]
    assert "11 of 12 photos have a pose" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, words", [(["nowhere"], "there is no nowhere"), (["a", "b"], "usage: "),
                                              (["--help"], "usage: ")])  # fmt: skip
def test_wrong_arguments(monkeypatch, arguments, words):
    monkeypatch.setattr(quickstart.sys, "argv", ["quickstart.py", *arguments])
    with pytest.raises(SystemExit, match=words):
        quickstart.main()


@pytest.mark.parametrize(
    "line, name, percent",
    [("120 (12.00%)      100 ms", None, "12.00"), ("matching: 12 of 50 (24.00%)", "matching", "24.00"),
     ("mapping with less overlap: 3 of 4 (75.00%)", "mapping with less overlap", "75.00")],
)  # fmt: skip
def test_lines_of_progress(line, name, percent):
    found = quickstart.STEP.match(line)
    assert (found["name"], found["percent"]) == (name, percent)
    assert quickstart.STEP.match("Fine-tuning, step 300 of 500: held-out photos 25.58 dB") is None


@pytest.mark.parametrize(("platform", "used"), [("darwin", 3 * 1024**3), ("linux", 3 * 1024**2)])
def test_peak_memory_is_in_megabytes(monkeypatch, platform, used):
    """The same 3 GiB: macOS counts bytes, Linux KiB."""
    monkeypatch.setattr(quickstart.sys, "platform", platform)
    monkeypatch.setattr(quickstart.resource, "getrusage", lambda who: type("Usage", (), {"ru_maxrss": used}))
    assert quickstart.peak_memory_mb() == 3 * 1024
