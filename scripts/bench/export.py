"""What the exported files cost beside files of the published exporter's shape: time, size, and what fewer bits lose.

    python scripts/bench/export.py                                 the published network, D60 W256, 800x800
    python scripts/bench/export.py --student RUN/config.yml        also PSNR against held-out photos, by precision

Both sides are built here from one network with the same weights, and run by turns in one process. published_files.py
has the other side.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Optional

if __name__ == "__main__":  # modules are found in scripts/, not in scripts/bench/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
import tyro
from nerfstudio.data.scene_box import SceneBox

from bench.common import CPU, console, median_milliseconds, new_table, with_machine, write_figures
from bench.published_files import chain, front, reference_graphs, session
from mobiler2l_ns.data.student_camera import StudentCamera
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export.command import ExportMobileR2L
from mobiler2l_ns.export.onnx_files import EMBEDDER, SAMPLER, trace_front, trace_pipeline
from mobiler2l_ns.model import MobileR2LModelConfig
from mobiler2l_ns.student.viewing_range import viewing_range

PRECISIONS = ("fp32", "fp16", "int8")


@dataclass
class Options:
    """Command line."""

    rounds: int = 7
    """How many times each side runs, by turns."""
    threads: int = 2
    """Threads that onnxruntime may use."""
    cells: int = 100
    """Side of the ray grid; the image is eight times as large."""
    depth: int = 60
    """D of the network."""
    width: int = 256
    """W of the network."""
    student: Optional[Path] = None
    """config.yml of a trained student: what fp16 and int8 lose against its held-out photos."""
    json: Path = Path("docs/benchmarks/export.json")
    """File for the figures."""


def published_student(options: Options):
    """A student of the published shape with random weights; camera as in Snap's template."""
    torch.manual_seed(0)
    config = MobileR2LModelConfig(outputs="rgb")
    config.network.depth, config.network.width = options.depth, options.width
    side = options.cells * config.network.upscale
    camera = StudentCamera(height=side, width=side, focal=1.389 * side, near=2.0, far=6.0)
    box = SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    return config.setup(scene_box=box, num_train_data=1, metadata={"student_camera": camera}).eval()


def measure(options: Options) -> Dict:
    """Builds both sides and runs them by turns."""
    model = published_student(options)
    c2w = viewing_range(model).sample(1)[0].numpy()
    graphs = {f"reference {name}": graph for name, graph in reference_graphs(model).items()}
    graphs.update(trace_front(model))
    for precision in PRECISIONS:
        console.print(f"Building pipeline.onnx in {precision} ...")
        graphs[f"pipeline {precision}"] = trace_pipeline(model, "rgb", precision, 20)
    sizes = {name: len(graph.SerializeToString()) for name, graph in graphs.items()}
    sessions = {name: session(graph, options.threads) for name, graph in graphs.items()}
    sides = {
        "three reference graphs": chain(*(sessions[f"reference {n}"] for n in ("sampler", "embedder", "network")), c2w),
    }
    # Two graphs this small are fastest on one thread each: those of the first go on spinning when the second's start.
    small = {
        name: front(*(session(graphs[part], 1) for part in parts), c2w)
        for name, parts in (
            ("reference sampler and embedder", ("reference sampler", "reference embedder")),
            ("our sampler and embedder", (SAMPLER, EMBEDDER)),
        )
    }
    for precision in PRECISIONS:
        name = f"pipeline {precision}"
        sides[name] = lambda name=name: sessions[name].run(None, {"c2w": c2w[None]})[0]
    images = {name: run() for name, run in sides.items()}  # also warms up
    truth = images["three reference graphs"]
    milliseconds = {**median_milliseconds(sides, options.rounds), **median_milliseconds(small, 10 * options.rounds)}
    whole = milliseconds["three reference graphs"]
    return {
        "network": f"D{options.depth} W{options.width}, {options.cells}x{options.cells} rays",
        "resolution": f"{truth.shape[3]}x{truth.shape[2]}",
        "milliseconds": milliseconds,
        "ratio_pipeline_by_precision": {p: round(milliseconds[f"pipeline {p}"] / whole, 3) for p in PRECISIONS},
        "sampler_and_embedder": {
            "bytes": sizes[SAMPLER] + sizes[EMBEDDER],
            "reference_bytes": sizes["reference sampler"] + sizes["reference embedder"],
            "milliseconds": milliseconds["our sampler and embedder"],
            "reference_milliseconds": milliseconds["reference sampler and embedder"],
        },
        "bytes": sizes,
        "size_ratio": {p: round(sizes[f"pipeline {p}"] / sizes["pipeline fp32"], 3) for p in PRECISIONS},
        "max_difference_fp32": float(np.abs(images["pipeline fp32"] - truth).max()),
    }


