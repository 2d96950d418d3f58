"""The installed commands: run in processes of their own, or parsed. conftest.py imports the fixtures."""

import contextlib
import fcntl
import io
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable

import pytest
import torch
import tyro
from forks import NO_NETWORK, ForkedCommand

BIN = Path(sys.executable).parent
TINY = [
    "--machine.device-type", "cpu", "--vis", "tensorboard", "--pipeline.model.network.depth", "6",
    "--pipeline.model.network.width", "16", "--pipeline.datamanager.initial-views", "2",
    "--pipeline.datamanager.pool-views", "4", "--pipeline.datamanager.patches-per-batch", "4",
]  # fmt: skip


def start(command: str, *arguments, cwd: Path, installed: bool = False, network: bool = False, **environment):
    """Starts an installed command. Each attempt to reach a network fails and is noted in ``sockets.txt``.

    Args:
        command: Its name.
        arguments: What follows the name.
        cwd: The folder that it runs in.
        installed: Start its script in the environment, which imports nerfstudio for half a minute, not a fork.
        network: Let it reach the network.
        environment: Variables to add.
    """
    environment = {"PYTHONWARNINGS": "ignore", "COLUMNS": "200", **environment}
    if not network:
        environment["MOBILER2L_SOCKETS"] = str(Path(cwd) / "sockets.txt")
    words = [str(word) for word in arguments]
    if not installed:
        return ForkedCommand(command, words, cwd, environment)
    if not network:
        search = filter(None, (str(NO_NETWORK.parent), os.environ.get("PYTHONPATH")))
        environment["PYTHONPATH"] = os.pathsep.join(search)
    return subprocess.Popen(
        [str(BIN / command), *words], cwd=cwd, env={**os.environ, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def run(command: str, *arguments, cwd: Path, code: int = 0, **options) -> str:
    """Runs an installed command to its end and returns what it printed."""
    process = start(command, *arguments, cwd=cwd, **options)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output[-3000:]
    assert not (Path(cwd) / "sockets.txt").exists(), (Path(cwd) / "sockets.txt").read_text()
    return output


def build_once(tmp_path_factory, name: str, build: Callable[[Path], None]) -> Path:
    """A folder that the first test process builds, and that the others wait for."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = base / name, base / f"{name}.done"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            folder.mkdir(exist_ok=True)
            build(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def workspace(tmp_path_factory, capture):
    """A folder with a teacher that was trained by the real command."""

    def train(folder: Path) -> None:
        run(
            "ns-train", "mobiler2l-teacher-small", "--machine.device-type", "cpu", "--data", capture,
            "--max-num-iterations", "2", "--pipeline.datamanager.train-num-rays-per-batch", "64", "blender-data",
            cwd=folder,
        )  # fmt: skip

    return build_once(tmp_path_factory, "workspace", train)


@pytest.fixture(scope="session")
def student(tmp_path_factory, workspace, capture):
    """config.yml of a student whose first run was killed in mid-training and then resumed."""
    build_once(tmp_path_factory, "student", lambda folder: kill_and_resume(workspace, capture))
    return workspace / "outputs" / capture.name / "mobiler2l-small" / "resumed" / "config.yml"


def kill_and_resume(workspace: Path, capture: Path) -> None:
    """Kills a training after its first checkpoint, and goes on with it for 120 steps."""
    process = start(
        "ns-train", "mobiler2l-small", *TINY, "--data", capture, "--steps-per-save", "3",
        "--max-num-iterations", "100000", "--timestamp", "killed", cwd=workspace,
    )  # fmt: skip
    folder = workspace / "outputs" / capture.name / "mobiler2l-small" / "killed" / "nerfstudio_models"
    deadline = time.time() + 200
    while not list(folder.glob("step-*.ckpt")) and time.time() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    output = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, output[-3000:]
    for checkpoint in sorted(folder.iterdir()):  # nothing half-written, whenever the kill came
        torch.load(checkpoint, weights_only=True)
    killed_at = int(checkpoint.stem.removeprefix("step-"))
    run(
        "ns-train", "mobiler2l-small", *TINY, "--data", capture, "--load-dir", folder,
        "--max-num-iterations", "120", "--timestamp", "resumed", cwd=workspace,
    )  # fmt: skip
    (checkpoint,) = folder.parent.with_name("resumed").glob("nerfstudio_models/*")
    assert int(checkpoint.stem.removeprefix("step-")) == killed_at + 120


def parser_of(command: str):
    """What a command hands to tyro."""
    if command == "ns-train":
        from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion as target
    elif command == "ns-process-data":
        from nerfstudio.scripts.process_data import Commands as target
    elif command == "ns-eval":
        from nerfstudio.scripts.eval import ComputePSNR

        target = tyro.conf.FlagConversionOff[ComputePSNR]
    elif command == "ns-viewer":
        from nerfstudio.scripts.viewer.run_viewer import RunViewer

        target = tyro.conf.FlagConversionOff[RunViewer]
    elif command == "ns-render":
        from nerfstudio.scripts.render import Commands

        target = tyro.conf.FlagConversionOff[Commands]
    elif command == "ns-export":
        from nerfstudio.scripts.exporter import Commands

        target = tyro.conf.FlagConversionOff[Commands]
    elif command == "ns-process-mobiler2l":
        from mobiler2l_ns.process_data.command import ProcessMobileR2L as target
    elif command == "ns-prune-mobiler2l":
        from mobiler2l_ns.pruning.command import PruneMobileR2L

        target = tyro.conf.FlagConversionOff[PruneMobileR2L]
    elif command == "ns-export-mobiler2l":
        from mobiler2l_ns.export.command import ExportMobileR2L

        target = tyro.conf.FlagConversionOff[ExportMobileR2L]
    else:
        raise AssertionError(f"{command} is no command that the documents may name")
    return target


def parse(command: list):
    """The config that a command line stands for; an AssertionError with tyro's words where it stands for none."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return tyro.cli(parser_of(command[0]), args=command[1:])
    except SystemExit as end:
        if "--help" in command and end.code == 0:
            return None
        raise AssertionError(f"{shlex.join(command)}\n{said.getvalue()}") from None
