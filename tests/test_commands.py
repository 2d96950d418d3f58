"""The real commands, in processes of their own: killed and resumed, evaluated, exported, looked at, and misused."""

import json
import subprocess
import sys

import pytest
from commands import run

pytestmark = pytest.mark.slow


def test_resumed_run_remembers_teacher_and_parser(student):
    from mobiler2l_ns.checkpoints import read_config

    config = read_config(student)
    assert "mobiler2l-teacher-small" in str(config.pipeline.datamanager.teacher.load_config)
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


@pytest.mark.parametrize(
    "module", ["datamanager", "model", "export.command", "teacher.nerfacto", "export.comparison", "training.progress"]
)
def test_any_module_may_be_imported_first(module, tmp_path):
    """nerfstudio's plugin discovery re-enters half-made modules: a wrong top-level import fails in some orders only."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", f"import mobiler2l_ns.{module}"], check=True, cwd=tmp_path)
