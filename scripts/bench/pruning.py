"""What pruning costs: a pruned student beside an unpruned one and a small one, all trained for as many steps.

    python scripts/bench/pruning.py --data data/demo160 --teacher RUN/config.yml

The students: unpruned; pruned in rounds; pruned at once; small, which has the work of the pruned one by a smaller width
and was never pruned. Runs that are in --work already are not trained again.
"""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Dict, List, Optional, Tuple

if __name__ == "__main__":  # modules are found in scripts/, not in scripts/bench/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import tyro
from nerfstudio.utils import writer

from bench.common import CPU, console, median_milliseconds, new_table, with_machine, write_figures
from bench.distillation import Options as CaptureOptions
from bench.distillation import capture_config, mean_of, student_pairs
from bench.published_files import session
from mobiler2l_ns.data.photos import load_photos
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export.command import TrainedStudent, load_student
from mobiler2l_ns.export.comparison import held_out_dataset
from mobiler2l_ns.export.onnx_files import trace_pipeline
from mobiler2l_ns.export.report import RECORD
from mobiler2l_ns.pruning.channels import group_sizes, macs_a_ray, network_layers
from mobiler2l_ns.pruning.command import PruneMobileR2L
from mobiler2l_ns.pruning.report import measure
from mobiler2l_ns.student.network import MobileR2LNetwork, NetworkConfig
from mobiler2l_ns.student.viewing_range import viewing_range
from mobiler2l_ns.training.metrics import psnr, ssim

COLOURS = {"unpruned": "tab:gray", "small": "tab:green", "one-shot": "tab:orange", "iterative": "tab:blue"}


@dataclass
class Options:
    """Command line."""

    data: Path
    """A posed capture."""
    teacher: Path
    """config.yml of its teacher."""
    method: str = "mobiler2l-small"
    """The student."""
    steps: int = 4000
    """Training steps before pruning."""
    rounds: int = 3
    """Rounds of pruning."""
    finetune_steps: int = 1500
    """Training steps of a round."""
    fraction: float = 0.27
    """Fraction of the network's work that a round removes."""
    image_size: Optional[Tuple[int, int]] = None
    """Width and height of the student's view; left out: the photos' size."""
    work: Path = Path("outputs/bench-pruning")
    """Folder for the runs."""
    runs: int = 200
    """How many times each exported student runs, by turns, to measure its latency."""
    threads: int = 2
    """Threads that onnxruntime may use."""
    json: Path = Path("docs/benchmarks/pruning-demo.json")
    """File for the figures; the plot lies beside it."""


def train_student(options: Options, name: str, steps: int, width: Optional[int] = None) -> Path:
    """The folder of a run of this name, trained if it is not there."""
    capture = CaptureOptions(
        data=options.data, teacher=options.teacher, method=options.method, image_size=options.image_size, steps=steps
    )
    config = capture_config(capture, options.work)
    config.experiment_name, config.timestamp = options.data.name, name
    config.pipeline.model.network.width = width or config.pipeline.model.network.width
    folder = config.get_base_dir()
    if not (folder / RECORD).is_file():
        console.print(f"{name}: {steps} steps")
        config.save_config()
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup("val")
        trainer.train()
        writer.EVENT_WRITERS.clear()  # nerfstudio keeps them for good
    return folder


def prune_student(options: Options, run: Path, schedule: str) -> List[Path]:
    """The folders of the rounds of a run."""
    command = PruneMobileR2L(
        run, rounds=options.rounds, fraction=options.fraction, finetune_steps=options.finetune_steps, name=schedule,
        schedule=schedule,
    )  # fmt: skip
    command.main()
    rounds = options.rounds if schedule == "iterative" else 1
    return [run.with_name(f"{run.name}-{schedule}-{number}") for number in range(1, rounds + 1)]


def equal_width(student: TrainedStudent, config: NetworkConfig) -> int:
    """The width at which an unpruned network has about the work of a pruned one."""

    def work(network: MobileR2LNetwork) -> int:
        layers = network_layers(network)
        return macs_a_ray(layers, group_sizes(layers))

    def at_width(width: int) -> int:
        unpruned = NetworkConfig(**{**asdict(config), "width": width})
        return work(MobileR2LNetwork(student.model.network.in_channels, unpruned))

    target = work(student.model.network)
    return min(range(8, config.width + 1, 8), key=lambda width: abs(at_width(width) - target))


