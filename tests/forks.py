"""Processes that start at once: forks of a server that has imported nerfstudio, which takes half a minute."""

import multiprocessing
import os
import runpy
import sys
import threading
from importlib.metadata import entry_points
from multiprocessing import forkserver
from pathlib import Path
from typing import Dict, List, Tuple

import pytest

from mobiler2l_ns.teacher import fast_nerfacto

NO_NETWORK = Path(__file__).with_name("no_network") / "sitecustomize.py"
PRELOAD = (
    "quick_stack", "onnx", "onnxruntime", "onnxslim", "matplotlib.pyplot", "torch.utils.tensorboard",
    "nerfstudio.scripts.train", "nerfstudio.scripts.eval", "mobiler2l_ns.export.command",
    "mobiler2l_ns.pruning.command", "builders",
)  # fmt: skip
context = multiprocessing.get_context("forkserver")


def process(target, *arguments):
    """A process that will call a function of a module; it starts with ``start()``."""
    context.set_forkserver_preload(list(PRELOAD))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server imports before it is told this path
        forkserver.ensure_running()
    return context.Process(target=target, args=arguments)


class ForkedCommand:
    """An installed command in a fork, with the part of ``subprocess.Popen`` that tests use.

    Args:
        command: Its name.
        arguments: What follows the name.
        cwd: The folder that it runs in.
        environment: Variables to add.

    Attributes:
        stdout: What it prints, errors too.
    """

    def __init__(self, command: str, arguments: List[str], cwd: Path, environment: Dict[str, str]):
        receiver, sender = context.Pipe(duplex=False)
        self._process = process(run_command, command, arguments, str(cwd), environment, sender)
        self._process.start()
        sender.close()
        self.stdout = open(os.dup(receiver.fileno()), errors="replace")
        receiver.close()
        self.pid = self._process.pid

    @property
    def returncode(self):
        """Of the command; None while it runs."""
        return self._process.exitcode

    def poll(self):
        """The same."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal to the command."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends the command by SIGKILL."""
        self._process.kill()

    def communicate(self, timeout: float = 300) -> Tuple[str, None]:
        """Waits for the command's end and returns what it printed since the last line that was read.

        After ``timeout`` seconds the command is killed, and its return code tells.
        """
        watch = threading.Timer(timeout, self.kill)
        watch.start()
        with self.stdout:
            printed = self.stdout.read()
        self._process.join()
        watch.cancel()
        return printed, None


def run_command(command: str, arguments: List[str], cwd: str, environment: Dict[str, str], output) -> None:
    """Runs an installed command in this process, as its script does."""
    os.chdir(cwd)
    os.environ.update(environment)
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    if "MOBILER2L_SOCKETS" in environment:
        runpy.run_path(str(NO_NETWORK))
    fast_nerfacto.GRID_RESOLUTION = 32  # a teacher is ready at once, as in the tests' own process
    sys.argv = [command, *arguments]
    (script,) = entry_points(group="console_scripts", name=command)
    sys.exit(script.load()())