def measure_loss(student: Path) -> Dict:
    """PSNR that fp16 and int8 lose against a student's held-out photos, and the files' sizes."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision in PRECISIONS:
            target = Path(folder) / precision
            report = ExportMobileR2L(student, target, ("onnx",), precision, num_views=16).export()
            if "psnr" not in report:
                raise UserError(f"{student} has no photos at hand: put its capture back to measure losses.")
            found[precision] = {
                "lost_db": report["precision_loss_db"],
                "psnr_to_torch": report["parity"]["psnr"]["onnx/pipeline.onnx"],
                "bytes": report["size_bytes"]["onnx/pipeline.onnx"],
                "milliseconds": report["latency_ms"]["onnx/pipeline.onnx"],
            }
    width, height = report["image"]["width"], report["image"]["height"]
    return {"resolution": f"{width}x{height}", "student_psnr": report["psnr"]["student"], "by_precision": found}


def headline(results: Dict) -> Dict:
    """The fastest pipeline.onnx that loses at most 0.2 dB; fp32 where no student was measured."""
    loss = {p: entry["lost_db"] for p, entry in results.get("student", {}).get("by_precision", {}).items()}
    good = [p for p in PRECISIONS if p == "fp32" or loss.get(p, np.inf) <= 0.2]
    ratios = results["ratio_pipeline_by_precision"]
    best = min(good, key=ratios.__getitem__)
    return {"ratio_pipeline": ratios[best], "ratio_pipeline_precision": best}


def print_tables(results: Dict) -> None:
    """Prints time and size of both sides, and what fewer bits lose."""
    table = new_table(f"{results['network']} -> {results['resolution']}", "", "ms", "kB", "time of the three")
    reference = sum(size for name, size in results["bytes"].items() if name.startswith("reference"))
    sizes = {"three reference graphs": reference, **results["bytes"]}
    small = results["sampler_and_embedder"]
    sizes["our sampler and embedder"] = small["bytes"]
    sizes["reference sampler and embedder"] = small["reference_bytes"]
    whole = results["milliseconds"]["three reference graphs"]
    for name, value in results["milliseconds"].items():
        table.add_row(name, f"{value:.1f}", f"{sizes[name] / 1e3:.0f}", f"{value / whole:.3f}")
    console.print(table)
    if "student" in results:
        title = f"a trained student at {results['student']['resolution']}"
        table = new_table(title, "precision", "lost [dB]", "PSNR to torch", "kB", "ms")
        for precision, entry in results["student"]["by_precision"].items():
            table.add_row(precision, f"{entry['lost_db']:.3f}", f"{entry['psnr_to_torch']:.1f}",
                          f"{entry['bytes'] / 1e3:.0f}", f"{entry['milliseconds']:.1f}")  # fmt: skip
        console.print(table)


def main() -> None:
    """Measures, prints and writes."""
    options = tyro.cli(Options, description=__doc__)
    results = measure(options)
    if options.student is not None:
        results["student"] = measure_loss(options.student)
    print_tables(results)
    write_figures(with_machine({**headline(results), **results}, CPU, options.threads), options.json)


if __name__ == "__main__":
    main()
