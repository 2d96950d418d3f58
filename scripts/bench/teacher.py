"""How fast and how well a frozen teacher renders, beside the same nerfacto in stock nerfstudio.

    python scripts/bench/teacher.py --teacher outputs/SCENE/METHOD/TIME/config.yml

On a CPU with numba, the frozen teacher is measured with its compiled renderer and with the one in torch. All render the
cameras of held-out photos in one process, one camera after the other, so that whatever else the machine does slows
all of them down. CPU seconds, summed over threads, depend less on other processes than seconds do.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Callable, Dict, Optional

if __name__ == "__main__":  # modules are found in scripts/, not in scripts/bench/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.field_components.encodings import HashEncoding
from nerfstudio.models.base_model import Model
from rich.progress import track
from torch import Tensor

from bench.common import console, default_device, describe, new_table, with_machine, write_figures
from mobiler2l_ns.checkpoints import load_model
from mobiler2l_ns.data.photos import PhotoSet, load_photos
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export.comparison import held_out_dataset
from mobiler2l_ns.run_config import read_config
from mobiler2l_ns.teacher.fast_nerfacto import FastNerfacto
from mobiler2l_ns.teacher.frozen import FrozenTeacher
from mobiler2l_ns.training.metrics import psnr


def load_stock(config_path: Path, device) -> Model:
    """The run's model as nerfstudio would load it, with nerfstudio's own hash grids."""
    model, _ = load_model(config_path, device)
    for module in model.modules():
        if isinstance(module, HashEncoding):
            vars(module).pop("pytorch_fwd", None)
    return model


def load_held_out(config_path: Path, data: Optional[Path], num_views: int, max_side: int, device) -> PhotoSet:
    """Photos that the teacher was not trained on, evenly over the split, shrunk to ``max_side`` pixels at most."""
    config = read_config(config_path)
    if data is not None:
        if not data.exists():
            raise UserError(f"there is no {data}: pass the folder of the teacher's capture with --data.")
        config.pipeline.datamanager.dataparser.data = data
    try:
        dataset = held_out_dataset(config)
    except UserError:
        dataset = held_out_dataset(config, split="val")
    height, width = int(dataset.cameras.height[0]), int(dataset.cameras.width[0])
    factor = min(1.0, max_side / max(height, width))
    return load_photos(dataset, round(height * factor), round(width * factor), 1, device, limit=num_views)


def load_renderers(config_path: Path, device) -> Dict[str, Callable[[Cameras], Tensor]]:
    """Functions that render a camera's colours: ``stock``, ``ours``, and ``torch`` if ours is compiled."""
    stock, ours = load_stock(config_path, device), FrozenTeacher(config_path, device)
    if ours.fast is None:
        raise UserError(f"{config_path} is rendered by nerfstudio anyway: pass a nerfacto with stock options.")
    renderers = {"stock": lambda camera: stock.get_outputs_for_camera(camera)["rgb"].clamp(0, 1)}
    if ours.fast.fused is not None:
        in_torch = FrozenTeacher(config_path, device)
        in_torch.fast = FastNerfacto(ours.fast.model, compiled=False)
        renderers["torch"] = in_torch.render
    return {**renderers, "ours": ours.render}


def measure(config_path: Path, photos: PhotoSet, device) -> Dict:
    """Renders every photo's camera by all renderers and returns the figures that the table and the JSON file hold."""
    renderers = load_renderers(config_path, device)
    seconds, cpu_seconds, quality = ({name: 0.0 for name in renderers} for _ in range(3))
    for render in renderers.values():
        render(photos.cameras[:1])  # the first view includes what is set up once
    for camera, target in track(photos, "Rendering held-out views", console=console, transient=True):
        for name, render in renderers.items():
            start, cpu_start = _now(device), time.process_time()
            view = render(camera)
            seconds[name] += _now(device) - start
            cpu_seconds[name] += time.process_time() - cpu_start
            quality[name] += psnr(view, target) / len(photos)
    height, width = photos.images.shape[1:3]
    rays = len(photos) * height * width
    speed = {name: rays / value for name, value in seconds.items()}
    figures = {
        "teacher": "/".join(Path(config_path).parts[-4:]),
        "views": len(photos),
        "resolution": [width, height],
        "rays_per_second": {name: round(value) for name, value in speed.items()},
        "ratio": round(speed["ours"] / speed["stock"], 2),
        "psnr": {name: round(value, 3) for name, value in quality.items()},
        "db_lost": round(quality["stock"] - quality["ours"], 3),
    }
    if device.type == "cpu":
        figures["rays_per_cpu_second"] = {name: round(rays / value) for name, value in cpu_seconds.items()}
    if "torch" in renderers:
        figures["ratio_to_torch"] = round(speed["ours"] / speed["torch"], 2)
        figures["db_lost_to_torch"] = round(quality["torch"] - quality["ours"], 3)
    return figures


def _now(device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def show(figures: Dict) -> None:
    """Prints the figures as a table."""
    width, height = figures["resolution"]
    title = f"{figures['views']} held-out views at {width}x{height}"
    by_cpu = figures.get("rays_per_cpu_second", {})
    table = new_table(title, "", "rays/s", *(["rays per CPU second"] if by_cpu else []), "PSNR against photos")
    labels = {"stock": "nerfstudio", "torch": "frozen, in torch", "ours": "frozen teacher"}
    for row, speed in figures["rays_per_second"].items():
        cpu_speed = [f"{by_cpu[row]:,}"] if by_cpu else []
        table.add_row(labels[row], f"{speed:,}", *cpu_speed, f"{figures['psnr'][row]:.2f} dB")
    console.print(table)
    console.print(
        f"{figures['ratio']:.1f} times as fast as nerfstudio, {figures['db_lost']:.2f} dB lost (less than 0: gained); "
        f"{describe(figures)} (all renderers together)"
    )
    if "ratio_to_torch" in figures:
        console.print(
            f"{figures['ratio_to_torch']:.1f} times as fast as in torch, {figures['db_lost_to_torch']:.2f} dB lost"
        )


def main() -> None:
    """Reads the command line, measures, prints the table and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, required=True, help="config.yml of a nerfacto run")
    parser.add_argument("--data", type=Path, help="the capture, where it is not where the teacher was trained")
    parser.add_argument("--num-views", type=int, default=8, help="held-out photos, spread over the split")
    parser.add_argument("--max-side", type=int, default=320, help="longer side of the views in pixels")
    parser.add_argument("--json", type=Path, help="for the figures")
    arguments = parser.parse_args()
    if arguments.num_views < 1 or arguments.max_side < 1:
        raise UserError("--num-views and --max-side must be at least 1.")
    config_path = arguments.teacher / "config.yml" if arguments.teacher.is_dir() else arguments.teacher
    device = default_device()
    photos = load_held_out(config_path, arguments.data, arguments.num_views, arguments.max_side, device)
    figures = with_machine(measure(config_path, photos, device), device)
    show(figures)
    if arguments.json is not None:
        write_figures(figures, arguments.json)


if __name__ == "__main__":
    main()
