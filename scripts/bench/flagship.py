"""The large student beside the published recipe and the small student: quality after equal seconds of training.

    python scripts/bench/flagship.py --data data/demo400 --teacher RUN/config.yml --image-size 400 400

All students have the same teacher and about as many pixels in a batch. The figures, the curves and the picture are
written after each student, and join those that the file has from earlier commands.
"""

import functools
import math
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Dict, List, Optional, Tuple

if __name__ == "__main__":  # modules are found in scripts/, not in scripts/bench/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

from bench.common import (
    check_capture,
    console,
    default_device,
    earlier_figures,
    mean,
    new_table,
    plot_curves,
    with_machine,
    write_figures,
)
from bench.distillation import Options as CaptureOptions
from bench.distillation import capture_config, largest_fall, pairs, quality, student_pairs
from bench.equal_time import held_out_photos, train_within
from mobiler2l_ns.pruning.report import measure
from mobiler2l_ns.trainer import DistillationTrainerConfig
from mobiler2l_ns.training.metrics import psnr

AXES = {"step": "steps", "seconds": "seconds, teacher included"}
ROWS = 3  # held-out photos in the picture


@dataclass
class Options:
    """Command line."""

    data: Path
    """A posed capture."""
    teacher: Path
    """config.yml of its teacher."""
    image_size: Tuple[int, int] = (200, 200)
    """Width and height of the students' view."""
    seconds: float = 1800.0
    """Training time of each student, teacher included."""
    methods: Tuple[str, ...] = ("mobiler2l", "mobiler2l-paper", "mobiler2l-small")
    """The students."""
    pixels: int = 77000
    """Pixels in a batch, about; the methods' own 640,000 suit a GPU."""
    lr: Optional[Tuple[float, float]] = None
    """Learning rates of mobiler2l for matrices and for the rest; left out: the method's."""
    initial_views: Optional[int] = None
    """Views of mobiler2l before its first step; left out: the method's 100, for which a slow teacher takes minutes."""
    even_borders: bool = False
    """Let patches and tiles show the border of images as often as the middle."""
    probe_steps: int = 16
    """Length of the run that measures the time of a step."""
    seed: int = 0
    """Of all random numbers."""
    json: Optional[Path] = None
    """File for the figures; plot and picture lie beside it. Left out: named after the capture."""


def config_of(options: Options, method: str, outputs: Path) -> DistillationTrainerConfig:
    """A method's config for the capture, with the batch of these options."""
    capture = CaptureOptions(data=options.data, teacher=options.teacher, method=method, image_size=options.image_size)
    config = capture_config(capture, outputs)
    config.pipeline.datamanager.patches_per_batch = max(1, round(options.pixels / pixels_of_patch(config)))
    config.pipeline.datamanager.even_borders = options.even_borders
    if method == "mobiler2l" and options.lr is not None:
        for group, lr in zip(("matrices", "others"), options.lr):
            config.optimizers[group]["optimizer"].lr = lr
    if method == "mobiler2l" and options.initial_views is not None:
        config.pipeline.datamanager.initial_views = options.initial_views
    return config


def pixels_of_patch(config: DistillationTrainerConfig) -> int:
    """Pixels of one patch; without a size of patches it is the whole view."""
    datamanager = config.pipeline.datamanager
    if datamanager.patch_cells is None:
        return math.prod(datamanager.image_size)
    return (datamanager.patch_cells * config.pipeline.model.network.upscale) ** 2


def sharpness(image: Tensor, photo: Tensor) -> float:
    """How strongly neighbouring pixels of an image (H, W, 3) differ, relative to those of the photo; 1: as sharp."""

    def variation(picture: Tensor) -> float:
        return float(picture.diff(dim=0).abs().mean() + picture.diff(dim=1).abs().mean())

    return variation(image) / variation(photo)


def border_psnr(image: Tensor, photo: Tensor) -> float:
    """PSNR in dB of the pixels of an image (H, W, 3) that are within a tenth of its shorter side from the border."""
    inner = torch.zeros(image.shape[:2], dtype=torch.bool)
    width = min(image.shape[:2]) // 10
    inner[width:-width, width:-width] = True
    return psnr(image[~inner], photo[~inner])


def describe_views(views: List[Tuple[Tensor, Tensor]]) -> Dict[str, float]:
    """PSNR, SSIM, sharpness and PSNR at the border of pairs of a view and its photo."""
    found = {"sharpness": mean(sharpness(*pair) for pair in views)}
    return {**quality(views), **found, "border_psnr": mean(border_psnr(*pair) for pair in views)}


