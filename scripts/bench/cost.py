"""What a run costs: the time and the memory of a training step by its work, and the teacher's rays a second.

    python scripts/bench/cost.py --data data/demo200 --teacher RUN/config.yml

A linear model is fitted to the steps of several networks and batches, and checked on steps and on whole runs that it
was not fitted to. Each is measured in a process of its own, so that its memory is known.
"""

import itertools
import multiprocessing
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Dict, List, Optional, Tuple

if __name__ == "__main__":  # modules are found in scripts/, not in scripts/bench/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
import tyro
from torch import nn

from bench import flagship
from bench.common import check_capture, console, default_device, new_table, peak_memory, with_machine, write_figures
from bench.equal_time import keep_views
from bench.training import take_step, train
from mobiler2l_ns.data.photos import load_photos
from mobiler2l_ns.data.time_budget import synchronize
from mobiler2l_ns.export.comparison import held_out_dataset
from mobiler2l_ns.student.network import count_macs
from mobiler2l_ns.teacher.frozen import FrozenTeacher
from mobiler2l_ns.trainer import DistillationTrainer, DistillationTrainerConfig

NEWTON_SCHULZ = 5  # iterations of Muon
TERMS = "step", "layers", "gmac", "optimizer_gmac", "kept_gb"


@dataclass
class Shape:
    """A student whose step is measured."""

    method: str
    patches: int
    depth: Optional[int] = None
    """None, as for the width: the method's."""
    width: Optional[int] = None

    @property
    def name(self) -> str:
        """Method, network and patches."""
        network = f" D{self.depth} W{self.width}" if self.depth else ""
        return f"{self.method}{network}, {self.patches} patches"


FITTED = (
    Shape("mobiler2l", 100), Shape("mobiler2l-compact", 100), Shape("mobiler2l-small", 22), Shape("mobiler2l", 2),
    Shape("mobiler2l", 6), Shape("mobiler2l", 12), Shape("mobiler2l", 4, 60, 128), Shape("mobiler2l", 16, 60, 128),
    Shape("mobiler2l", 8, 24, 192), Shape("mobiler2l", 4, 24, 64), Shape("mobiler2l-small", 4),
)  # fmt: skip
CHECKED = Shape("mobiler2l-small", 12), Shape("mobiler2l-compact", 12), Shape("mobiler2l", 9, 40, 256)
RUNS = Shape("mobiler2l-small", 22), Shape("mobiler2l-compact", 12)


@dataclass
class Options:
    """Command line."""

    data: Path
    """A posed capture."""
    teacher: Path
    """config.yml of its teacher."""
    image_size: Tuple[int, int] = (200, 200)
    """Width and height of the students' view."""
    steps: int = 16
    """Steps of each measurement; the first quarter is left out."""
    rounds: int = 3
    """How often each student is measured, with the others in between; the fastest counts, as a machine has slow
    minutes."""
    run_steps: int = 400
    """Steps of each whole run."""
    json: Path = Path("docs/benchmarks/cost.json")
    """File for the figures."""


def config_of(options: Options, shape: Shape, folder: Path) -> DistillationTrainerConfig:
    """The student of a shape."""
    of_flagship = flagship.Options(options.data, options.teacher, options.image_size)
    config = flagship.config_of(of_flagship, shape.method, folder)
    network = config.pipeline.model.network
    if shape.depth is not None and shape.width is not None:
        network.depth, network.width = shape.depth, shape.width
    config.pipeline.datamanager.patches_per_batch = shape.patches
    return config


def work_of(trainer: DistillationTrainer) -> Dict[str, float]:
    """Work of a step: layers, that of forward and backward passes, and that of Muon."""
    model, datamanager = trainer.pipeline.model, trainer.config.pipeline.datamanager
    side = datamanager.patch_cells
    macs = datamanager.patches_per_batch * sum(count_macs(part, side, side) for part in (model.network, model.embedder))
    matrices = [p for group in trainer.optimizers.optimizers["matrices"].param_groups for p in group["params"]]
    work = {
        "step": 1.0,
        "layers": model.config.network.depth,
        "gmac": 3e-9 * macs,  # the gradients of inputs and of weights take as much as the outputs
        "optimizer_gmac": 1e-9 * sum(newton_schulz_macs(p) for p in matrices),
    }
    return {name: round(value, 4) for name, value in work.items()}


