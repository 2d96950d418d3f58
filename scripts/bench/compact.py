"""What mobiler2l-compact gives for a seventh of mobiler2l's work: time of the exported files, and quality.

    python scripts/bench/compact.py --data data/demo --teacher RUN/config.yml

Work, size and time are those of pipeline.onnx in fp32, from 100x100 rays to 800x800 pixels; all shapes run by turns.
For quality both methods are trained for as many seconds, at a size that a CPU bears.
"""

import functools
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Dict, Tuple

if __name__ == "__main__":  # modules are found in scripts/, not in scripts/bench/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import tyro

from bench.common import (
    CPU,
    check_capture,
    console,
    median_milliseconds,
    new_table,
    plot_curves,
    with_machine,
    write_figures,
)
from bench.distillation import Options as CaptureOptions
from bench.distillation import capture_config, quality, student_pairs
from bench.equal_time import held_out_photos, train_within
from bench.published_files import pipeline_call
from bench.surface_cost import Shape, student
from bench.training import Run
from mobiler2l_ns import method_configs
from mobiler2l_ns.export.onnx_files import trace_pipeline
from mobiler2l_ns.pruning.report import measure
from mobiler2l_ns.student.network import NetworkConfig
from mobiler2l_ns.trainer import DistillationTrainerConfig

LARGE, COMPACT = "mobiler2l", "mobiler2l-compact"
METHODS = {name: getattr(method_configs, name.replace("-", "_")).config for name in (LARGE, COMPACT)}
TRIED = {
    "D40 W128, stages 32 16 8": NetworkConfig(depth=40, width=128, sr_widths=(32, 16, 8)),
    "D32 W128, stages 64 32 8": NetworkConfig(depth=32, width=128, sr_widths=(64, 32, 8)),
    "D32 W128, stages 64 32 8, no blocks in the last": NetworkConfig(
        depth=32, width=128, sr_widths=(64, 32, 8), sr_inner_widths=(64, 64, 32, 32, 0, 0)
    ),
    "D24 W192, stages 32 16 8": NetworkConfig(depth=24, width=192, sr_widths=(32, 16, 8)),
    "D32 W128, stages 64 64 16": NetworkConfig(depth=32, width=128),
}
CELLS, PROBE_STEPS = 100, 24


@dataclass
class Options:
    """Command line."""

    data: Path
    """A posed capture."""
    teacher: Path
    """config.yml of its teacher."""
    image_size: Tuple[int, int] = (200, 200)
    """Width and height of the students' view."""
    seconds: float = 900.0
    """Training time of each student, teacher included."""
    patches: int = 12
    """Patches in a batch; the methods' own 100 suit a GPU."""
    seed: int = 0
    """Of all random numbers."""
    runs: int = 15
    """How many times each exported shape runs, by turns."""
    threads: int = 2
    """Threads that onnxruntime may use."""
    json: Path = Path("docs/benchmarks/compact.json")
    """File for the figures; the plot lies beside it."""


def measure_shapes(options: Options) -> Dict[str, Dict]:
    """Work, size and milliseconds of both methods and of the other shapes that were tried, with random weights."""
    models = {name: config.pipeline.model for name, config in METHODS.items()}
    models.update({name: replace(models[LARGE], network=network) for name, network in TRIED.items()})
    sides, found = {}, {}
    for name, model in models.items():
        built = student(Shape(CELLS, model), {})
        sides[name] = pipeline_call(trace_pipeline(built, "rgb", "fp32", 20), built, options.threads)
        figures = measure(built)
        found[name] = {"gmac": figures.gmac, "megabytes_fp16": figures.megabytes_fp16}
    median_milliseconds(sides, max(1, options.runs // 10))  # warms up
    times = median_milliseconds(sides, options.runs)
    return {
        name: {**figures, "milliseconds": times[name], "latency_ratio": round(times[name] / times[LARGE], 3)}
        for name, figures in found.items()
    }


def train_for(options: Options, method: str, outputs: Path) -> Tuple[Run, Dict[str, float]]:
    """Trains a method for about ``seconds``."""
    config = config_of(options, method, outputs)
    held_out = functools.partial(held_out_photos, config)
    run, trainer, photos = train_within(config, options.seconds, PROBE_STEPS, held_out, 12, options.seed)
    return run, {**quality(student_pairs(trainer.pipeline.model, photos)), "seconds": run.seconds}


def config_of(options: Options, method: str, outputs: Path) -> DistillationTrainerConfig:
    """A method's config for the capture, with the batch of these options."""
    capture = CaptureOptions(data=options.data, teacher=options.teacher, method=method, image_size=options.image_size)
    config = capture_config(capture, outputs)
    config.pipeline.datamanager.patches_per_batch = options.patches
    return config


def run_benchmark(options: Options) -> Dict:
    """Everything for the JSON file."""
    shapes = measure_shapes(options)
    with tempfile.TemporaryDirectory() as folder:
        trained = {name: train_for(options, name, Path(folder)) for name in METHODS}
    compact = shapes[COMPACT]
    return {
        "data": options.data.resolve().name,
        "resolution": f"{options.image_size[0]}x{options.image_size[1]}",
        "gmac": compact["gmac"],
        "megabytes_fp16": compact["megabytes_fp16"],
        "latency_ratio": compact["latency_ratio"],
        "gain_db": round(trained[COMPACT][1]["psnr"] - trained[LARGE][1]["psnr"], 3),
        "trained": {name: quality for name, (_, quality) in trained.items()},
        "shapes": shapes,
        "runs": [{"recipe": name, **asdict(run)} for name, (run, _) in trained.items()],
    }


def main() -> None:
    """Measures, prints and writes."""
    options = tyro.cli(Options, description=__doc__)
    check_capture(options.data)
    results = run_benchmark(options)
    table = new_table("100x100 rays to 800x800 pixels", "shape", "GMAC", "MB in fp16", "ms", "ratio")
    for name, found in results["shapes"].items():
        times = f"{found['milliseconds']:.0f}", f"{found['latency_ratio']:.3f}"
        table.add_row(name, f"{found['gmac']:.2f}", f"{found['megabytes_fp16']:.2f}", *times)
    console.print(table)
    table = new_table(f"{results['data']}, {results['resolution']}", "method", "steps", "seconds", "PSNR [dB]", "SSIM")
    for run in results["runs"]:
        found = results["trained"][run["recipe"]]
        quality = f"{found['psnr']:.2f}", f"{found['ssim']:.3f}"
        table.add_row(run["recipe"], str(run["curve"][-1]["step"]), f"{run['seconds']:.0f}", *quality)
    console.print(table)
    write_figures(with_machine(results, CPU, options.threads), options.json)
    label = f"held-out PSNR [dB] at {results['resolution']}"
    axes = {"step": "steps", "seconds": "seconds, teacher included"}
    plot_curves(results["runs"], axes, "psnr", label, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
