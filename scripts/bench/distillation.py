"""What distillation costs: the published recipe against ours, on one scene, in one run; or ours on a real capture.

    python scripts/bench/distillation.py                          recipes on the demo scene, ray-traced, no photos
    python scripts/bench/distillation.py --setting gpu            the same at 800x800 with the full network
    python scripts/bench/distillation.py --scene forward-facing   ours with the published cells and its own
    python scripts/bench/distillation.py --data DIR               our student of a trained teacher, held-out photos

All methods run through their own nerfstudio trainer, from the same poses, with networks of one size. The clock of a
run includes everything that the teacher renders. Held-out views are never used for a decision.
"""

import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Callable, Dict, Iterable, Iterator, List, Literal, Optional, Tuple

if __name__ == "__main__":  # modules are found in scripts/, not in scripts/bench/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import tyro
from rich.table import Table
from torch import Tensor

from bench.common import (
    check_capture,
    console,
    default_device,
    mean,
    new_table,
    plot_curves,
    with_machine,
    write_figures,
)
from bench.forward_facing import compare_forward_facing, forward_facing_table
from bench.recipes import SETTINGS, compare_recipes, recipe_table
from bench.training import Run, capture_parser, method_config, train
from mobiler2l_ns.data.photos import PhotoSet, load_photos
from mobiler2l_ns.export.comparison import held_out_dataset
from mobiler2l_ns.trainer import DistillationTrainer
from mobiler2l_ns.training.metrics import psnr, ssim

AXES = {"step": "steps", "seconds": "seconds, teacher included", "views": "teacher views"}


@dataclass
class Options:
    """Command line."""

    setting: Literal["cpu", "gpu"] = "cpu"
    """Sizes of the comparison of recipes."""
    scene: Literal["demo", "forward-facing"] = "demo"
    """demo: the recipes on the demo scene. forward-facing: our student with the published cells, without and with its
    surface code and reprojected views, and with its own cells, from cameras that all look the same way."""
    seeds: Tuple[int, ...] = (0, 1, 2)
    """One comparison a seed."""
    paper_steps: Optional[int] = None
    """Length of the published recipe's run; left out: the setting's."""
    data: Optional[Path] = None
    """A posed capture: train our student from its newest teacher (see --teacher) and score it on held-out photos."""
    teacher: Optional[Path] = None
    """config.yml of the capture's teacher."""
    method: str = "mobiler2l-small"
    """Our method to train on the capture."""
    steps: Optional[int] = None
    """Length of that run; left out: the method's."""
    image_size: Optional[Tuple[int, int]] = None
    """Width and height of the student's view of the capture; left out: the photos' size."""
    output: Path = Path("docs/benchmarks")
    """Folder for the JSON file and the plot."""
    name: Optional[str] = None
    """Name of both files; left out: after what was measured."""


def measure_capture(options: Options) -> Dict:
    """Trains our student on a capture and returns everything for the JSON file."""
    held_out: List[PhotoSet] = []

    def score(trainer: DistillationTrainer) -> float:
        model = trainer.pipeline.model
        if not held_out:
            held_out.append(
                load_photos(held_out_dataset(trainer.config), *model.size, model.upscale, model.device)
            )  # fmt: skip
        return mean_of(psnr, student_pairs(model, held_out[0]))

    with tempfile.TemporaryDirectory() as folder:
        config = capture_config(options, Path(folder))
        first = config.max_num_iterations - config.pipeline.finetuning.steps_of(config.max_num_iterations)
        run, trainer = train(config, options.seeds[0], score, 12, also_at=(first,))
        written = sum(path.stat().st_size for path in Path(folder).rglob("*.np*"))
        (photos,) = held_out
        taught = list(pairs(trainer.pipeline.datamanager.teacher.render, photos))
    model, statistics = trainer.pipeline.model, trainer.pipeline.datamanager.statistics()
    finished, trained_on = list(student_pairs(model.eval(), photos)), trainer.pipeline.datamanager.photos
    results = {
        "data": options.data.resolve().name,
        "resolution": f"{model.size[1]}x{model.size[0]}",
        "held_out_photos": len(photos),
        "psnr": {"teacher": mean_of(psnr, taught), "student": mean_of(psnr, finished)},
        "psnr_on_training_photos": mean_of(psnr, student_pairs(model, trained_on)) if trained_on is not None else None,
        "ssim": {"teacher": mean_of(ssim, taught), "student": mean_of(ssim, finished)},
        "largest_fall_in_last_third_db": largest_fall(run),
        "fine_tuning": {
            "held_out_before": next((point.psnr for point in run.curve if point.step == first), None),
            "held_out_after": run.curve[-1].psnr,
        },
        "teacher_share": statistics["share_of_training_time"],
        "pool_bytes": statistics["bytes"],
        "teacher_view_bytes_on_disk": written,
        "runs": [{"recipe": options.method, **asdict(run)}],
    }
    results["gap_db"] = round(results["psnr"]["teacher"] - results["psnr"]["student"], 3)
    return results


