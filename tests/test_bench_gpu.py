"""The rehearsal of the benchmark for GPUs: every part, with tiny sizes on a CPU."""

import json
import sys

import pytest
from bench import gpu
from bench.gpu_parts import PARTS

from mobiler2l_ns.errors import UserError


def run(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *map(str, arguments)])
    gpu.main()


@pytest.mark.slow
def test_every_part_is_rehearsed(monkeypatch, tmp_path, capsys, capture):
    # One part of a capture stands for the others, which are those of the demo scene with another folder.
    parts = [name for name in PARTS if name not in ("capture-student", "capture-splat", "capture-ngp")]
    run(monkeypatch, "--rehearse", "--output", tmp_path, "--capture", capture, "--parts", *parts)
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert set(parts) <= set(figures)
    failed = {name for name in parts if "error" in figures[name]}
    assert failed == {"teacher-splat", "teacher-ngp"}
    for name in ("teacher", "student", "paper", "compact", "capture-teacher"):
        assert 3 < figures[name]["psnr"] < 40, name
    assert figures["teacher"]["rays_per_second"] > 10 and figures["steps"]["bf16"]["milliseconds"] > 0
    assert figures["frozen"]["ratio"] > 0 and figures["latency"]["mobiler2l, torch, bf16"] > 0
    assert figures["student"]["curve"][-1][0] == figures["student"]["steps"]
    assert (tmp_path / figures["student"]["picture"]).stat().st_size > 1000
    assert (tmp_path / "outputs" / "demo" / "mobiler2l" / "gpu" / "config.yml").is_file()
    # Parts that are done are not done again.
    before = (tmp_path / "student.json").stat().st_mtime
    run(monkeypatch, "--rehearse", "--output", tmp_path, "--parts", "student")
    assert (tmp_path / "student.json").stat().st_mtime == before
    assert "student: done before" in capsys.readouterr().out


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
