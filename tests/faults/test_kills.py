"""Runs killed at random moments lose nothing and go on. FAULTS sets how often; scripts/bench/soak.sh does more.

Each case kills a run in a phase, after a random delay, and starts the same command again until it ends.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Dict, Tuple

import numpy as np
import pytest
import torch
import victims
import yaml
from builders import StubTeacher
from victims import STEPS

from mobiler2l_ns.cameras import crop_camera, pinhole_cameras
from mobiler2l_ns.checkpoints import read_checkpoint
from mobiler2l_ns.data.pool import ViewPool, to_bytes
from mobiler2l_ns.export.output_folder import clear_leftovers, files_of
from mobiler2l_ns.student.sampler import DepthRange

COUNT = int(os.environ.get("FAULTS", "6"))
CASES = [
    (seed, ("filling", "saving", "training", "fine-tuning", "pruning", "replacing", "saving", "exporting")[seed % 8])
    for seed in range(COUNT)
]
VICTIM = {"pruning": "prune", "exporting": "export", "replacing": "export"}


def finish(processes, victim, folder, capture) -> list:
    """Runs a victim to its end; returns the phases that it went through."""
    process, phases = processes(victim, folder, capture)
    seen = []
    try:
        while True:
            seen.append(phases.recv())
    except EOFError:
        process.join()
    assert process.exitcode == 0
    return seen


def kill(processes, victim, folder, capture, phase, numbers) -> int:
    """Kills a victim the n-th time that it enters a phase, after up to 20 ms, and returns how it ended."""
    process, phases = processes(victim, folder, capture)
    left = 1 if phase in ("exporting", "replacing") else numbers.randrange(1, 6)
    try:
        while left:
            left -= phases.recv() == phase
        time.sleep(0.02 * numbers.random() ** 2)
    except EOFError:
        pass  # the phase is over sooner: the run is killed as it ends
    with contextlib.suppress(ProcessLookupError):  # it ended already
        os.kill(process.pid, numbers.choice([signal.SIGKILL, signal.SIGTERM]))
    while phases.poll(None):
        try:
            phases.recv()
        except EOFError:
            break
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def whole(processes, capture, tmp_path_factory) -> Path:
    """The folder of a student that nobody killed."""
    folder = tmp_path_factory.mktemp("whole")
    phases = finish(processes, "train", folder, capture)
    assert {"filling", "training", "fine-tuning", "saving"} <= set(phases)
    return folder


def run_of(folder: Path) -> Path:
    return folder / "outputs" / "faults" / "mobiler2l-small" / "run"


def assert_files_are_whole(folder: Path) -> None:
    """Every checkpoint can be read, every JSON and config is one, and each view of the cache is that of its pose."""
    for path in folder.rglob("*.ckpt"):
        read_checkpoint(path)
    for path in (*folder.rglob("*.json"), *folder.rglob("config.yml")):
        assert json.loads(path.read_text()) if path.suffix == ".json" else yaml.compose(path.read_text()), path
    cache = folder / "cache"
    if (cache / "pool.json").is_file():
        header = json.loads((cache / "pool.json").read_text())
        depths = DepthRange(*header["depths"])
        tile, focal = tuple(header["tile"]), 16 / 0.36
        pool = ViewPool(6, tile, (32, 32), focal, 8, "cpu", cache, header["identity"], header["channels"], depths)
        for slot in range(len(pool)):
            camera = pinhole_cameras(pool.c2w[slot : slot + 1], focal, 32, 32)
            view = StubTeacher().render_all(crop_camera(camera, *pool.corner[slot].tolist(), *tile))
            expected = to_bytes(view[..., : header["channels"]], depths)
            assert np.abs(pool.images[slot].int() - expected.int()).max() <= 1


def latest(folder: Path) -> Tuple[int, bool]:
    """Step of a run's newest checkpoint, -1 where there is none, and whether it was the last one of the run."""
    saved = [read_checkpoint(path) for path in run_of(folder).rglob("*.ckpt")]
    newest = max(saved, key=lambda content: content["step"], default={"step": -1, "run": {"completed": False}})
    return newest["step"], newest["run"]["completed"]


def sizes(folder: Path) -> Dict[str, int]:
    return {name: (folder / name).stat().st_size for name in files_of(folder)}


@pytest.mark.parametrize("seed", [seed for seed, phase in CASES if phase not in VICTIM])
def test_a_killed_training_loses_nothing_and_goes_on(processes, whole, capture, tmp_path, seed):
    numbers, phase, step, is_exact, is_done = random.Random(seed), CASES[seed][1], -1, True, False
    for _ in range(numbers.randrange(1, 4)):
        code = kill(processes, "train", tmp_path, capture, phase, numbers)
        assert code in (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM, 0)
        assert_files_are_whole(tmp_path)
        before, (step, is_done) = step, latest(tmp_path)
        assert step >= before  # what was once saved is never lost
        is_exact &= step >= 0  # without a checkpoint the cache alone is kept, and the random numbers begin anew
        if is_done:
            break
    if not is_done:
        finish(processes, "train", tmp_path, capture)
    assert_files_are_whole(tmp_path)
    assert latest(tmp_path) == (STEPS - 1, True)
    expected, found = (victims.weights_of(folder, capture) for folder in (whole, tmp_path))
    assert found.keys() == expected.keys()
    for name in found if is_exact else ():
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", [seed for seed, phase in CASES if phase == "pruning"])
def test_a_killed_pruning_goes_on(processes, whole, capture, tmp_path, seed):
    numbers, runs = random.Random(seed), tmp_path / "mobiler2l-small"
    shutil.copytree(run_of(whole), runs / "run")
    before = sizes(runs / "run")
    for _ in range(numbers.randrange(1, 4)):
        kill(processes, "prune", tmp_path, capture, numbers.choice(["training", "saving"]), numbers)
        assert_files_are_whole(tmp_path)
    finish(processes, "prune", tmp_path, capture)
    records = [json.loads((runs / f"run-pruned-{number}" / "pruning.json").read_text()) for number in (1, 2)]
    assert all(record["after"]["gmac"] < record["before"]["gmac"] for record in records)
    assert sizes(runs / "run") == before


@pytest.mark.parametrize("seed", [seed for seed, phase in CASES if VICTIM.get(phase) == "export"])
def test_a_killed_export_leaves_the_old_one_or_the_new_one(processes, whole, capture, tmp_path, seed):
    numbers, phase = random.Random(seed), CASES[seed][1]
    shutil.copytree(run_of(whole), tmp_path / "mobiler2l-small" / "run")
    finish(processes, "export", tmp_path, capture)
    before = sizes(tmp_path / "files")
    kill(processes, "export", tmp_path, capture, phase, numbers)
    clear_leftovers(tmp_path / "files")  # what the next export does first
    assert sizes(tmp_path / "files").keys() == before.keys()
    assert_files_are_whole(tmp_path)
    finish(processes, "export", tmp_path, capture)
    assert sizes(tmp_path / "files").keys() == before.keys() and not list(tmp_path.glob(".files*"))
