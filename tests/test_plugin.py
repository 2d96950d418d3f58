"""The plugin within nerfstudio: it imports no other package, and broken optional packages stop exports alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_worker import FAILURES, OPTIONAL

INSTALL = {
    "onnx": "'mobiler2l-ns[export]'",
    "onnxruntime": "'mobiler2l-ns[export]'",
    "onnxslim": "'mobiler2l-ns[export]'",
    "ml_dtypes": "'mobiler2l-ns[export]'",
    "coremltools": "'mobiler2l-ns[coreml]'",
}


@pytest.fixture(scope="module")
def found() -> dict:
    """Output of plugin_worker.py, which imports nerfstudio once and our methods again in each case."""
    worker = Path(__file__).with_name("plugin_worker.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(worker)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_nothing_but_ourselves_is_imported(found):
    """Any module that nerfstudio alone does not import would slow down every ns-* command."""
    assert {"mobiler2l_ns.model", "mobiler2l_ns.export.command"} <= set(found["added"])
    assert [name for name in found["added"] if name.split(".")[0] != "mobiler2l_ns"] == []


def test_broken_packages_leave_all_methods(found):
    assert len(found["names"]) == 9
    assert len(found["methods"]) == len(OPTIONAL) * len(FAILURES)
    assert all(methods == found["names"] for methods in found["methods"].values()), found["methods"]


@pytest.mark.parametrize("package", INSTALL)
def test_an_export_without_its_package_is_one_sentence(found, package):
    for failure in FAILURES:
        sentence = found["sentences"][f"{package} {failure}"]
        assert sentence.startswith(f"mobiler2l: this command needs {package}") and "\n" not in sentence
        assert f"`uv pip install {INSTALL[package]}`" in sentence and "`bash scripts/setup.sh`" in sentence
