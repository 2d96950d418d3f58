"""The benchmark of distillation: its exact teacher is the demo scene, and its runs record what they should."""

import copy
import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from bench import common, distillation, forward_facing, recipes, soak, training
from bench.exact_teacher import ExactTeacher
from bench.training import Run, Score
from builders import stub_teacher_config
from demo_scene import cameras as poses
from demo_scene import tracer

from mobiler2l_ns.cameras import pinhole_cameras
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.student.network import NetworkConfig
from mobiler2l_ns.training.metrics import psnr

BENCH = Path(__file__).parents[1] / "scripts" / "bench"
FIND_MODULES = "    sys.path[0] = str(Path(__file__).resolve().parents[1])\n"
SIZE = 32
FOCAL = 0.5 * SIZE / math.tan(0.5 * poses.CAMERA_ANGLE_X)


@pytest.fixture(scope="module")
def island():
    return ExactTeacher(0, side=2)


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
    run = Run("m", 0, 30, curve=[Score(10, 1.0, 4, 15.0), Score(20, 2.0, 8, 17.0)])
    assert run.first_at(16.0).step == 20 and run.first_at(15.0).step == 10 and run.first_at(18.0) is None


def test_a_tiny_comparison(tmp_path, monkeypatch):
    network = NetworkConfig(depth=6, width=16, sr_widths=(8, 8, 8))
    tiny = recipes.Setting(SIZE, network, "mobiler2l-small", paper_steps=36, paper_views=3, patches=4, test_views=2)
    monkeypatch.setitem(recipes.SETTINGS, "cpu", tiny)
    monkeypatch.setattr(sys, "argv", ["distillation.py", "--seeds", "5", "--output", str(tmp_path)])
    distillation.main()
    results = json.loads((tmp_path / "distillation-recipes-cpu.json").read_text())
    assert (tmp_path / "distillation-recipes-cpu.png").stat().st_size > 10_000
    assert len(results["speedup_seconds"]) == len(results["gain_db"]) == 1 and results["resolution"] == "32x32"
    published, short, full = results["runs"]
    assert published["parameters"] > short["parameters"] == full["parameters"]  # batch norm has weights of its own
    assert (published["steps"], short["steps"]) == (36, 2)
    for run in results["runs"]:
        assert run["seed"] == 5 and run["curve"][-1]["step"] == run["steps"]
        seconds = [point["seconds"] for point in run["curve"]]
        assert seconds == sorted(seconds) and run["teacher_seconds"] <= run["seconds"]
    # All three pseudo views were rendered before the published recipe's first step, and none after.
    assert {point["views"] for point in published["curve"]} == {3}
    target = published["curve"][-1]
    in_time = [point["psnr"] for point in full["curve"] if point["seconds"] <= target["seconds"]]
    assert results["gain_db"] == [pytest.approx(in_time[-1] - target["psnr"], abs=0.006)]
    sooner = [point for run in (short, full) for point in run["curve"] if point["psnr"] >= target["psnr"]]
    for name, key in (("speedup_seconds", "seconds"), ("speedup_steps", "step")):
        expected = target[key] / sooner[0][key] if sooner else 0.0
        assert results[name] == [pytest.approx(expected, abs=0.006)]
    assert results["command"] == f"python scripts/bench/distillation.py --seeds 5 --output {tmp_path}"


