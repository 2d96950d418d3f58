"""The installed commands in processes of their own: training that is killed and resumed, evaluation, export, errors."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from commands import run
from PIL import Image

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scores(student) -> dict:
    """Mean PSNR and SSIM of the student over the test photos, from the files of the photos."""
    from mobiler2l_ns.checkpoints import load_model
    from mobiler2l_ns.export.comparison import held_out_dataset
    from mobiler2l_ns.run_config import read_config
    from mobiler2l_ns.training.metrics import psnr, ssim

    model, _ = load_model(student, "cpu")
    dataset = held_out_dataset(read_config(student))
    assert len(dataset) == 2
    found = []
    for i, path in enumerate(dataset.image_filenames):
        colours, alpha = torch.from_numpy(np.float32(Image.open(path).convert("RGBA")) / 255).split((3, 1), dim=-1)
        photo = colours * alpha + 1 - alpha
        view = model.get_outputs_for_camera(dataset.cameras[i : i + 1])["rgb"]
        found.append((psnr(view, photo), ssim(view, photo)))
    return dict(zip(("psnr", "ssim"), np.mean(found, axis=0)))


def test_resumed_run_remembers_teacher_and_parser(student):
    from mobiler2l_ns.run_config import read_config

    config = read_config(student)
    assert "mobiler2l-teacher-small" in str(config.pipeline.datamanager.teacher.load_config)
    # Nothing was said about the parser on the command line: the teacher's was taken over.
    assert type(config.pipeline.datamanager.dataparser).__name__ == "BlenderDataParserConfig"


def test_ns_eval_scores_the_student(student, workspace, scores):
    run("ns-eval", "--load-config", student, "--output-path", workspace / "eval.json", cwd=workspace)
    results = json.loads((workspace / "eval.json").read_text())["results"]
    assert results["psnr"] == pytest.approx(scores["psnr"], abs=1e-3)
    assert results["ssim"] == pytest.approx(scores["ssim"], abs=1e-3)


def test_export_command_compares_with_photos(student, workspace, scores):
    run("ns-export-mobiler2l", "--load-config", student, "--output-dir", workspace / "files", cwd=workspace)
    report = json.loads((workspace / "files" / "report.json").read_text())
    assert report["psnr"]["student"] == pytest.approx(scores["psnr"], abs=1e-3)
    assert report["ssim"]["student"] == pytest.approx(scores["ssim"], abs=1e-3)
    assert abs(report["psnr"]["onnx"] - report["psnr"]["student"]) < 0.01
    assert set(report["psnr"]) == {"teacher", "student", "onnx"} == set(report["ssim"])
    assert max(report["parity"]["max_abs"].values()) <= 2e-4
    assert (workspace / "files" / "comparison.png").stat().st_size > 5000


@pytest.mark.parametrize(
    "code",
    [
        "import urllib.request; urllib.request.urlopen('http://localhost:9')",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import socket; socket.socket().bind(('127.0.0.1', 0))",
    ],
)
def test_attempts_to_reach_a_network_are_noted(code, tmp_path):
    """So the other tests of this file, whose commands train, evaluate, prune and export, show that none reaches one."""
    with pytest.raises(AssertionError, match="ConnectionRefusedError"):
        run("python", "-c", code, cwd=tmp_path, installed=True)
    assert "socket." in (tmp_path / "sockets.txt").read_text()


def test_one_sentence_and_no_traceback_for_a_missing_capture(tmp_path):
    output = run(
        "ns-train", "mobiler2l-teacher-small", "--machine.device-type", "cpu", "--data", "nowhere", cwd=tmp_path, code=1
    )
    (sentence,) = [line for line in output.splitlines() if line.startswith("mobiler2l: ")]
    assert "nowhere" in sentence and "--data" in sentence
    assert "Traceback" not in output


MODULES = "datamanager", "model", "export.command", "teacher.nerfacto", "export.comparison", "training.progress"
IMPORT_EACH_FIRST = """
import importlib, os, sys
import cv2, matplotlib.pyplot, requests, scipy, torch, torch._inductor.compile_fx, torch.utils.tensorboard
import torchmetrics, torchvision, tyro, viser
assert not any(name.startswith("nerfstudio") for name in sys.modules)
for module in sys.argv[1:]:
    if os.fork() == 0:
        importlib.import_module(f"mobiler2l_ns.{module}")
        os._exit(0)
    if os.wait()[1] != 0:
        sys.exit(f"{module} cannot be imported first")
"""


def test_any_module_may_be_imported_first(tmp_path):
    """nerfstudio's plugin discovery re-enters half-made modules: a wrong top-level import fails in some orders only.

    Each module is imported in a fork of a process that has imported other packages only, which takes most of the time.
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", IMPORT_EACH_FIRST, *MODULES], check=True, cwd=tmp_path)


def test_a_pruned_student_is_evaluated_and_exported(student, workspace):
    run(
        "ns-prune-mobiler2l", "--load-config", student, "--rounds", "1", "--finetune-steps", "2", "--fraction", "0.3",
        "--scoring-batches", "2", cwd=workspace,
    )  # fmt: skip
    pruned = student.parent.with_name(f"{student.parent.name}-pruned-1") / "config.yml"
    run("ns-eval", "--load-config", pruned, "--output-path", workspace / "pruned.json", cwd=workspace)
    found = json.loads((workspace / "pruned.json").read_text())["results"]["psnr"]
    record = json.loads((pruned.parent / "pruning.json").read_text())
    assert found == pytest.approx(record["after"]["psnr"], abs=1.0)  # of the test photos, and of the val photos
    report = json.loads((pruned.parent / "export" / "report.json").read_text())  # as the training that it goes on with
    assert report["gmac"] == pytest.approx(record["after"]["gmac"], rel=0.05) and report["gmac"] > 0
    assert max(report["parity"]["max_abs"].values()) <= 2e-4
