"""The benchmark of the viewer: it renders what it says it renders, and writes down what it measured."""

import json
import sys

import pytest
import torch
from bench import viewer as bench_viewer
from builders import make_student, write_run


def test_figures_of_a_tiny_student(tmp_path, monkeypatch):
    student, path = write_run(tmp_path / "run"), tmp_path / "new" / "viewer.json"
    arguments = ["--student", student, "--size", "24", "--rounds", "3", "--threads", "1", "--json", path]
    monkeypatch.setattr(sys, "argv", ["viewer.py", *map(str, arguments)])
    bench_viewer.main()
    figures = json.loads(path.read_text())
    assert figures["resolution"] == [24, 24] and figures["machine"]["threads"] == 1
    # 48 rows at focal 70: 2 atan(24 / 70) = 37.85 degrees.
    assert figures["field_of_view"] == {"trained field of view": pytest.approx(37.85, abs=0.01), "75 degrees": 75.0}
    times = figures["milliseconds"].values()
    assert min(times) > 0 and figures["slowest"] == max(times) and figures["bound"] == 150


def test_each_picture_is_traced_as_in_the_viewer(monkeypatch):
    """Five pictures after two that warm up, all of the camera that was asked for and with a trace function set."""
    model, seen = make_student(), []
    monkeypatch.setattr(model, "get_outputs_for_camera", lambda camera: seen.append((camera, sys.gettrace())))
    bench_viewer.render_time(model, torch.eye(4)[:3], 90.0, 64, rounds=5)
    assert len(seen) == 7
    for camera, trace in seen:
        assert trace is not None and float(camera.fy) == pytest.approx(32.0) and int(camera.width) == 64
