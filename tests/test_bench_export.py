"""The benchmark of exported files: both sides show the same picture, and the figures are those of the files."""

import json
import sys

import numpy as np
import pytest
import torch
from bench import export as bench_export
from bench import published_files
from builders import write_run

from mobiler2l_ns.errors import UserError


def bench(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, arguments)])
    bench_export.main()


def test_a_tiny_comparison(tmp_path, monkeypatch):
    path = tmp_path / "new" / "export.json"
    bench(monkeypatch, "--cells", "4", "--depth", "6", "--width", "16", "--rounds", "2", "--json", path)
    results = json.loads(path.read_text())
    assert results["resolution"] == "32x32" and results["max_difference_fp32"] < 2e-4
    milliseconds = results["milliseconds"]
    for precision, ratio in results["ratio_pipeline_by_precision"].items():
        reference = milliseconds["three reference graphs"]
        assert ratio == pytest.approx(milliseconds[f"pipeline {precision}"] / reference, rel=0.05, abs=2e-3)
    # No student, so nothing is known of what fewer bits lose.
    assert results["ratio_pipeline_precision"] == "fp32"
    assert results["ratio_pipeline"] == results["ratio_pipeline_by_precision"]["fp32"]
    assert results["size_ratio"]["fp32"] == 1.0
    front = results["sampler_and_embedder"]
    assert front["reference_bytes"] > front["bytes"] > 0


def test_the_other_side_is_the_published_one():
    """Its Sampler and Embedder are as large as the release's (1.6 and 5.8 MB), and say what ours say."""
    student = bench_export.published_student(bench_export.Options())
    graphs = published_files.reference_graphs(student)
    sizes = {name: len(graph.SerializeToString()) / 1e6 for name, graph in graphs.items()}
    assert 1.2 < sizes["sampler"] < 1.7 and 5.7 < sizes["embedder"] < 5.9
    assert "Erf" in {node.op_type for node in graphs["network"].graph.node}
    pose = torch.linalg.qr(torch.randn(3, 3))[0][None, None], torch.randn(1, 1, 1, 3)
    feed = {"c2w33": pose[0].numpy(), "c2w13": pose[1].numpy()}
    (points,) = published_files.session(graphs["sampler"], 1).run(None, feed)
    np.testing.assert_allclose(points, student.sampler(*pose).numpy(), atol=1e-5)
    (codes,) = published_files.session(graphs["embedder"], 1).run(None, {"rays": points})
    np.testing.assert_allclose(codes, student.embedder(torch.from_numpy(points)).numpy(), atol=1e-4)


def test_the_headline_is_the_fastest_that_loses_little():
    ratios = {"fp32": 0.9, "fp16": 0.7, "int8": 0.4}
    losses = {"fp32": {"lost_db": 0.0}, "fp16": {"lost_db": 0.01}, "int8": {"lost_db": 0.21}}
    results = {"ratio_pipeline_by_precision": ratios, "student": {"by_precision": losses}}
    assert bench_export.headline(results) == {"ratio_pipeline": 0.7, "ratio_pipeline_precision": "fp16"}
    losses["int8"]["lost_db"] = 0.2
    assert bench_export.headline(results)["ratio_pipeline_precision"] == "int8"


def test_a_student_without_photos_is_one_sentence(tmp_path, monkeypatch):
    student = write_run(tmp_path / "run")
    with pytest.raises(UserError, match="no photos at hand"):
        bench_export.measure_loss(student)
