"""The benchmarks of pruning and of the compact network, with a tiny capture and a real teacher."""

import functools
import json
import sys
from pathlib import Path

import pytest
from bench import compact, pruning
from builders import one_sentence

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.student.network import MobileR2LNetwork, NetworkConfig


@pytest.fixture(scope="module")
def teacher(workspace, capture):
    (path,) = (workspace / "outputs" / capture.name / "mobiler2l-teacher-small").glob("*/config.yml")
    return path


def test_pruned_students_beside_others(capture, teacher, tmp_path, monkeypatch):
    path = tmp_path / "pruning.json"
    options = {
        "data": capture, "teacher": teacher, "steps": 4, "rounds": 2, "finetune-steps": 2, "fraction": 0.3,
        "work": tmp_path / "runs", "runs": 3, "json": path,
    }  # fmt: skip
    command = ["pruning.py", *(str(word) for name, value in options.items() for word in (f"--{name}", value))]
    monkeypatch.setattr(sys, "argv", command)
    few_batches = functools.partial(pruning.PruneMobileR2L, scoring_batches=2)
    monkeypatch.setattr(pruning, "PruneMobileR2L", few_batches)
    pruning.main()
    results = json.loads(path.read_text())
    students = results["students"]
    assert list(students) == ["unpruned", "round 1", "round 2", "one-shot", "dense"]
    assert [students[name]["steps"] for name in list(students)[:4]] == [8, 2, 2, 4]
    whole, last = students["unpruned"], students["round 2"]
    assert results["gmac_ratio"] == pytest.approx(last["gmac"] / whole["gmac"], abs=1e-3)
    assert 0.35 < results["gmac_ratio"] < 0.6
    assert results["psnr_loss_db"] == pytest.approx(whole["psnr"] - last["psnr"], abs=2e-3)
    # The multiples of four and of eight are coarse.
    assert students["dense"]["gmac"] == pytest.approx(students["round 2"]["gmac"], rel=0.1)
    assert path.with_suffix(".png").stat().st_size > 10_000
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*.ckpt")}
    assert len(written) == 6
    monkeypatch.setattr(pruning, "measure_students", lambda found, options: students)
    pruning.main()  # all runs are there already
    assert written == {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*.ckpt")}


def test_a_dense_network_has_the_work_of_a_pruned_one():
    """Half of the width and of the stages' has a quarter of the work, but for the codes and the outputs."""
    whole = pruning.whole_network(pruning.Options(data=Path("data"), teacher=Path("config.yml")))
    half = MobileR2LNetwork(87, NetworkConfig(depth=24, width=48, sr_widths=(16, 8), sr_strides=(2, 2)))
    found = pruning.dense_network(half, whole)
    assert (found.depth, found.width, found.sr_widths, found.inner_widths) == (24, 48, (16, 8), None)


def test_the_compact_method_beside_the_large_one(capture, teacher, tmp_path, monkeypatch):
    path = tmp_path / "compact.json"
    monkeypatch.setattr(compact, "CELLS", 4)
    monkeypatch.setattr(compact, "PROBE_STEPS", 3)
    monkeypatch.setattr(compact, "TRIED", {"other": NetworkConfig(depth=6, width=16)})
    options = ["--image-size", "32", "32", "--seconds", "1", "--patches", "2", "--runs", "2", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["compact.py", "--data", str(capture), "--teacher", str(teacher), *options])
    compact.main()
    results = json.loads(path.read_text())
    large, small = (results["shapes"][name] for name in ("mobiler2l", "mobiler2l-compact"))
    assert large["latency_ratio"] == 1.0 and results["gmac"] == small["gmac"] < large["gmac"] / 4
    assert results["megabytes_fp16"] == small["megabytes_fp16"] <= 3 < large["megabytes_fp16"]
    assert [run["recipe"] for run in results["runs"]] == ["mobiler2l", "mobiler2l-compact"]
    psnr = {name: found["psnr"] for name, found in results["trained"].items()}
    assert results["gain_db"] == pytest.approx(psnr["mobiler2l-compact"] - psnr["mobiler2l"], abs=2e-3)
    assert path.with_suffix(".png").stat().st_size > 10_000


@pytest.mark.parametrize("script", [pruning, compact], ids=["pruning", "compact"])
def test_a_missing_capture_ends_in_a_sentence(script, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py", "--data", "nowhere", "--teacher", "config.yml"])
    with pytest.raises(UserError) as caught:
        script.main()
    assert "no folder nowhere" in one_sentence(caught)
