"""The real commands, in processes of their own: killed and resumed, evaluated, exported, looked at, and misused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent
TINY = [
    "--machine.device-type", "cpu", "--vis", "tensorboard", "--pipeline.model.network.depth", "6",
    "--pipeline.model.network.width", "16", "--pipeline.datamanager.initial-frames", "2",
    "--pipeline.datamanager.pool-frames", "4", "--pipeline.datamanager.windows-per-batch", "4",
]  # fmt: skip


def start(command: str, *arguments, cwd: Path) -> subprocess.Popen:
    """Starts an installed command."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "COLUMNS": "200"}
    return subprocess.Popen(
        [str(BIN / command), *map(str, arguments)], cwd=cwd, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def run(command: str, *arguments, cwd: Path, code: int = 0) -> str:
    """Runs an installed command to its end and returns what it printed."""
    process = start(command, *arguments, cwd=cwd)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output[-3000:]
    return output


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, capture):
    """A folder with a teacher that was trained by the real command."""
    folder = tmp_path_factory.mktemp("workspace")
    run(
        "ns-train", "mobiler2l-teacher-small", "--machine.device-type", "cpu", "--data", capture,
        "--max-num-iterations", "2", "--pipeline.datamanager.train-num-rays-per-batch", "64", "blender-data", cwd=folder,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def student(workspace, capture):
    """config.yml of a student whose first run was killed in mid-training and then resumed."""
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
    (checkpoint,) = folder.iterdir()  # one whole checkpoint, and nothing half-written beside it
    killed_at = int(checkpoint.stem.removeprefix("step-"))
    run(
        "ns-train", "mobiler2l-small", *TINY, "--data", capture, "--load-dir", folder,
        "--max-num-iterations", "3", "--timestamp", "resumed", cwd=workspace,
    )  # fmt: skip
    resumed = folder.parent.with_name("resumed")
    (checkpoint,) = (resumed / "nerfstudio_models").iterdir()
    assert int(checkpoint.stem.removeprefix("step-")) == killed_at + 3
    return resumed / "config.yml"


def test_resumed_run_remembers_teacher_and_parser(student):
    from mobiler2l_ns.checkpoints import read_config

    config = read_config(student)
    assert "mobiler2l-teacher-small" in str(config.pipeline.datamanager.teacher)
    # Nothing was said about the parser on the command line: the teacher's was taken over.
    assert type(config.pipeline.datamanager.dataparser).__name__ == "BlenderDataParserConfig"


def test_ns_eval_scores_the_student(student, workspace):
    run("ns-eval", "--load-config", student, "--output-path", workspace / "eval.json", cwd=workspace)
    results = json.loads((workspace / "eval.json").read_text())["results"]
    assert 3 < results["psnr"] < 40 and -1 <= results["ssim"] <= 1


def test_export_command_compares_with_photos(student, workspace):
    run("ns-export-mobiler2l", "--load-config", student, "--output-dir", workspace / "files", cwd=workspace)
    report = json.loads((workspace / "files" / "report.json").read_text())
    assert abs(report["psnr"]["onnx"] - report["psnr"]["student"]) < 0.01
    assert set(report["psnr"]) == {"teacher", "student", "onnx"} == set(report["ssim"])
    assert max(report["parity"]["max_abs"].values()) <= 2e-4
    assert (workspace / "files" / "comparison.png").stat().st_size > 5000


def test_one_sentence_and_no_traceback_for_a_missing_capture(tmp_path):
    output = run(
        "ns-train", "mobiler2l-teacher-small", "--machine.device-type", "cpu", "--data", "nowhere", cwd=tmp_path, code=1
    )
    (sentence,) = [line for line in output.splitlines() if line.startswith("mobiler2l: ")]
    assert "nowhere" in sentence and "--data" in sentence
    assert "Traceback" not in output


def test_optional_packages_may_be_missing(tmp_path):
    """Nothing that ns-* commands import through us may need onnx or onnxruntime."""
    code = (
        "import sys; sys.modules['onnx'] = sys.modules['onnxruntime'] = None\n"
        "import mobiler2l_ns.method_configs, mobiler2l_ns.export"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=tmp_path)


@pytest.mark.parametrize("module", ["datamanager", "model", "export", "teacher_model", "comparison"])
def test_any_module_may_be_imported_first(module, tmp_path):
    """nerfstudio's plugin discovery re-enters half-made modules; a wrong top-level import would fail only in some orders."""
    if module != "export":
        pytest.importorskip(f"mobiler2l_ns.{module}")
    subprocess.run([sys.executable, "-W", "ignore", "-c", f"import mobiler2l_ns.{module}"], check=True, cwd=tmp_path)
