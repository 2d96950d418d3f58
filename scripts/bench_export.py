"""What the exported files cost beside files of the published exporter's shape: time, size, and what fewer bits lose.

    python scripts/bench_export.py                                 the published network, D60 W256, 800x800
    python scripts/bench_export.py --student RUN/config.yml        also PSNR against held-out photos, by precision

Both sides are built here from one network with the same weights, and run by turns in one process. The other side's
three graphs are shaped as MobileR2L's release writes them: GELU spelled out with Erf at opset 11, constants repeated
for each ray, and codes that the host permutes between Embedder and network.
"""

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Callable, Dict, Optional, Tuple

import numpy as np
import torch
import tyro
from bench_teacher import device_name, write_figures
from nerfstudio.data.scene_box import SceneBox
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export.command import ExportMobileR2L
from mobiler2l_ns.export.onnx_files import EMBEDDER, SAMPLER, trace_front, trace_network, trace_pipeline
from mobiler2l_ns.export.onnx_graph import trace
from mobiler2l_ns.model import MobileR2LModelConfig
from mobiler2l_ns.student.viewing_range import viewing_range

PRECISIONS = ("fp32", "fp16", "int8")
console = Console()


@dataclass
class Options:
    """Command line."""

    rounds: int = 7
    """How many times each side runs, by turns."""
    threads: int = 2
    """Threads that onnxruntime may use."""
    cells: int = 100
    """Side of the ray grid; the picture is eight times as large."""
    depth: int = 60
    """D of the network."""
    width: int = 256
    """W of the network."""
    student: Optional[Path] = None
    """config.yml of a trained student: what fp16 and int8 lose against its held-out photos."""
    json: Path = Path("docs/benchmarks/export.json")
    """Where the figures go."""


# -- files of the published exporter's shape --------------------------------------------------------------------------


class WideSampler(nn.Module):
    """Points of a camera from constants that are repeated for each ray.

    Args:
        sampler: Ours, for camera and depths.
    """

    def __init__(self, sampler: nn.Module):
        super().__init__()
        directions = sampler.directions()
        self.register_buffer("directions", directions[:, None].repeat(1, 3, 1)[None])  # (1, h*w, 3, 3)
        z = sampler.depths[:, None].repeat(1, 3).view(1, 1, 1, -1)
        self.register_buffer("z", z.repeat(1, 1, len(directions), 1))  # (1, 1, h*w, 3K)
        self.num_points = sampler.num_points

    def forward(self, c2w33: Tensor, c2w13: Tensor) -> Tensor:
        rays_d = (self.directions * c2w33).sum(-1)[None]
        return torch.cat([c2w13] * self.num_points, -1) + torch.cat([rays_d] * self.num_points, -1) * self.z


class WideEmbedder(nn.Module):
    """Sines and cosines of products with a table of the frequencies as large as the result.

    Args:
        num_frequencies: L.
        shape: h*w and 3K.
    """

    def __init__(self, num_frequencies: int, shape: Tuple[int, int]):
        super().__init__()
        powers = 2.0 ** torch.arange(num_frequencies)
        self.register_buffer("table", powers.view(1, -1, 1, 1).repeat(1, 1, *shape))

    def forward(self, points: Tensor) -> Tensor:
        angles = points * self.table
        return torch.cat([torch.sin(angles), torch.cos(angles), points], dim=1)


def published_student(options: Options):
    """A student of the published shape with random weights; camera as in Snap's template."""
    torch.manual_seed(0)
    config = MobileR2LModelConfig(outputs="rgb")
    config.network.depth, config.network.width = options.depth, options.width
    side = options.cells * config.network.upscale
    camera = {"height": side, "width": side, "focal": 1.389 * side, "near": 2.0, "far": 6.0}
    box = SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    return config.setup(scene_box=box, num_train_data=1, metadata={"student_camera": camera}).eval()


