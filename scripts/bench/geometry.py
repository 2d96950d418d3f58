"""What alpha and depth cost a student in colours, and how right they are.

    python scripts/bench/geometry.py --data data/demo --teacher outputs/demo/mobiler2l-teacher-small/TIME/config.yml

A demo scene (scripts/make_demo_scene.py) comes with exact depth. For each seed two students are trained, one with
colours alone and one with alpha and depth, from the same teacher views in the same batches, and both are compared with
held-out views. Nothing depends on a clock, so a run can be repeated.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple

if __name__ == "__main__":  # modules are found in scripts/, not in scripts/bench/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from demo_scene.cameras import TARGET
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from torch import Tensor

from bench.common import console, default_device, describe, mean, new_table, with_machine, write_figures
from bench.training import method_config, train
from mobiler2l_ns.cameras import ray_lengths
from mobiler2l_ns.data.photos import load_photos
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export.comparison import held_out_dataset
from mobiler2l_ns.teacher.frozen import Teacher
from mobiler2l_ns.trainer import DistillationTrainerConfig
from mobiler2l_ns.training.metrics import psnr


class View(NamedTuple):
    """A held-out view of the demo scene."""

    camera: Cameras
    rgb: Tensor
    """(H, W, 3) on white."""
    alpha: Tensor
    """(H, W, 1)"""
    distance: Tensor
    """(H, W, 1) along the ray, inf where it hits nothing."""


def load_views(config) -> List[View]:
    """All held-out views of a run's capture.

    Raises:
        UserError: The capture has no exact depth.
    """
    dataset = held_out_dataset(config)
    height, width = int(dataset.cameras.height[0]), int(dataset.cameras.width[0])
    photos = load_photos(dataset, height, width, 1, "cpu", with_alpha=True)
    views = []
    for path, image, (camera, rgb) in zip(dataset.image_filenames, photos.images, photos):
        depth = path.with_name(f"{path.stem}_depth.npy")
        if not depth.is_file():
            raise UserError(f"there is no {depth}: make a demo scene with scripts/make_demo_scene.py.")
        views.append(View(camera, rgb, image[..., 3:].float() / 255, torch.from_numpy(np.load(depth))[..., None]))
    return views


@torch.no_grad()
def judge(render: Callable[[Cameras], Dict[str, Tensor]], views: List[View]) -> Dict[str, float]:
    """Mean PSNR in dB; mean absolute error of alpha; median absolute error of depth over the camera's mean distance.

    Depth is judged where alpha is above a half.
    """
    target = torch.from_numpy(TARGET).float()
    away = float(np.mean([float((view.camera.camera_to_worlds[0, :, 3] - target).norm()) for view in views]))
    colour, alpha, depth = [], [], []
    for view in views:
        outputs = {name: value.cpu() for name, value in render(view.camera).items()}
        colour.append(psnr(outputs["rgb"].clamp(0, 1), view.rgb))
        alpha.append(float((outputs["accumulation"] - view.alpha).abs().mean()))
        seen = (view.alpha > 0.5) & view.distance.isfinite()
        depth.append((outputs["depth"] - view.distance)[seen].abs())
    return {
        "psnr": mean(colour),
        "alpha_error": round(float(np.mean(alpha)), 5),
        "depth_error": round(float(torch.cat(depth).median() / away), 5),
    }


def teacher_outputs(teacher: Teacher) -> Callable[[Cameras], Dict[str, Tensor]]:
    """A teacher's view under the names of a student's outputs."""

    def render(camera: Cameras) -> Dict[str, Tensor]:
        rgb, accumulation, z = teacher.render_all(camera).cpu().split((3, 1, 1), dim=-1)
        return {"rgb": rgb, "accumulation": accumulation, "depth": z * ray_lengths(camera)}

    return render


def student_config(options: argparse.Namespace, outputs: str, folder: Path) -> DistillationTrainerConfig:
    """The small student without fine-tuning, on a fixed set of teacher views."""
    config = method_config("mobiler2l-small", options.data, BlenderDataParserConfig(data=options.data), folder)
    config.max_num_iterations, config.pipeline.finetuning.steps = options.steps, 0
    config.pipeline.model.outputs = outputs
    datamanager = config.pipeline.datamanager
    datamanager.teacher.load_config = options.teacher
    datamanager.pool_views = datamanager.initial_views = options.teacher_views
    datamanager.teacher_share = datamanager.filling_share = 0.0
    return config


def measure(options: argparse.Namespace) -> Dict:
    """Trains both students for each seed and returns what the table and the JSON file hold."""
    runs, taught = [], {}
    with tempfile.TemporaryDirectory() as folder:
        views = load_views(student_config(options, "rgb", Path(folder)))

        def score(trainer) -> float:
            return judge(trainer.pipeline.model.get_outputs_for_camera, views)["psnr"]

        for seed in options.seeds:
            for outputs in ("rgb", "rgbad"):
                _, trainer = train(student_config(options, outputs, Path(folder)), seed, score, 1)
                figures = judge(trainer.pipeline.model.eval().get_outputs_for_camera, views)
                if outputs == "rgb":
                    figures = {"psnr": figures["psnr"]}
                runs.append({"outputs": outputs, "seed": seed, **figures})
                taught = taught or judge(teacher_outputs(trainer.pipeline.datamanager.teacher), views)
    plain, full = ([run for run in runs if run["outputs"] == name] for name in ("rgb", "rgbad"))
    return {
        "scene": options.data.name,
        "steps": options.steps,
        "teacher_views": options.teacher_views,
        "teacher": taught,
        "runs": runs,
        "db_lost": [round(a["psnr"] - b["psnr"], 3) for a, b in zip(plain, full)],
        "worst_alpha_error": max(run["alpha_error"] for run in full),
        "worst_depth_error": max(run["depth_error"] for run in full),
    }


def show(figures: Dict) -> None:
    """Prints the figures as a table."""
    title = f"{figures['steps']} steps, {figures['teacher_views']} teacher views"
    table = new_table(title, "", "seed", "PSNR [dB]", "alpha error", "depth error")
    for row in ({"outputs": "teacher", "seed": "", **figures["teacher"]}, *figures["runs"]):
        errors = [f"{row[name]:.4f}" if name in row else "" for name in ("alpha_error", "depth_error")]
        table.add_row(row["outputs"], str(row["seed"]), f"{row['psnr']:.2f}", *errors)
    console.print(table)
    console.print(
        f"alpha and depth cost {', '.join(f'{lost:.2f}' for lost in figures['db_lost'])} dB (less than 0: gained); "
        f"depth error is relative to the camera's distance; {describe(figures)}"
    )


def main() -> None:
    """Reads the command line, measures, prints the table and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a demo scene")
    parser.add_argument("--teacher", type=Path, required=True, help="config.yml of a teacher of it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="two students each")
    parser.add_argument("--steps", type=int, default=800, help="length of each run")
    parser.add_argument("--teacher-views", type=int, default=200, help="views that all steps draw from")
    parser.add_argument("--json", type=Path, default=Path("docs/benchmarks/geometry-demo.json"), help="for the figures")
    options = parser.parse_args()
    if not options.data.is_dir():
        raise UserError(f"there is no folder {options.data}: pass a demo scene with --data.")
    options.data = options.data.resolve()
    figures = with_machine(measure(options), default_device())
    show(figures)
    write_figures(figures, options.json)


if __name__ == "__main__":
    main()
