"""The benchmark of alpha and depth: errors by hand, and a tiny run whose figures add up."""

import json
import shutil
import sys

import pytest
import torch
from bench import geometry as bench
from bench.training import train
from builders import stub_teacher_config
from demo_scene.cameras import TARGET
from mobiler2l_ns.method_configs import mobiler2l_small

from mobiler2l_ns.cameras import ray_lengths
from mobiler2l_ns.errors import UserError


@pytest.fixture
def views(student_config):
    """The two held-out views of the demo capture."""
    return bench.load_views(student_config)


@pytest.fixture
def stubbed(stub_teacher, monkeypatch, tmp_path):
    """The stub in place of a trained teacher."""
    datamanager = mobiler2l_small.config.pipeline.datamanager
    monkeypatch.setattr(datamanager, "teacher", stub_teacher_config(stub_teacher, tmp_path))
    return stub_teacher


def main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["geometry.py", *map(str, arguments)])
    bench.main()


def test_views_are_exact(views):
    assert len(views) == 2
    for view in views:
        assert view.rgb.shape == (32, 32, 3) and view.alpha.shape == view.distance.shape == (32, 32, 1)
        hit = view.distance.isfinite()
        assert (view.alpha[hit] > 0.5).float().mean() > 0.8 and (view.rgb[view.alpha[..., 0] == 0] == 1).all()


def test_errors_by_hand(views):
    """Colours are 0.1 off, alpha 0.25, and depth 0.2 in front of the surface; the background is not judged."""

    def render(camera):
        (view,) = [view for view in views if view.camera is camera]
        depth = torch.where(view.distance.isfinite(), view.distance - 0.2, torch.tensor(1e6))
        return {"rgb": view.rgb - 0.1, "accumulation": view.alpha - 0.25, "depth": depth}

    found = bench.judge(render, views)
    away = sum((v.camera.camera_to_worlds[0, :, 3] - torch.tensor(TARGET).float()).norm() for v in views) / 2
    assert found["psnr"] >= 20 and found["alpha_error"] == pytest.approx(0.25, abs=1e-4)  # darker than black is cut off
    assert found["depth_error"] == pytest.approx(0.2 / float(away), abs=1e-4)


def test_a_teachers_z_is_judged_as_distance(views, stub_teacher):
    camera = views[0].camera
    outputs = bench.teacher_outputs(stub_teacher)(camera)
    torch.testing.assert_close(outputs["depth"], stub_teacher.render_all(camera)[..., 4:] * ray_lengths(camera))
    assert outputs["rgb"].shape == (32, 32, 3) and outputs["accumulation"].shape == (32, 32, 1)


def test_the_figures_add_up(capture, stubbed, tmp_path, monkeypatch):
    path = tmp_path / "new" / "figures.json"
    main(monkeypatch, "--data", capture, "--teacher", tmp_path / "config.yml", "--seeds", 3, "--steps", 2,
         "--teacher-views", 2, "--json", path)  # fmt: skip
    figures = json.loads(path.read_text())
    plain, full = figures["runs"]
    assert (plain["outputs"], full["outputs"]) == ("rgb", "rgbad") and plain["seed"] == full["seed"] == 3
    assert figures["db_lost"] == [pytest.approx(plain["psnr"] - full["psnr"], abs=1e-3)]
    assert figures["worst_depth_error"] == full["depth_error"] > 0 and "depth_error" not in plain
    assert stubbed.renders == 2 * (2 + 8) + 2  # a student: two views, eight photos' depths; and the teacher's own two


def test_both_students_see_the_same(capture, stubbed, tmp_path):
    seen = []
    for outputs in ("rgb", "rgbad"):
        options = type("Options", (), {"data": capture, "teacher": tmp_path, "steps": 1, "teacher_views": 2})
        _, trainer = train(bench.student_config(options, outputs, tmp_path / outputs), 0, lambda trainer: 0.0, 1)
        datamanager = trainer.pipeline.datamanager
        seen.append((datamanager.pool.c2w, datamanager.next_train(1)[1]["image"]))
    for ours, theirs in zip(*seen):
        assert torch.equal(ours, theirs)


def test_a_capture_without_depth_ends_in_a_sentence(capture, stubbed, tmp_path, monkeypatch):
    other = tmp_path / "other"
    shutil.copytree(capture, other)
    for path in other.glob("test/*_depth.npy"):
        path.unlink()
    with pytest.raises(UserError, match="make_demo_scene"):
        main(monkeypatch, "--data", other, "--teacher", tmp_path / "config.yml", "--steps", 1, "--teacher-views", 1)
    with pytest.raises(UserError, match="no folder nowhere"):
        main(monkeypatch, "--data", "nowhere", "--teacher", tmp_path / "config.yml")