def session(graph, threads: int):
    """An onnxruntime session of a ModelProto."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    return onnxruntime.InferenceSession(graph.SerializeToString(), settings, providers=["CPUExecutionProvider"])


def reference_graphs(model) -> Dict[str, object]:
    """ModelProtos of the other side, unfolded."""
    (h, w), k = model.sampler.grid.tolist(), model.sampler.num_points
    pose = (torch.eye(3)[None, None], torch.zeros(1, 1, 1, 3))
    return {
        "sampler": trace(WideSampler(model.sampler), pose, ["c2w33", "c2w13"], "pts"),
        "embedder": trace(
            WideEmbedder(model.embedder.num_frequencies, (h * w, 3 * k)),
            (torch.zeros(1, 1, h * w, 3 * k),), ["rays"], "embbrays",
        ),
        "network": trace_network(model, model.network),
    }  # fmt: skip


def chain(sampler, embedder, network, c2w: np.ndarray) -> Callable[[], np.ndarray]:
    """What a host of three files does with a pose (3, 4)."""
    shape = network.get_inputs()[0].shape
    pose = {"c2w33": c2w[None, None, :, :3], "c2w13": c2w[None, None, None, :, 3]}

    def render() -> np.ndarray:
        (points,) = sampler.run(None, pose)
        (codes,) = embedder.run(None, {"rays": points})
        return network.run(None, {"input": codes.transpose(0, 3, 1, 2).reshape(shape)})[0]

    return render


# -- measuring --------------------------------------------------------------------------------------------------------


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
    pictures = {name: run() for name, run in sides.items()}  # also warms up
    truth = pictures["three reference graphs"]
    milliseconds = {**by_turns(sides, options.rounds), **by_turns(small, 10 * options.rounds)}
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
        "max_difference_fp32": float(np.abs(pictures["pipeline fp32"] - truth).max()),
    }


def front(sampler, embedder, c2w: np.ndarray) -> Callable[[], np.ndarray]:
    """The two small graphs alone."""
    pose = {"c2w33": c2w[None, None, :, :3], "c2w13": c2w[None, None, None, :, 3]}
    return lambda: embedder.run(None, {"rays": sampler.run(None, pose)[0]})[0]


def by_turns(sides: Dict[str, Callable], rounds: int) -> Dict[str, float]:
    """Median milliseconds of each side; each round runs all of them once."""
    times = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: round(median(values), 3) for name, values in times.items()}


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


def tables(results: Dict) -> None:
    """Prints what was found."""
    table = Table(title=f"{results['network']} -> {results['resolution']}", title_justify="left")
    for column in ("", "ms", "kB", "time of the three"):
        table.add_column(column, justify="right" if column else "left")
    reference = sum(size for name, size in results["bytes"].items() if name.startswith("reference"))
    sizes = {"three reference graphs": reference, **results["bytes"]}
    front = results["sampler_and_embedder"]
    sizes["our sampler and embedder"], sizes["reference sampler and embedder"] = (
        front["bytes"],
        front["reference_bytes"],
    )
    whole = results["milliseconds"]["three reference graphs"]
    for name, value in results["milliseconds"].items():
        table.add_row(name, f"{value:.1f}", f"{sizes[name] / 1e3:.0f}", f"{value / whole:.3f}")
    console.print(table)
    if "student" in results:
        table = Table(title=f"a trained student at {results['student']['resolution']}", title_justify="left")
        for column in ("precision", "lost [dB]", "PSNR to torch", "kB", "ms"):
            table.add_column(column, justify="right" if column != "precision" else "left")
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
    results = {
        "command": " ".join(["python", "scripts/bench_export.py", *sys.argv[1:]]),
        "machine": {"device": device_name(torch.device("cpu")), "threads": options.threads},
        **headline(results),
        **results,
    }
    tables(results)
    write_figures(results, options.json)
    console.print(f"written: {options.json}")


if __name__ == "__main__":
    main()
