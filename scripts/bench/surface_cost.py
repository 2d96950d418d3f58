"""What the surface code costs: work and time of pipeline.onnx with it and without it, with the same network.

    python scripts/bench/surface_cost.py

The small student has 40x40 rays (x8: 20x20) and 160x160 pixels, the published one 100x100 rays and 800x800 pixels.
The surface code is that of mobiler2l-small and mobiler2l.
Both sides run by turns in one process. The ratio is that of their medians.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Dict, NamedTuple, Optional, Tuple

if __name__ == "__main__":  # modules are found in scripts/, not in scripts/bench/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
import tyro
from nerfstudio.data.scene_box import SceneBox

from bench.common import CPU, console, milliseconds, new_table, with_machine, write_figures
from bench.published_files import pipeline_call
from mobiler2l_ns import method_configs
from mobiler2l_ns.data.student_camera import StudentCamera
from mobiler2l_ns.export.onnx_files import trace_pipeline
from mobiler2l_ns.model import MobileR2LModel, MobileR2LModelConfig
from mobiler2l_ns.student.network import NetworkConfig, count_macs

PERCENTILES = (0, 10, 50)


class Shape(NamedTuple):
    """Shape of a student."""

    cells: int
    """Rows and columns of the ray grid."""
    model: MobileR2LModelConfig
    """That of a method, or with another network."""


SMALL, LARGE = (method.config.pipeline.model for method in (method_configs.mobiler2l_small, method_configs.mobiler2l))
SHAPES: Dict[str, Shape] = {
    "small": Shape(40, SMALL),
    "small-x8": Shape(20, replace(SMALL, network=NetworkConfig(depth=24, width=96, sr_widths=(48, 32, 16)))),
    "published": Shape(100, LARGE),
}


@dataclass
class Options:
    """Command line."""

    rounds: int = 300
    """How many times each side of a small shape runs, by turns; the published one runs a tenth as often."""
    threads: int = 2
    """Threads that onnxruntime may use."""
    octaves: Optional[int] = None
    """S: octaves of the surface code; left out, as for the next two: the method's."""
    refinements: Optional[int] = None
    """R: refinements of the surface."""
    width: Optional[int] = None
    """Channels of the networks that predict and refine the surface."""
    shapes: Tuple[str, ...] = tuple(SHAPES)
    """Shapes to measure: small, small-x8, published."""
    json: Path = Path("docs/benchmarks/surface-cost.json")
    """File for the figures."""


def surface_of(shape: Shape, options: Options) -> Dict[str, int]:
    """Octaves, refinements and width of a student's surface code."""
    found = {}
    for name in ("octaves", "refinements", "width"):
        given = getattr(options, name)
        found[f"surface_{name}"] = getattr(shape.model, f"surface_{name}") if given is None else given
    return found


def student(shape: Shape, surface: Dict[str, int]) -> MobileR2LModel:
    """A student with random weights; its points are unbounded, as a capture's."""
    torch.manual_seed(0)
    config = replace(shape.model, outputs="rgb", points="unbounded", **surface)
    side = shape.cells * shape.model.network.upscale
    camera = StudentCamera(
        height=side, width=side, focal=1.389 * side, near=0.4, far=100.0, cube_centre=torch.zeros(3), cube_radius=1.0
    )
    box = SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    return config.setup(scene_box=box, num_train_data=1, metadata={"student_camera": camera}).eval()


def measure(shape: Shape, options: Options, rounds: int) -> Dict:
    """Work and time of both sides, and their ratios."""
    runs, macs, surface = {}, {}, surface_of(shape, options)
    for name, changed in (("without", {"surface_octaves": 0}), ("with", {})):
        model = student(shape, {**surface, **changed})
        grid = model.sampler.grid.tolist()
        macs[name] = count_macs(model.embedder, *grid) + count_macs(model.network, *grid)
        runs[name] = pipeline_call(trace_pipeline(model, "rgb", "fp32", 20), model, options.threads)
    percentiles_of_time(runs, max(2, rounds // 10))  # warms up
    network = shape.model.network
    times = percentiles_of_time(runs, rounds)
    ratios = {p: times["with"][p] / times["without"][p] for p in PERCENTILES}
    return {
        "network": f"D{network.depth} W{network.width}, {shape.cells}x{shape.cells} rays",
        "points": f"K {model.config.num_points}, L {model.config.num_frequencies}, S {surface['surface_octaves']}",
        "surface": f"R {surface['surface_refinements']}, {surface['surface_width']} channels",
        "gmac": {name: round(value / 1e9, 4) for name, value in macs.items()},
        "ratio_work": round(macs["with"] / macs["without"], 3),
        "milliseconds": {name: round(found[50], 3) for name, found in times.items()},
        "ratio_latency": round(ratios[50], 3),
        "ratio_latency_by_percentile": {p: round(ratio, 3) for p, ratio in ratios.items()},
    }


def percentiles_of_time(sides: Dict[str, Callable], rounds: int) -> Dict[str, Dict[int, float]]:
    """Milliseconds of each side by percentile of its runs."""
    times = milliseconds(sides, rounds)
    return {name: {p: float(np.percentile(values, p)) for p in PERCENTILES} for name, values in times.items()}


def main() -> None:
    """Measures, prints and writes."""
    options = tyro.cli(Options, description=__doc__)
    results = {}
    table = new_table("the surface code", "student", "GMAC", "ratio", "ms without", "ms with", "ratio")
    for name in options.shapes:
        rounds = options.rounds // 10 if name == "published" else options.rounds
        found = results[name] = measure(SHAPES[name], options, rounds)
        times = (f"{found['milliseconds'][side]:.2f}" for side in ("without", "with"))
        ratios = f"{found['ratio_work']:.3f}", f"{found['ratio_latency']:.3f}"
        table.add_row(name, f"{found['gmac']['with']:.3f}", ratios[0], *times, ratios[1])
    console.print(table)
    write_figures(with_machine(results, CPU, options.threads), options.json)


if __name__ == "__main__":
    main()
