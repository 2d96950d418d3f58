"""The plugin beside nerfstudio: it brings in nothing but itself, and no broken package of an export's stops ns-*."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_worker import FAILURES, OPTIONAL

INSTALL = {
    "onnx": "'onnx<1.18'",
    "onnxruntime": "onnxruntime",
    "coremltools": "'mobiler2l-ns[coreml]'",
    "ml_dtypes": "ml-dtypes",
}


@pytest.fixture(scope="module")
def found() -> dict:
    """What a process of its own found: nerfstudio is imported once, our methods again in each case."""
    worker = Path(__file__).with_name("plugin_worker.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(worker)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_nothing_but_ourselves_is_imported(found):
    """Whatever else nerfstudio has not imported anyway would slow down every ns-* command."""
    assert "mobiler2l_ns.model" in found["added"]
    assert [name for name in found["added"] if name.split(".")[0] != "mobiler2l_ns"] == []


def test_the_exports_own_modules_wait(found):
    for module in ("command", "onnx_files", "verification", "comparison", "coreml_files", "web_files", "snap_files"):
        assert f"mobiler2l_ns.export.{module}" not in found["added"]


def test_broken_packages_leave_all_methods(found):
    assert len(found["names"]) == 8
    assert len(found["methods"]) == len(OPTIONAL) * len(FAILURES)
    assert all(methods == found["names"] for methods in found["methods"].values()), found["methods"]


@pytest.mark.parametrize("package", INSTALL)
def test_an_export_without_its_package_is_one_sentence(found, package):
    for failure in FAILURES:
        sentence = found["sentences"][f"{package} {failure}"]
        assert sentence.startswith(f"mobiler2l: this export needs {package}") and "\n" not in sentence
        assert f"pip install --python .venv/bin/python {INSTALL[package]}`" in sentence