def test_a_tiny_forward_facing_comparison(tmp_path, monkeypatch, capsys):
    sizes = {"WIDTH": 48, "HEIGHT": 36, "FOCAL": 44.0, "NUM_PHOTOS": 12, "NUM_VIEWS": 3, "STEPS": 4, "PATCHES": 2}
    for name, value in sizes.items():
        monkeypatch.setattr(forward_facing, name, value)
    command = ["distillation.py", "--scene", "forward-facing", "--seeds", "5", "6", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    distillation.main()
    results = json.loads((tmp_path / "distillation-forward-facing.json").read_text())
    assert (tmp_path / "distillation-forward-facing.png").stat().st_size > 10_000
    assert results["resolution"] == "48x36" and results["command"].endswith(" ".join(command[1:]))
    assert [(run["recipe"], run["seed"]) for run in results["runs"]] == [
        (variant.name, seed) for seed in (5, 6) for variant in forward_facing.VARIANTS
    ]
    for run in results["runs"]:
        assert [point["step"] for point in run["curve"]] == [1, 2, 3, 4]
        assert {point["views"] for point in run["curve"]} == {3} and run["teacher_seconds"] > 0
    last = [run["curve"][-1]["psnr"] for run in results["runs"]]
    assert results["psnr"] == {variant.name: last[k::3] for k, variant in enumerate(forward_facing.VARIANTS)}
    assert f"x12 {np.mean(last[1::3]):.2f} dB; x4" in " ".join(capsys.readouterr().out.split())


def test_gain_and_speed_up_by_hand():
    published = Run("paper", 0, 100, curve=[Score(50, 5.0, 8, 14.0), Score(100, 10.0, 8, 16.0)])
    short = Run("ours", 0, 10, curve=[Score(5, 1.0, 2, 13.0), Score(10, 2.0, 4, 15.9)])
    full = Run("ours", 0, 80, curve=[Score(20, 4.0, 5, 16.2), Score(40, 9.0, 9, 18.5), Score(80, 12.0, 9, 20.0)])
    found = recipes.compare(published, short, full)
    assert found == {"speedup_seconds": 2.5, "speedup_steps": 5.0, "gain_db": 2.5}  # 20.0 dB came too late
    full.curve[0].psnr = full.curve[1].psnr = full.curve[2].psnr = 15.0
    assert recipes.compare(published, short, full) == {"speedup_seconds": 0.0, "speedup_steps": 0.0, "gain_db": -1.0}


@pytest.fixture
def run_on_stub(student_config, stub_teacher, tmp_path):
    """Trains a tiny student of the unit ball from 16 teacher views, scored on a view that it was not trained on."""
    matrix = torch.from_numpy(poses.look_at(np.array([3.0, 2.0, 2.1]))[None, :3]).float()
    camera = pinhole_cameras(matrix, FOCAL, SIZE, SIZE)
    target = stub_teacher.render(camera)

    def run(seed, steps, num_scores=4, tile_cells=None, slow=0.0):
        def score(trainer):
            time.sleep(slow)
            return psnr(trainer.pipeline.model.get_outputs_for_camera(camera)["rgb"].clamp(0, 1), target)

        config = copy.deepcopy(student_config)
        config.max_num_iterations, config.pipeline.model.export_when_done = steps, False
        config.pipeline.finetuning.steps = 0
        datamanager = config.pipeline.datamanager
        datamanager.teacher = stub_teacher_config(stub_teacher, tmp_path)
        datamanager.pool_views = datamanager.initial_views = 16
        datamanager.photo_share, datamanager.tile_cells = 0.0, tile_cells
        return training.train(config, seed, score, num_scores)[0]

    return run


def test_the_curve_rises(run_on_stub):
    curve = run_on_stub(seed=0, steps=120).curve
    assert [point.step for point in curve] == [30, 60, 90, 120]
    assert curve[-1].psnr > curve[0].psnr + 3  # 12.5 -> 17.4 dB when this was written


def test_equal_seeds_give_equal_curves(run_on_stub):
    first, again, other = ([point.psnr for point in run_on_stub(seed, steps=8).curve] for seed in (0, 0, 1))
    assert len(first) == 4 and first == again != other


def test_views_are_counted_in_whole_views(run_on_stub, stub_teacher):
    before = stub_teacher.renders
    assert {point.views for point in run_on_stub(seed=0, steps=2).curve} == {16}
    # Tiles of 2 x 2 out of 4 x 4 ray-grid cells: each of the 16 is a quarter of a view.
    assert {point.views for point in run_on_stub(seed=0, steps=2, tile_cells=2).curve} == {4}
    assert stub_teacher.renders == before + 32


def test_seconds_are_without_scoring(run_on_stub):
    start = time.perf_counter()
    run = run_on_stub(seed=0, steps=2, num_scores=2, slow=0.3)
    assert len(run.curve) == 2 and run.seconds < time.perf_counter() - start - 0.6


@pytest.mark.parametrize("platform, peak", [("darwin", 5000), ("linux", 5000 * 1024)])
def test_peak_memory_is_in_bytes(monkeypatch, platform, peak):
    monkeypatch.setattr(common.sys, "platform", platform)
    monkeypatch.setattr(common.resource, "getrusage", lambda who: type("Usage", (), {"ru_maxrss": 5000}))
    assert common.peak_memory(common.CPU) == peak


def test_each_benchmark_runs_as_a_file(tmp_path):
    """The quickest of them for real, from another folder; the others find their modules with the same lines."""
    scripts = [path for path in BENCH.glob("*.py") if "def main()" in path.read_text()]
    assert len(scripts) == 17
    for script in scripts:
        assert 'if __name__ == "__main__":' in (text := script.read_text()) and FIND_MODULES in text, script.name
    command = [sys.executable, BENCH / "plugin_import.py", "--help"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0 and "--runs" in process.stdout, process.stderr


def test_growth_of_memory_is_counted_from_the_second_fifth():
    """A pool that fills in the first fifth is no growth; a leak of 1 MB a minute is."""
    filling = [100.0, 150.0, *[200.0] * 8]
    assert soak.growth(filling) == 0
    leaking = [200.0 + step for step in range(10)]
    assert soak.growth(leaking) == pytest.approx(208.5 / 202.5 - 1)
    assert soak.resident_megabytes(os.getpid()) > 100 and soak.resident_megabytes(2**22 + 1) == 0


def test_the_published_planes_are_for_nerf_synthetic(capture, tmp_path):
    """The planes of other captures are measured. Teachers have no such option."""

    def datamanager(method, data):
        return training.method_config(method, data, training.capture_parser(data), tmp_path).pipeline.datamanager

    assert datamanager("mobiler2l-paper", capture).near_far == (2.0, 6.0)
    assert datamanager("mobiler2l-paper", tmp_path).near_far is None
    assert datamanager("mobiler2l", capture).near_far is None
    assert not hasattr(datamanager("mobiler2l-teacher", tmp_path), "near_far")


def test_splats_start_from_the_points_of_a_capture(capture, tmp_path):
    """Their method's parser loads them; the other options of the parser are the caller's."""

    def parser_of(method, data, **options):
        parser = dataclasses.replace(training.capture_parser(data), **options)
        return training.method_config(method, data, parser, tmp_path).pipeline.datamanager.dataparser

    points = parser_of("mobiler2l-teacher-splat", tmp_path, eval_mode="interval")
    assert points.load_3D_points and points.data == tmp_path and points.eval_mode == "interval"
    assert not parser_of("mobiler2l-teacher", tmp_path).load_3D_points
    assert parser_of("mobiler2l-teacher-splat", capture) == training.capture_parser(capture)


def test_a_missing_capture_ends_in_a_sentence(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["distillation.py", "--data", "nowhere"])
    with pytest.raises(UserError, match="no folder nowhere"):
        distillation.main()


def test_a_real_teacher_and_photos(workspace, capture, tmp_path, monkeypatch):
    """Twelve steps, the last three of them fine-tuning: figures of held-out photos, nothing on disk."""
    (teacher,) = (workspace / "outputs" / capture.name / "mobiler2l-teacher-small").glob("*/config.yml")
    arguments = ["--data", str(capture), "--teacher", str(teacher), "--steps", "12", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["distillation.py", *arguments])
    distillation.main()
    results = json.loads((tmp_path / "distillation-capture.json").read_text())
    assert (results["resolution"], results["held_out_photos"]) == ("32x32", 2)
    assert results["gap_db"] == pytest.approx(results["psnr"]["teacher"] - results["psnr"]["student"], abs=2e-3)
    (run,) = results["runs"]
    assert [point["step"] for point in run["curve"]] == list(range(1, 13))
    before = run["curve"][8]["psnr"]
    assert results["fine_tuning"] == {"held_out_before": before, "held_out_after": run["curve"][-1]["psnr"]}
    assert results["psnr"]["student"] == pytest.approx(run["curve"][-1]["psnr"], abs=1e-3)
    assert results["teacher_view_bytes_on_disk"] == 0 and results["pool_bytes"] > 0
    last_third = [point["psnr"] for point in run["curve"][8:]]
    falls = [a - b for a, b in zip(last_third, last_third[1:])]
    assert results["largest_fall_in_last_third_db"] == pytest.approx(max(0.0, *falls), abs=2e-3)
