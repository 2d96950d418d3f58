"""What pruning costs: pruned students beside an unpruned one and beside smaller ones that were never pruned.

    python scripts/bench/pruning.py --data data/demo160 --teacher RUN/config.yml

The students: unpruned, for as many steps as the base and all rounds together; each round; one-shot, pruned at once; and
dense, which has the work of the last round by smaller widths, was never pruned, and trained for as many seconds as base
and rounds. Runs that are in --work already are not trained again.
"""

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Dict, List, Optional, Tuple

if __name__ == "__main__":  # modules are found in scripts/, not in scripts/bench/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import tyro

from bench.common import CPU, check_capture, console, median_milliseconds, new_table, with_machine, write_figures
from bench.distillation import Options as CaptureOptions
from bench.distillation import capture_config, quality, student_pairs
from bench.published_files import pipeline_call
from bench.runs import trained
from mobiler2l_ns import method_configs
from mobiler2l_ns.data.photos import load_photos
from mobiler2l_ns.export.command import TrainedStudent, load_student
from mobiler2l_ns.export.comparison import held_out_dataset
from mobiler2l_ns.export.onnx_files import trace_pipeline
from mobiler2l_ns.export.report import RECORD
from mobiler2l_ns.pruning.channels import group_sizes, macs_a_ray, network_layers
from mobiler2l_ns.pruning.command import PruneMobileR2L
from mobiler2l_ns.pruning.report import measure
from mobiler2l_ns.student.network import MobileR2LNetwork, NetworkConfig

SERIES = {"unpruned": "tab:gray", "round": "tab:blue", "one-shot": "tab:orange", "dense": "tab:green"}


@dataclass
class Options:
    """Command line."""

    data: Path
    """A posed capture."""
    teacher: Path
    """config.yml of its teacher."""
    method: str = "mobiler2l-small"
    """The student."""
    width: Optional[int] = None
    """Its W before pruning; left out: the method's."""
    sr_widths: Optional[Tuple[int, ...]] = None
    """Channels of its super-resolution stages before pruning; left out: the method's."""
    steps: int = 4000
    """Training steps before pruning."""
    rounds: int = 3
    """Rounds of pruning."""
    finetune_steps: int = 1500
    """Training steps of a round."""
    last_steps: Optional[int] = None
    """Training steps of the last round; left out: as the others."""
    fraction: float = 0.32
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


def train_student(options: Options, name: str, steps: int, network: Optional[NetworkConfig] = None) -> Path:
    """The folder of a run of this name, trained if it is not there."""
    capture = CaptureOptions(
        data=options.data, teacher=options.teacher, method=options.method, image_size=options.image_size, steps=steps
    )
    config = capture_config(capture, options.work)
    config.experiment_name, config.timestamp = options.data.resolve().name, name
    config.pipeline.model.network = network or whole_network(options)
    return trained(config)


def prune_student(options: Options, run: Path, schedule: str) -> List[Path]:
    """The folders of the rounds of a run."""
    command = PruneMobileR2L(
        run, rounds=options.rounds, fraction=options.fraction, finetune_steps=options.finetune_steps,
        last_steps=options.last_steps, name=schedule, schedule=schedule,
    )  # fmt: skip
    command.main()
    rounds = options.rounds if schedule == "iterative" else 1
    return [run.with_name(f"{run.name}-{schedule}-{number}") for number in range(1, rounds + 1)]


def train_dense(options: Options, base: Path, rounds: List[Path]) -> Path:
    """A network of the last round's work that was never pruned, trained for the seconds of base and rounds together.

    It takes as long for a step as the last round.
    """
    last = rounds[-1]
    seconds = sum(training_seconds(folder) for folder in (base, *rounds))
    steps = round(steps_of(last) * seconds / training_seconds(last))
    network = dense_network(load_student(last / "config.yml").model.network, whole_network(options))
    return train_student(options, "dense", steps, network)


def training_seconds(folder: Path) -> float:
    """Length of a run, from its record."""
    pool = json.loads((folder / RECORD).read_text())["pool"]
    return pool["teacher_seconds"] / pool["share_of_training_time"]


def whole_network(options: Options) -> NetworkConfig:
    """The student's network before pruning."""
    network = getattr(method_configs, options.method.replace("-", "_")).config.pipeline.model.network
    return replace(network, width=options.width or network.width, sr_widths=options.sr_widths or network.sr_widths)


def dense_network(pruned: MobileR2LNetwork, config: NetworkConfig) -> NetworkConfig:
    """A network with all widths smaller by one factor, so that it has about the work of a pruned one."""

    def at_width(width: int) -> NetworkConfig:
        stages = (max(8, 8 * round(stage * width / config.width / 8)) for stage in config.sr_widths)
        return replace(config, width=width, sr_widths=tuple(stages), out_channels=pruned.config.out_channels)

    def difference(width: int) -> int:
        return abs(work_of(MobileR2LNetwork(pruned.in_channels, at_width(width))) - work_of(pruned))

    return at_width(min(range(8, config.width + 1, 4), key=difference))


