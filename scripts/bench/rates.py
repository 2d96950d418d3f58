"""Which learning rate suits which width and length of a run: the large student with other widths, for few steps.

    python scripts/bench/rates.py --data data/demo200 --teacher RUN/config.yml

Runs of one command have the same teacher views, seed and batches, and end in a cosine of their own length. No run is
fine-tuned. The figures are written after each run, and join those that the file has from earlier commands.
"""

import copy
import itertools
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Tuple

if __name__ == "__main__":  # modules are found in scripts/, not in scripts/bench/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import tyro

from bench import flagship
from bench.common import (
    check_capture,
    console,
    default_device,
    earlier_figures,
    new_table,
    with_machine,
    write_figures,
)
from bench.distillation import mean_of, student_pairs
from bench.equal_time import held_out_photos, keep_views
from bench.training import train
from mobiler2l_ns.trainer import DistillationTrainer, DistillationTrainerConfig
from mobiler2l_ns.training.finite_steps import Diverged
from mobiler2l_ns.training.metrics import psnr

METHOD = "mobiler2l"


@dataclass
class Options:
    """Command line."""

    data: Path
    """A posed capture."""
    teacher: Path
    """config.yml of its teacher."""
    image_size: Tuple[int, int] = (200, 200)
    """Width and height of the students' view."""
    depth: int = 60
    """Layers of all networks."""
    widths: Tuple[int, ...] = (128, 256)
    """Channels of the networks."""
    lengths: Tuple[int, ...] = (100, 300, 900)
    """Steps of the runs."""
    rates: Tuple[float, ...] = (0.005, 0.01, 0.02, 0.04)
    """Highest learning rates for matrices; a tenth of each is the one for the rest."""
    pixels: int = 38400
    """Pixels in a batch, about."""
    views: int = 40
    """Teacher views, all rendered before the first step."""
    seed: int = 0
    """Of all random numbers."""
    json: Path = Path("docs/benchmarks/rates.json")
    """File for the figures."""


def config_of(options: Options, width: int, steps: int, rate: float, folder: Path) -> DistillationTrainerConfig:
    """The student of one run."""
    of_flagship = flagship.Options(options.data, options.teacher, options.image_size, pixels=options.pixels)
    config = flagship.config_of(of_flagship, METHOD, folder)
    network = config.pipeline.model.network
    network.depth, network.width = options.depth, width
    keep_views(config, options.views, folder / "views", steps)
    for group, lr in (("matrices", rate), ("others", rate / 10)):
        config.optimizers[group] = copy.deepcopy(config.optimizers[group])
        config.optimizers[group]["optimizer"].lr = lr
        schedule = config.optimizers[group]["scheduler"]
        schedule.reference_steps = schedule.reference_pixels = None
    return config


def run_benchmark(options: Options) -> Dict:
    """Everything for the JSON file."""
    same = {"data": options.data.resolve().name, "depth": options.depth, "views": options.views, "seed": options.seed}
    others = "runs with another capture, depth, seed or number of views"
    runs = earlier_figures(options.json, same, others).get("runs", [])
    photos = []

    def score(trainer: DistillationTrainer) -> float:
        if not photos:
            photos.append(held_out_photos(trainer.config, trainer.pipeline.model.size))
        return mean_of(psnr, student_pairs(trainer.pipeline.model, photos[0]))

    results: Dict = {}
    with tempfile.TemporaryDirectory() as folder:
        for steps, width, rate in itertools.product(options.lengths, options.widths, options.rates):
            config = config_of(options, width, steps, rate, Path(folder))
            pixels = config.pipeline.datamanager.patches_per_batch * flagship.pixels_of_patch(config)
            setting = {"pixels": pixels, "width": width, "steps": steps, "rate": rate}
            runs = [found for found in runs if not setting.items() <= found.items()]
            try:
                run, _ = train(config, options.seed, score, 1)
                runs.append({**setting, "psnr": run.curve[-1].psnr, "seconds": run.seconds})
            except Diverged:
                runs.append({**setting, "psnr": None, "seconds": None})
            results = {**same, "best": best_of_each(runs), "runs": runs}
            write_figures(with_machine(results, default_device()), options.json)
    return results


def best_of_each(runs: List[Dict]) -> List[Dict]:
    """The best rate for each size of a batch, width and length, in this order."""

    def setting(run: Dict) -> Tuple[int, int, int]:
        return run["pixels"], run["width"], run["steps"]

    groups = itertools.groupby(sorted(runs, key=setting), key=setting)
    return [dict(zip(("pixels", "width", "steps"), key), **best_rate(list(group))) for key, group in groups]


def best_rate(runs: List[Dict]) -> Dict[str, Optional[float]]:
    """The best rate of some runs: the top of the parabola through the best one and its neighbours, over log(rate).

    At an end of the rates, and beside a run that diverged, it is the best run's own. None: all runs diverged.
    """
    runs = sorted((run for run in runs if run["psnr"] is not None), key=lambda run: run["rate"])
    if not runs:
        return {"rate": None, "psnr": None}
    top = max(range(len(runs)), key=lambda index: runs[index]["psnr"])
    best = {"rate": runs[top]["rate"], "psnr": runs[top]["psnr"]}
    if 0 < top < len(runs) - 1:
        (x0, y0), (x1, y1), (x2, y2) = ((math.log(run["rate"]), run["psnr"]) for run in runs[top - 1 : top + 2])
        left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
        curvature = (right - left) / (x2 - x0)
        best["rate"] = round(math.exp((x0 + x1) / 2 - left / (2 * curvature)), 5)
    return best


def shown(value: Optional[float], form: str) -> str:
    """A figure of the table."""
    return "diverged" if value is None else format(value, form)


def main() -> None:
    """Measures, prints and writes."""
    options = tyro.cli(Options, description=__doc__)
    check_capture(options.data)
    results = run_benchmark(options)
    table = new_table(f"{results['data']}, D{options.depth}", "", "PSNR [dB] by rate", "best rate")
    for best in results["best"]:
        setting = {name: best[name] for name in ("pixels", "width", "steps")}
        runs = sorted((run["rate"], run["psnr"]) for run in results["runs"] if setting.items() <= run.items())
        name = f"{best['pixels']} pixels, W{best['width']}, {best['steps']} steps"
        psnr_by_rate = "  ".join(f"{rate:g}: {shown(found, '.2f')}" for rate, found in runs)
        table.add_row(name, psnr_by_rate, shown(best["rate"], ".4f"))
    console.print(table)


if __name__ == "__main__":
    main()