def figures_of(student: TrainedStudent) -> Dict:
    """Size, and quality on all held-out photos."""
    model = student.model
    photos = load_photos(held_out_dataset(student.config), *model.size, model.upscale, model.device)
    pairs = list(student_pairs(model, photos))
    return {**asdict(measure(model)), "psnr": mean_of(psnr, pairs), "ssim": mean_of(ssim, pairs)}


def latencies(students: Dict[str, TrainedStudent], options: Options) -> Dict[str, float]:
    """Milliseconds of the exported students in fp32, by turns."""
    sides = {}
    for name, student in students.items():
        files = session(trace_pipeline(student.model, "rgb", "fp32", 20), options.threads)
        feed = {"c2w": viewing_range(student.model).sample(1).numpy()}
        sides[name] = lambda files=files, feed=feed: files.run(None, feed)
    median_milliseconds(sides, max(2, options.runs // 10))  # warms up
    return median_milliseconds(sides, options.runs)


def run_benchmark(options: Options) -> Dict:
    """Trains, prunes and measures everything for the JSON file."""
    total = options.steps + options.rounds * options.finetune_steps
    base = train_student(options, "base", options.steps)
    rounds = {schedule: prune_student(options, base, schedule) for schedule in ("iterative", "one-shot")}
    last = {schedule: load_student(folders[-1] / "config.yml") for schedule, folders in rounds.items()}
    unpruned = load_student(train_student(options, "unpruned", total) / "config.yml")
    width = equal_width(last["iterative"], unpruned.model.network.config)
    small = load_student(train_student(options, "small", total, width) / "config.yml")
    students = {"unpruned": unpruned, "small": small, **last}
    found, times = {name: figures_of(student) for name, student in students.items()}, latencies(students, options)
    curve = [figures_of(load_student(folder / "config.yml")) for folder in (base, *rounds["iterative"])]
    whole, pruned = found["unpruned"], found["iterative"]
    return {
        "data": options.data.resolve().name,
        "steps": total,
        "gmac_ratio": round(pruned["gmac"] / whole["gmac"], 3),
        "latency_ratio": round(times["iterative"] / times["unpruned"], 3),
        "psnr_loss_db": round(whole["psnr"] - pruned["psnr"], 3),
        "gain_over_one_shot_db": round(pruned["psnr"] - found["one-shot"]["psnr"], 3),
        "gain_over_small_db": round(pruned["psnr"] - found["small"]["psnr"], 3),
        "students": {name: {**figures, "milliseconds": times[name]} for name, figures in found.items()},
        "curve": curve,
        "shapes": {name: asdict(student.model.network.config) for name, student in students.items()},
    }


def plot(results: Dict, path: Path) -> None:
    """PSNR against work, parameters, size and latency; the curve is that of the rounds."""
    from matplotlib.figure import Figure

    axes_labels = {"gmac": "GMAC", "megabytes_fp16": "MB in fp16", "milliseconds": "ms in onnxruntime"}
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    axes = figure.subplots(1, len(axes_labels), sharey=True)
    for axis, (key, label) in zip(axes, axes_labels.items()):
        for name, student in results["students"].items():
            axis.plot(student[key], student["psnr"], "o", color=COLOURS[name], label=name)
        if key in results["curve"][0]:
            points = [[point[name] for point in results["curve"]] for name in (key, "psnr")]
            axis.plot(*points, ".-", color=COLOURS["iterative"], alpha=0.5)
        axis.set(xlabel=label)
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="PSNR on held-out photos [dB]")
    axes[0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measures, prints and writes."""
    options = tyro.cli(Options, description=__doc__)
    if not options.data.is_dir():
        raise UserError(f"there is no folder {options.data}: pass a posed capture with --data.")
    results = run_benchmark(options)
    title = f"{results['data']}, {results['steps']} steps each"
    table = new_table(title, "student", "GMAC", "parameters", "MB in fp16", "ms", "PSNR [dB]", "SSIM")
    for name, found in results["students"].items():
        table.add_row(
            name, f"{found['gmac']:.3f}", f"{found['parameters']:,}", f"{found['megabytes_fp16']:.2f}",
            f"{found['milliseconds']:.2f}", f"{found['psnr']:.2f}", f"{found['ssim']:.3f}",
        )  # fmt: skip
    console.print(table)
    write_figures(with_machine(results, CPU, options.threads), options.json)
    plot(results, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
