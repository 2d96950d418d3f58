"""The rehearsal of the benchmark for GPUs: every part, with tiny sizes on a CPU."""

import copy
import json
import sys
import time
from types import SimpleNamespace

import onnxruntime
import pytest
import torch
import tyro
from bench import gpu, gpu_parts, gpu_place
from bench.gpu_parts import PARTS
from bench.gpu_place import TINY, Place
from bench.training import Run
from mobiler2l_ns.method_configs import mobiler2l_teacher, mobiler2l_teacher_splat

from mobiler2l_ns.errors import UserError

FAILED = SimpleNamespace(returncode=1)


def run(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *map(str, arguments)])
    gpu.main()


@pytest.mark.slow
def test_every_part_is_rehearsed(monkeypatch, tmp_path, capsys, capture):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    # One part of a capture stands for the others, which are those of the demo scene with another folder.
    parts = [name for name in PARTS if name not in ("capture-student", "capture-splat", "capture-ngp")]
    start = time.perf_counter()
    run(monkeypatch, "--rehearse", "--output", tmp_path, "--capture", capture, "--parts", *parts)
    seconds, figures = time.perf_counter() - start, json.loads((tmp_path / "gpu.json").read_text())
    assert set(parts) <= set(figures)
    failed = {name for name in parts if "error" in figures[name]}
    assert failed == {"teacher-splat", "teacher-ngp"}
    trained = "teacher", "student", "paper", "compact", "capture-teacher"
    for name in trained:
        assert 3 < figures[name]["psnr"] < 40, name
    assert figures["teacher"]["rays_per_second"] > 10 and figures["steps"]["bf16"]["milliseconds"] > 0
    # Parts that train take seconds; others, such as the environment, may take less than a millisecond.
    assert all(figures[name]["seconds_of_part"] > 0.1 for name in trained)
    assert sum(figures[name]["seconds_of_part"] for name in parts) < seconds + 0.001 * len(parts)
    assert "has no CUDAExecutionProvider: install onnxruntime-gpu" in figures["latency"]["onnxruntime"]
    assert "peak_memory_mb" not in figures["machine"]
    assert figures["frozen"]["ratio"] > 0 and figures["latency"]["mobiler2l, torch, bf16"] > 0
    assert figures["student"]["curve"][-1][0] == figures["student"]["steps"]
    assert (tmp_path / figures["student"]["picture"]).stat().st_size > 1000
    assert (tmp_path / "outputs" / "demo" / "mobiler2l" / "gpu" / "config.yml").is_file()
    # Parts that are done are not done again.
    before = (tmp_path / "student.json").stat().st_mtime
    run(monkeypatch, "--rehearse", "--output", tmp_path, "--parts", "student")
    assert (tmp_path / "student.json").stat().st_mtime == before
    assert "student: done before" in capsys.readouterr().out
    # The file of all figures keeps those of the other parts.
    (tmp_path / "environment.json").unlink()
    run(monkeypatch, "--rehearse", "--output", tmp_path, "--parts", "environment")
    again = json.loads((tmp_path / "gpu.json").read_text())
    assert again["student"] == figures["student"] and "torch" in again["environment"]


def test_a_part_is_told_what_the_command_was_told(tmp_path):
    options = gpu.Options(tmp_path, 3.5, ("scene", "steps"), tmp_path / "capture", student_seconds=60.5, rehearse=True)
    assert tyro.cli(gpu.Options, args=gpu.command_line(options)) == options
    assert gpu.command_line(gpu.Options()) == []


@pytest.mark.parametrize("left, expected", [(2000.0, 420.0), (300.0, 180.0)])
def test_a_student_has_the_time_that_is_left(left, expected, monkeypatch, tmp_path):
    words = []
    monkeypatch.setattr(gpu.subprocess, "run", lambda command, **options: words.extend(command) or FAILED)
    gpu.run_part("student", gpu.Options(tmp_path), left)
    assert tyro.cli(gpu.Options, args=words[2:]).student_seconds == expected


