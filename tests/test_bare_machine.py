"""The plugin on a machine without the optional system packages: its commands start, and what is missing is named.

The libraries are hidden from a process of its own: the dynamic loader finds an empty file first and refuses it.
"""

import os
import subprocess
import sys
from pathlib import Path

import missing_packages
import pytest
from system_packages import needs

ROOT = Path(__file__).parents[1]
# What a minimal Debian lacks and wheels of this kind load: the packages' own libraries, X11 and GLib.
HIDDEN = (*missing_packages.LIBRARIES.values(), "libX11.so.6", "libxcb.so.1", "libGLX.so.0", "libglib-2.0.so.0")
COMMANDS = (
    "nerfstudio.scripts.train",
    "nerfstudio.scripts.eval",
    "nerfstudio.scripts.render",
    "nerfstudio.scripts.viewer.run_viewer",
    "mobiler2l_ns.export.command",
    "mobiler2l_ns.process_data.command",
    "mobiler2l_ns.method_configs",
    "mobiler2l_ns.runtime",
    "make_demo_scene",
)

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the libraries can be hidden from Linux's loader alone"
)


@pytest.fixture
def bare(tmp_path):
    """The environment of a process that finds neither the libraries nor any command."""
    for name in HIDDEN:
        (tmp_path / name).touch()
    path = {"LD_LIBRARY_PATH": str(tmp_path), "PATH": "", "PYTHONPATH": str(ROOT / "scripts")}
    return {**os.environ, **path, "PYTHONWARNINGS": "ignore"}


def run_python(code: str, environment: dict) -> subprocess.CompletedProcess:
    """Runs Python code in a process of its own."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_commands_start_without_the_packages(bare):
    code = f"import importlib\nfor name in {COMMANDS}: importlib.import_module(name)\nprint('all imported')"
    done = run_python(code, bare)
    assert done.returncode == 0 and done.stdout.endswith("all imported\n"), done.stderr[-3000:]


def test_what_is_missing_is_one_sentence(bare):
    done = run_python("import missing_packages; missing_packages.main([])", bare)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count("\n") == 1
        and "ns-export and ns-process-data: libusb-1.0-0, libegl1, libgl1, libopengl0;" in done.stdout
    )
    names = [*missing_packages.LIBRARIES, *missing_packages.PROGRAMS]
    assert f"`apt install {' '.join(names)}`" in done.stdout
    listed = run_python("import missing_packages; missing_packages.main(['--list'])", bare)
    assert listed.stdout.split() == names


def test_a_test_is_skipped_with_the_command_that_helps(monkeypatch):
    monkeypatch.setattr("missing_packages.is_installed", lambda package: package != "ffmpeg")
    skipped = needs("npm", "ffmpeg").mark
    assert skipped.args == (True,) and skipped.kwargs["reason"] == "ffmpeg not installed: run `apt install ffmpeg`"
    assert needs("npm").mark.args == (False,)


def test_a_package_that_is_not_listed_is_an_error():
    with pytest.raises(KeyError):
        needs("libusb")


def test_nothing_is_printed_where_all_is_installed(monkeypatch, capsys):
    monkeypatch.setattr("missing_packages.is_installed", lambda package: True)
    missing_packages.main([])
    missing_packages.main(["--list"])
    assert capsys.readouterr().out == ""