def work_of(network: MobileR2LNetwork) -> int:
    """Multiply-accumulate operations a ray."""
    layers = network_layers(network)
    return macs_a_ray(layers, group_sizes(layers))


def measure_students(students: Dict[str, TrainedStudent], options: Options) -> Dict[str, Dict]:
    """Size, quality on all held-out photos, and time of pipeline.onnx in fp32, by turns."""
    sides, found = {}, {}
    for name, student in students.items():
        model = student.model
        graph = trace_pipeline(model, "rgb", "fp32", 20)
        sides[name] = pipeline_call(graph, model, options.threads)
        photos = load_photos(held_out_dataset(student.config), *model.size, model.upscale, model.device)
        found[name] = {
            **asdict(measure(model)),
            "file_megabytes": round(graph.ByteSize() / 1e6, 3),
            **quality(student_pairs(model, photos)),
        }
    median_milliseconds(sides, max(2, options.runs // 10))  # warms up
    times = median_milliseconds(sides, options.runs)
    return {name: {**figures, "milliseconds": times[name]} for name, figures in found.items()}


def run_benchmark(options: Options) -> Dict:
    """Trains, prunes and measures everything for the JSON file."""
    after = (options.rounds - 1) * options.finetune_steps + (options.last_steps or options.finetune_steps)
    base = train_student(options, "base", options.steps)
    rounds, one_shot = (prune_student(options, base, schedule) for schedule in ("iterative", "one-shot"))
    folders = {
        "unpruned": train_student(options, "unpruned", options.steps + after),
        **{f"round {number}": folder for number, folder in enumerate(rounds, start=1)},
        "one-shot": one_shot[0],
        "dense": train_dense(options, base, rounds),
    }
    students = {name: load_student(folder / "config.yml") for name, folder in folders.items()}
    found = measure_students(students, options)
    whole, pruned, dense = (found[name] for name in ("unpruned", f"round {len(rounds)}", "dense"))
    return {
        "data": options.data.resolve().name,
        "steps": options.steps + after,
        "gmac_ratio": round(pruned["gmac"] / whole["gmac"], 3),
        "latency_ratio": round(pruned["milliseconds"] / whole["milliseconds"], 3),
        "psnr_loss_db": round(whole["psnr"] - pruned["psnr"], 3),
        "gain_over_one_shot_db": round(pruned["psnr"] - found["one-shot"]["psnr"], 3),
        "gain_over_dense_db": round(pruned["psnr"] - dense["psnr"], 3),
        "students": {
            name: {**figures, "steps": steps_of(folders[name]), "network": asdict(students[name].model.network.config)}
            for name, figures in found.items()
        },
    }


def steps_of(folder: Path) -> int:
    """Steps of a run alone, without those of the run that it was pruned from."""
    return json.loads((folder / RECORD).read_text())["steps"]


def plot(results: Dict, path: Path) -> None:
    """PSNR against work, size and time, with a line through the rounds and one through the dense networks."""
    from matplotlib.figure import Figure

    labels = {"gmac": "GMAC", "file_megabytes": "MB of pipeline.onnx in fp32", "milliseconds": "ms in onnxruntime"}
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    for axis, (key, label) in zip(figure.subplots(1, len(labels), sharey=True), labels.items()):
        for series, colour in SERIES.items():
            found = [student for name, student in results["students"].items() if name.startswith(series)]
            points = [[student[axis_key] for student in found] for axis_key in (key, "psnr")]
            axis.plot(*points, "o-", color=colour, label={"round": "pruned in rounds"}.get(series, series))
        axis.set(xlabel=label)
        axis.grid(alpha=0.3)
    figure.axes[0].set(ylabel="PSNR on held-out photos [dB]")
    figure.axes[0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measures, prints and writes."""
    options = tyro.cli(Options, description=__doc__)
    check_capture(options.data)
    results = run_benchmark(options)
    table = new_table(results["data"], "student", "steps", "GMAC", "parameters", "MB", "ms", "PSNR [dB]", "SSIM")
    for name, found in results["students"].items():
        table.add_row(
            name, str(found["steps"]), f"{found['gmac']:.3f}", f"{found['parameters']:,}",
            f"{found['file_megabytes']:.2f}", f"{found['milliseconds']:.2f}", f"{found['psnr']:.2f}",
            f"{found['ssim']:.3f}",
        )  # fmt: skip
    console.print(table)
    write_figures(with_machine(results, CPU, options.threads), options.json)
    plot(results, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