def newton_schulz_macs(weights: nn.Parameter) -> int:
    """Multiply-accumulate operations of Muon for a matrix: each iteration has three products."""
    sides = weights.shape[0], weights.numel() // weights.shape[0]
    m, n = min(sides), max(sides)
    return NEWTON_SCHULZ * (2 * m * m * n + m**3)


def kept_gigabytes(trainer: DistillationTrainer, step: int) -> float:
    """What a step keeps for its backward pass, without the weights. It is written and read, which takes time."""
    weights = {p.untyped_storage().data_ptr() for p in trainer.pipeline.model.parameters()}
    kept: Dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        take_step(trainer, step)
    return round(sum(kept.values()) / 1e9, 4)


def measure_shape(options: Options, shape: Shape, folder: Path) -> Dict[str, float]:
    """Milliseconds, work and memory of a shape's step, with few teacher views and without fine-tuning."""
    config, before = config_of(options, shape, folder), peak_memory(default_device())
    keep_views(config, 8, folder / shape.method, options.steps)  # methods have tiles of their own
    ends: List[float] = []

    def note_time(trainer: DistillationTrainer) -> float:
        synchronize(trainer.pipeline.model.device)
        ends.append(time.perf_counter())
        return 0.0

    run, trainer = train(config, 0, note_time, options.steps)
    peak = peak_memory(default_device()) - before
    parameters = sum(p.numel() for p in trainer.pipeline.model.parameters() if p.requires_grad)
    return {
        "milliseconds": round(1e3 * float(np.median(np.diff(ends[options.steps // 4 :]))), 1),
        **work_of(trainer),
        "parameters": parameters,
        "kept_gb": kept_gigabytes(trainer, options.steps),
        "peak_mb": round(peak / 1e6),
        "pool_mb": round(run.pool_bytes / 1e6, 1),
    }


def apart(function, *arguments):
    """What a function returns in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def fit(shapes: List[Dict[str, float]]) -> Dict[str, float]:
    """Milliseconds for each unit of a term; the relative errors are least, and no term is negative."""
    from scipy.optimize import nnls

    times = np.array([shape["milliseconds"] for shape in shapes])
    rows = np.array([[shape[term] for term in TERMS] for shape in shapes]) / times[:, None]
    return dict(zip(TERMS, (float(value) for value in nnls(rows, np.ones(len(shapes)))[0])))


def predict(coefficients: Dict[str, float], shape: Dict[str, float]) -> float:
    """Milliseconds of a step by the model."""
    return sum(coefficients[term] * shape[term] for term in TERMS)


def measure_teacher(options: Options) -> Dict[str, float]:
    """Seconds until the teacher is ready, and its rays a second at the students' size."""
    start = time.perf_counter()
    teacher = FrozenTeacher(options.teacher, default_device())
    ready = time.perf_counter() - start
    config = flagship.config_of(flagship.Options(options.data, options.teacher), "mobiler2l", Path())
    width, height = options.image_size
    cameras = load_photos(held_out_dataset(config), height, width, 1, default_device(), limit=4).cameras
    teacher.render(cameras[:1])
    synchronize(default_device())
    start = time.perf_counter()
    for index in range(1, len(cameras)):
        teacher.render(cameras[index : index + 1])
    synchronize(default_device())
    rays = (len(cameras) - 1) * width * height
    return {"ready_seconds": round(ready, 1), "rays_per_second": round(rays / (time.perf_counter() - start))}


def measure_run(options: Options, shape: Shape, folder: Path) -> Dict[str, float]:
    """Seconds of a whole run, and what it is made of; the run has the method's own views and shares."""
    config = config_of(options, shape, folder)
    config.max_num_iterations = options.run_steps
    run, trainer = train(config, 0, lambda trainer: 0.0, 1)
    datamanager, of_view = trainer.pipeline.datamanager, trainer.pipeline.datamanager.statistics()
    height, width = datamanager.size
    return {
        "seconds": run.seconds,
        "steps": options.run_steps,
        "photo_rays": len(datamanager.photos) * height * width if datamanager.photos is not None else 0,
        "first_rays": config.pipeline.datamanager.initial_views * of_view["view_height"] * of_view["view_width"],
        "share": config.pipeline.datamanager.filling_share,
        "views": of_view["views"],
        **work_of(trainer),
        "kept_gb": kept_gigabytes(trainer, options.run_steps),
    }


def predict_run(coefficients: Dict[str, float], teacher: Dict[str, float], run: Dict[str, float]) -> float:
    """Seconds of a run by the model: the teacher's depth of the photos, its first views, and the steps.

    The teacher has its share of the time, which the first views use up.
    """
    steps = 1e-3 * run["steps"] * predict(coefficients, run)
    rays = teacher["rays_per_second"]
    training = max(run["first_rays"] / rays + steps, steps / (1 - run["share"]))
    return teacher["ready_seconds"] + run["photo_rays"] / rays + training


def run_benchmark(options: Options) -> Dict:
    """Everything for the JSON file."""
    with tempfile.TemporaryDirectory() as folder:
        shapes: Dict[str, Dict[str, float]] = {}
        for _, shape in itertools.product(range(options.rounds), (*FITTED, *CHECKED)):
            found = apart(measure_shape, options, shape, Path(folder))
            shapes[shape.name] = min(shapes.get(shape.name, found), found, key=lambda each: each["milliseconds"])
        taught = apart(measure_teacher, options)
        runs = {shape.name: apart(measure_run, options, shape, Path(folder)) for shape in RUNS}
    coefficients = fit([shapes[shape.name] for shape in FITTED])
    for found in shapes.values():
        found["predicted_milliseconds"] = round(predict(coefficients, found), 1)
        found["error"] = round(found["predicted_milliseconds"] / found["milliseconds"] - 1, 3)
    for found in runs.values():
        found["predicted_seconds"] = round(predict_run(coefficients, taught, found), 1)
        found["error"] = round(found["predicted_seconds"] / found["seconds"] - 1, 3)
    return {
        "data": options.data.resolve().name,
        "milliseconds_for": {term: round(value, 3) for term, value in coefficients.items()},
        "largest_error_fitted": max(abs(shapes[shape.name]["error"]) for shape in FITTED),
        "largest_error_checked": max(abs(shapes[shape.name]["error"]) for shape in CHECKED),
        "teacher": taught,
        "shapes": {name: {**asdict(shape), **shapes[name]} for shape in (*FITTED, *CHECKED) for name in [shape.name]},
        "checked": [shape.name for shape in CHECKED],
        "runs": runs,
    }


def main() -> None:
    """Measures, prints and writes."""
    options = tyro.cli(Options, description=__doc__)
    check_capture(options.data)
    results = run_benchmark(options)
    headings = "step", "layers", "GMAC", "Muon's GMAC", "kept [GB]", "ms", "model [ms]", "peak [MB]"
    table = new_table(f"{results['data']}, a training step", *headings)
    for name, found in results["shapes"].items():
        note = " (not fitted)" if name in results["checked"] else ""
        work = (f"{found[term]:.2f}" for term in TERMS[2:])
        times = f"{found['milliseconds']:.0f}", f"{found['predicted_milliseconds']:.0f}"
        table.add_row(f"{name}{note}", str(found["layers"]), *work, *times, f"{found['peak_mb']:.0f}")
    per = results["milliseconds_for"]
    table.caption = (
        f"{per['step']:.1f} ms + {per['layers']:.2f} ms a layer + {per['gmac']:.1f} ms a GMAC + "
        f"{per['optimizer_gmac']:.1f} ms a GMAC of Muon + {per['kept_gb']:.0f} ms a GB kept; the teacher: "
        f"{results['teacher']['rays_per_second']} rays/s"
    )
    console.print(table)
    for name, run in results["runs"].items():
        console.print(f"{name}, {run['steps']} steps: {run['seconds']:.0f} s, model {run['predicted_seconds']:.0f} s")
    write_figures(with_machine(results, default_device()), options.json)


if __name__ == "__main__":
    main()