def capture_config(options: Options, outputs: Path):
    """Our method's config for the capture that the command line names."""
    data = options.data.resolve()
    config = method_config(options.method, data, capture_parser(data), outputs)
    config.max_num_iterations = options.steps or config.max_num_iterations
    datamanager = config.pipeline.datamanager
    datamanager.teacher.load_config, datamanager.image_size = options.teacher, options.image_size
    return config


def largest_fall(run: Run) -> float:
    """The largest loss of PSNR from one point to the next in the last third of a curve, in dB."""
    last_third = [point.psnr for point in run.curve if point.step > 2 / 3 * run.curve[-1].step]
    return round(max([0.0, *(a - b for a, b in zip(last_third, last_third[1:]))]), 3)


def pairs(render: Callable, photos: PhotoSet) -> Iterator[Tuple[Tensor, Tensor]]:
    """Pairs of a rendered view and its photo, (H, W, 3) each."""
    for camera, photo in photos:
        with torch.no_grad():
            view = render(camera)
        yield view.cpu().clamp(0, 1), photo.cpu()


def student_pairs(model, photos: PhotoSet) -> Iterator[Tuple[Tensor, Tensor]]:
    """The same for a student."""
    return pairs(lambda camera: model.get_outputs_for_camera(camera)["rgb"], photos)


def mean_of(metric: Callable, images: Iterable[Tuple[Tensor, Tensor]]) -> float:
    """Mean of a metric over pairs of images."""
    return mean(metric(*pair) for pair in images)


def quality(images: Iterable[Tuple[Tensor, Tensor]]) -> Dict[str, float]:
    """Mean PSNR in dB and SSIM over pairs of images."""
    images = list(images)
    return {"psnr": mean_of(psnr, images), "ssim": mean_of(ssim, images)}


def capture_table(results: Dict) -> Table:
    """PSNR and SSIM of teacher and student, and what the run cost."""
    run, tuning = results["runs"][0], results["fine_tuning"]
    title = f"{results['data']}, {results['resolution']}, {results['held_out_photos']} held-out photos"
    table = new_table(title, "", "PSNR [dB]", "SSIM")
    for name in ("teacher", "student"):
        table.add_row(name, f"{results['psnr'][name]:.2f}", f"{results['ssim'][name]:.3f}")
    if results["psnr_on_training_photos"] is not None:
        table.add_row("student, training photos", f"{results['psnr_on_training_photos']:.2f}", "")
    table.caption = (
        f"{run['curve'][-1]['step']} steps in {run['seconds']:.0f} s, {run['teacher_seconds']:.0f} s of them the "
        f"teacher's; fine-tuning {tuning['held_out_before']} -> {tuning['held_out_after']} dB; "
        f"largest fall in the last third {results['largest_fall_in_last_third_db']} dB"
    )
    return table


def main() -> None:
    """Runs what the command line asks for."""
    options = tyro.cli(Options, description=__doc__)
    if options.data is None and options.scene == "forward-facing":
        name = options.name or "distillation-forward-facing"
        results = compare_forward_facing(options.seeds)
        console.print(forward_facing_table(results))
    elif options.data is None:
        name = options.name or f"distillation-recipes-{options.setting}"
        results = compare_recipes(SETTINGS[options.setting], options.seeds, options.paper_steps)
        console.print(recipe_table(results))
    else:
        check_capture(options.data)
        name = options.name or f"distillation-{options.data.resolve().name}"
        results = measure_capture(options)
        console.print(capture_table(results))
    write_figures(with_machine(results, default_device()), options.output / f"{name}.json")
    label = f"held-out PSNR [dB] at {results['resolution']}"
    plot_curves(results["runs"], AXES, "psnr", label, options.output / f"{name}.png")


if __name__ == "__main__":
    main()