def test_the_time_of_a_part_that_was_stopped(tmp_path):
    """No process imports torch within 0.12 s."""
    found = gpu.measure(gpu.Options(tmp_path, minutes=0.002, parts=("environment", "scene")))
    assert found["environment"]["error"] == "stopped after 0 s" and found["environment"]["seconds_of_part"] >= 0.12
    assert found["scene"]["error"] == "no time left" and found["scene"]["seconds_of_part"] < 0.12
    assert json.loads((tmp_path / "gpu.json").read_text())["environment"] == found["environment"]


def test_variants_that_fail_cost_nothing_else(monkeypatch, tmp_path):
    def time_steps(place, trainer, precision, compiler):
        if precision == "bf16":
            raise UserError("too little memory")
        return {"milliseconds": 5.0}

    monkeypatch.setattr(gpu_parts, "take_one_step", lambda config: (Run("mobiler2l", 0, 1), None))
    monkeypatch.setattr(gpu_parts, "time_steps", time_steps)
    monkeypatch.setattr(Place, "teacher", lambda self, scene, method="": tmp_path / "config.yml")
    monkeypatch.setattr(Place, "view_size", lambda self, scene: (32, 32))
    found = gpu_parts.steps(Place(tmp_path, TINY))
    assert found["fp32"] == {"milliseconds": 5.0} and "too little memory" in found["bf16"]["error"]


def test_a_short_run_of_splats_ends_in_full_resolution():
    model = copy.deepcopy(mobiler2l_teacher_splat.config.pipeline.model)
    gpu_parts.shorten_splats(model, 4000)
    # splatfacto divides the photos' sides by 2 to the power of this.
    assert [max(model.num_downscales - step // model.resolution_schedule, 0) for step in (0, 799, 800)] == [2, 1, 0]
    assert model.stop_split_at == 2000 < model.reset_alpha_every * model.refine_every
    nerfacto = copy.deepcopy(mobiler2l_teacher.config.pipeline.model)
    gpu_parts.shorten_splats(nerfacto, 4000)
    assert nerfacto == mobiler2l_teacher.config.pipeline.model


def test_the_environment_of_a_gpu_names_missing_kernels(monkeypatch, tmp_path):
    """Here the kernels of splatfacto cannot be compiled, and those of instant-ngp can."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    properties = SimpleNamespace(name="a GPU", total_memory=80e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(gpu_parts, "missing_kernels", lambda model: "gsplat" if "Splat" in model.__name__ else None)
    found = gpu_parts.environment(Place(tmp_path, TINY))
    assert found["gpu"] == {"name": "a GPU", "memory_gb": 80.0} and found["missing_kernels"] == ["gsplat"]


@pytest.mark.parametrize("photo, view", [((3024, 4032), (744, 1000)), ((30, 53), (24, 48))], ids=str)
def test_views_of_a_capture_are_whole_cells_and_not_too_large(photo, view, monkeypatch, tmp_path):
    cameras = SimpleNamespace(height=torch.tensor([photo[0]]), width=torch.tensor([photo[1]]))
    monkeypatch.setattr(gpu_place, "held_out_dataset", lambda config: SimpleNamespace(cameras=cameras))
    assert Place(tmp_path, TINY, tmp_path).view_size("capture") == view


def test_a_part_that_does_not_exist(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="there is no part drums: choose from environment, scene, teacher"):
        run(monkeypatch, "--rehearse", "--output", tmp_path, "--parts", "drums")


def test_without_a_gpu(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="torch sees no NVIDIA GPU with CUDA here: pass --rehearse"):
        run(monkeypatch, "--output", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_part_needs_the_part_before(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="the part that trains mobiler2l-teacher has to run before"):
        run(monkeypatch, "--rehearse", "--output", tmp_path, "--parts", "steps")