def measure_method(options: Options, method: str, outputs: Path) -> Tuple[Dict, Dict, List[Tensor]]:
    """Trains a student and returns its figures, those of its teacher, and a picture of photo, teacher, student."""
    config = config_of(options, method, outputs)
    held_out = functools.partial(held_out_photos, config)
    run, trainer, photos = train_within(config, options.seconds, options.probe_steps, held_out, 12, options.seed)
    model, steps = trainer.pipeline.model, config.max_num_iterations
    first = steps - config.pipeline.finetuning.steps_of(steps)
    found, taught = list(student_pairs(model, photos)), list(pairs(trainer.pipeline.datamanager.teacher.render, photos))
    student, teacher = describe_views(found), describe_views(taught)
    figures = {
        "steps": run.curve[-1].step, "seconds": run.seconds, "teacher_seconds": run.teacher_seconds,
        "initial_views": config.pipeline.datamanager.initial_views, "views": run.curve[-1].views,
        "even_borders": options.even_borders,
        "gmac": measure(model).gmac, "parameters": run.parameters, **student,
        "gap_to_teacher_db": round(teacher["psnr"] - student["psnr"], 3),
        "before_fine_tuning": next((point.psnr for point in run.curve if point.step == first), None),
        "largest_fall_in_last_third_db": largest_fall(run), "curve": [asdict(point) for point in run.curve],
    }  # fmt: skip
    columns = zip(*[(photo, view, shown) for (shown, photo), (view, _) in zip(found[:ROWS], taught)])
    return figures, teacher, [torch.cat(column) for column in columns]


def add_picture(path: Path, columns: List[str], pictures: Dict[str, Tensor]) -> None:
    """Writes the columns (H, W, 3) of a picture side by side; those that are not given are in the file."""
    width, stored = pictures["photo"].shape[1], []
    if path.is_file():
        with Image.open(path) as image:
            stored = torch.from_numpy(np.array(image)).split(width, dim=1)
    new = {name: (column.clamp(0, 1) * 255).round().to(torch.uint8) for name, column in pictures.items()}
    shown = {**dict(zip(columns, stored)), **new}
    picture = torch.cat([shown[name] for name in columns], dim=1)
    Image.fromarray(picture.numpy()).save(path, quality=92, subsampling=0)


def run_benchmark(options: Options, path: Path) -> Dict:
    """Everything for the JSON file, which is written after each method and joins what the file has."""
    same = {
        "data": options.data.resolve().name,
        "resolution": f"{options.image_size[0]}x{options.image_size[1]}",
        "pixels_a_step": options.pixels,
        "seconds_given": options.seconds,
        "seed": options.seed,
    }
    read_earlier = functools.partial(earlier_figures, path, same, "students with other options")
    results = read_earlier()
    for method in options.methods:
        with tempfile.TemporaryDirectory() as folder:
            figures, taught, pictures = measure_method(options, method, Path(folder))
        results = read_earlier()  # another process may have measured another method meanwhile
        students = {**results.get("students", {}), method: figures}
        results = {**same, "columns": ["photo", "teacher", *students], "teacher": taught, "students": students}
        write_figures(with_machine(results, default_device()), path)
        runs = [{"recipe": name, "curve": student["curve"]} for name, student in results["students"].items()]
        plot_curves(runs, AXES, "psnr", f"held-out PSNR [dB] at {results['resolution']}", path.with_suffix(".png"))
        named = dict(zip(("photo", "teacher", method), pictures))
        add_picture(path.with_name(f"{path.stem}-views.jpg"), results["columns"], named)
    return results


def main() -> None:
    """Measures, prints and writes."""
    options = tyro.cli(Options, description=__doc__)
    check_capture(options.data)
    path = options.json or Path("docs/benchmarks") / f"flagship-{options.data.resolve().name}.json"
    results = run_benchmark(options, path)
    title = f"{results['data']}, {results['resolution']}, {results['pixels_a_step']} pixels a step"
    table = new_table(title, "", "GMAC", "steps", "seconds", "PSNR [dB]", "SSIM", "sharpness", "before fine-tuning")
    taught = results["teacher"]
    table.add_row("teacher", "", "", "", f"{taught['psnr']:.2f}", f"{taught['ssim']:.3f}", f"{taught['sharpness']:.2f}")
    for name, found in results["students"].items():
        cost = f"{found['gmac']:.2f}", str(found["steps"]), f"{found['seconds']:.0f}"
        quality_of = f"{found['psnr']:.2f}", f"{found['ssim']:.3f}", f"{found['sharpness']:.2f}"
        table.add_row(name, *cost, *quality_of, f"{found['before_fine_tuning']:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
