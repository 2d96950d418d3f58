"""The benchmark of distillation: its exact teacher is the demo scene, and a tiny run of it gives honest figures."""

import json
import math
import sys

import bench_distillation as bench
import numpy as np
import pytest
import torch
from demo_scene import cameras as poses
from demo_scene import tracer

from mobiler2l_ns.cameras import pinhole_cameras
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.student.network import NetworkConfig
from mobiler2l_ns.training.metrics import psnr

SIZE = 32
FOCAL = 0.5 * SIZE / math.tan(0.5 * poses.CAMERA_ANGLE_X)


@pytest.fixture(scope="module")
def island():
    return bench.Island(0, side=2)


@pytest.fixture(scope="module")
def matrix():
    return poses.cameras(1, False, np.random.default_rng(3))[0]


def camera_of(matrix, size=SIZE):
    return pinhole_cameras(torch.from_numpy(matrix[None, :3]).float(), FOCAL * size / SIZE, size, size)


def test_the_exact_teacher_shows_the_demo_scene(island, matrix):
    picture = tracer.render(island.scene, matrix, SIZE, 64, np.random.default_rng(0)).astype(np.float32) / 255
    colour, alpha = torch.from_numpy(picture).split((3, 1), dim=-1)
    shown = island.render(camera_of(matrix))
    # Both are the same expectation; four samples a pixel leave noise, a pixel's shift would leave 15 dB.
    assert shown.shape == (SIZE, SIZE, 3) and psnr(shown, colour * alpha + 1 - alpha) > 22
    assert psnr(shown.roll(1, dims=1), colour * alpha + 1 - alpha) < 20


def test_the_exact_teachers_depth_is_z(island, matrix):
    depth = torch.from_numpy(tracer.centre_depth(island.scene, matrix, SIZE))
    camera = camera_of(matrix)
    norm = camera.generate_rays(0, keep_shape=True).metadata["directions_norm"][..., 0]
    expected = (depth / norm)[depth.isfinite()]
    torch.testing.assert_close(island.surface_depths(camera), expected, atol=1e-3, rtol=0)


def test_first_point_at_a_level():
    run = bench.Run("m", 0, 30, curve=[bench.Score(10, 1.0, 4, 15.0), bench.Score(20, 2.0, 8, 17.0)])
    assert run.first_at(16.0).step == 20 and run.first_at(15.0).step == 10 and run.first_at(18.0) is None


def test_a_tiny_comparison(tmp_path, monkeypatch):
    network = NetworkConfig(depth=6, width=16, sr_widths=(8, 8, 8))
    tiny = bench.Setting(SIZE, network, "mobiler2l-small", paper_steps=24, paper_frames=3, test_views=2)
    monkeypatch.setitem(bench.SETTINGS, "cpu", tiny)
    monkeypatch.setattr(sys, "argv", ["bench", "--seeds", "5", "--output", str(tmp_path)])
    bench.main()
    results = json.loads((tmp_path / "distillation-recipes-cpu.json").read_text())
    assert (tmp_path / "distillation-recipes-cpu.png").stat().st_size > 10_000
    assert len(results["speedup_seconds"]) == len(results["gain_db"]) == 1 and results["resolution"] == "32x32"
    published, short, full = results["runs"]
    assert published["parameters"] > short["parameters"] == full["parameters"]  # batch norm has weights of its own
    assert (published["steps"], short["steps"]) == (24, 2)
    for run in results["runs"]:
        assert run["seed"] == 5 and run["curve"][-1]["step"] == run["steps"]
        seconds = [point["seconds"] for point in run["curve"]]
        assert seconds == sorted(seconds) and run["teacher_seconds"] <= run["seconds"]
    # All three pseudo views were rendered before the published recipe's first step, and none after.
    assert {point["views"] for point in published["curve"]} == {3}
    assert results["gain_db"][0] == pytest.approx(full["curve"][-1]["psnr"] - published["curve"][-1]["psnr"], abs=3)


def test_a_missing_capture_ends_in_a_sentence(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench", "--data", "nowhere"])
    with pytest.raises(UserError, match="no folder nowhere"):
        bench.main()


def test_a_real_teacher_and_photos(workspace, capture, tmp_path, monkeypatch):
    """Twelve steps, the last three of them fine-tuning: figures of held-out photos, nothing on disk."""
    (teacher,) = (workspace / "outputs" / capture.name / "mobiler2l-teacher-small").glob("*/config.yml")
    arguments = ["--data", str(capture), "--teacher", str(teacher), "--steps", "12", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    bench.main()
    results = json.loads((tmp_path / "distillation-capture.json").read_text())
    assert (results["resolution"], results["held_out_photos"]) == ("32x32", 2)
    assert results["gap_db"] == pytest.approx(results["psnr"]["teacher"] - results["psnr"]["student"], abs=2e-3)
    (run,) = results["runs"]
    assert [point["step"] for point in run["curve"]] == list(range(1, 13))
    before = run["curve"][8]["psnr"]
    assert results["fine_tuning"] == {"held_out_before": before, "held_out_after": run["curve"][-1]["psnr"]}
    assert results["psnr"]["student"] == pytest.approx(run["curve"][-1]["psnr"], abs=1e-3)
    assert results["pseudo_data_bytes_on_disk"] == 0 and results["pool_bytes"] > 0
    last_third = [point["psnr"] for point in run["curve"][8:]]
    falls = [a - b for a, b in zip(last_third, last_third[1:])]
    assert results["largest_fall_in_last_third_db"] == pytest.approx(max(0.0, *falls), abs=2e-3)
