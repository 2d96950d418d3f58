"""Pictures and figures to judge a student by: held-out photos beside teacher, student and the exported files.

H, W: the student's picture; every figure here is at that resolution.
"""

from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

import numpy as np
import torch
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.utils.rich_utils import CONSOLE
from PIL import Image, ImageDraw, ImageFont
from rich.progress import track
from torch import Tensor

from mobiler2l_ns.cameras import student_rays, student_view
from mobiler2l_ns.checkpoints import read_config
from mobiler2l_ns.data.capture import check_cameras
from mobiler2l_ns.data.photos import load_photos
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.runtime import Renderer
from mobiler2l_ns.teacher.frozen import FrozenTeacher
from mobiler2l_ns.teacher.kinds import CUDA_ONLY, is_a
from mobiler2l_ns.training.metrics import psnr, ssim

MAX_ROWS = 6
ERROR_FULL_SCALE = 0.3


class View(NamedTuple):
    """One held-out camera: pictures (H, W, 3) in 0..1 by column name, photo first."""

    name: str
    pictures: Dict[str, Tensor]


def compare(config, model, folder: Path, num_views: int) -> Dict:
    """Renders held-out views, writes ``comparison.png`` into ``folder`` and returns figures for report.json.

    Args:
        config: The student run's config; its data set must be readable, its teacher need not be.
        model: The student, on the CPU.
        folder: An export; without its onnx folder, the files are not in the picture.
        num_views: How many held-out views, spread evenly over the split.

    Returns:
        ``psnr`` and ``ssim``: means over the views, by column, against the photos; ``evaluation``: what was compared;
        ``precision_loss_db``: how much of the student's PSNR pipeline.onnx loses, both through an ideal pinhole.

    Raises:
        UserError: The run's data set cannot be read.
    """
    dataset = held_out_dataset(config)
    photos = load_photos(dataset, *model.size, model.upscale, "cpu", limit=num_views)
    renderer = Renderer(folder, num_threads=torch.get_num_threads()) if (folder / "onnx").is_dir() else None
    teacher = _load_teacher(config.pipeline.datamanager.teacher)
    views, losses = [], []
    for camera, photo in track(photos, "Rendering held-out views", console=CONSOLE, transient=True):
        pictures = {"photo": photo}
        if teacher is not None:
            pictures["teacher"] = teacher.render(camera).cpu()
        pictures["student"] = model.get_outputs_for_camera(camera)["rgb"]
        if renderer is not None:
            pictures["onnx"] = _render_files(renderer, model, camera)
            losses.append(_precision_loss(renderer, model, camera, photo))
        views.append(View(f"view {len(views) + 1}", pictures))
    height, width = model.size
    draw_comparison(views, f"{config.experiment_name}, held-out views at {width}x{height}").save(
        folder / "comparison.png"
    )
    columns = [name for name in views[0].pictures if name != "photo"]
    return {
        "psnr": {c: _mean(psnr(v.pictures[c], v.pictures["photo"]) for v in views) for c in columns},
        "ssim": {c: _mean(ssim(v.pictures[c], v.pictures["photo"]) for v in views) for c in columns},
        "evaluation": {"views": len(views), "split": "test", "width": width, "height": height},
        **({"precision_loss_db": _mean(losses)} if losses else {}),
    }


def held_out_dataset(config, split: str = "test") -> InputDataset:
    """The test or val split of a run's capture, which neither teacher nor student was trained on."""
    data = config.pipeline.datamanager.dataparser.data
    try:
        outputs = config.pipeline.datamanager.dataparser.setup().get_dataparser_outputs(split=split)
    except (OSError, KeyError, AssertionError, ValueError) as error:
        raise UserError(
            f"the capture {data} of this run cannot be read ({error}): put it back for pictures."
        ) from error
    check_cameras(outputs, data)
    return InputDataset(outputs)


def _load_teacher(path: Optional[Path]) -> Optional[FrozenTeacher]:
    if path is None or not Path(path).is_file():
        CONSOLE.print("The teacher's run is not at hand: its column is left out.")
        return None
    needs_cuda = is_a(read_config(Path(path)).pipeline.model._target, *CUDA_ONLY)
    if needs_cuda and not torch.cuda.is_available():
        CONSOLE.print("The teacher needs CUDA to render: its column is left out.")
        return None
    return FrozenTeacher(Path(path), "cuda" if needs_cuda else "cpu")


def _render_files(renderer: Renderer, model, camera) -> Tensor:
    """A photo's view through Embedder.onnx and MobileR2L.onnx.

    Sampler.onnx describes an ideal pinhole; a photo's lens need not be one, so the points come from the real camera.
    """
    rays_o, rays_d = student_rays(student_view(camera, model.focal, model.upscale).rays)
    points = model.sampler.points(rays_o, rays_d).reshape(1, 1, -1, 3 * model.config.num_points)
    return torch.from_numpy(renderer.render_points(points.numpy()))


def _precision_loss(renderer: Renderer, model, camera, photo: Tensor) -> float:
    """How many dB of PSNR against a photo pipeline.onnx loses to the student itself, at the photo's pose.

    Both see it through the student's own pinhole: what the photo's lens does to them is the same.
    """
    c2w = camera.camera_to_worlds[0].cpu()
    return psnr(model.render_pose(c2w), photo) - psnr(torch.from_numpy(renderer.render(c2w.numpy())), photo)


def _mean(values) -> float:
    return round(float(np.mean(list(values))), 4)


def draw_comparison(views: List[View], title: str) -> Image.Image:
    """A table of pictures, one row a view, with captions and an error map of the student.

    Args:
        views: At least one; at most MAX_ROWS are drawn.
        title: Heading.
    """
    names = [*views[0].pictures, "error"]
    height, width = views[0].pictures["photo"].shape[:2]
    zoom = max(1, round(240 / max(height, width)))
    cell_w, cell_h, gap, caption, head = width * zoom, height * zoom, 8, 22, 58
    rows = views[:MAX_ROWS]
    sheet = Image.new("RGB", (gap + len(names) * (cell_w + gap), head + len(rows) * (cell_h + caption + gap)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    draw.text((gap, 8), title, "black", ImageFont.load_default(18))
    labels = {"onnx": "onnxruntime", "error": f"|student - photo|, 0 to {ERROR_FULL_SCALE}"}
    for column, name in enumerate(names):
        left = gap + column * (cell_w + gap)
        draw.text((left, head - 22), labels.get(name, name), "black", font)
        for row, view in enumerate(rows):
            top = head + row * (cell_h + caption + gap)
            sheet.paste(_to_image(_cell(view, name)).resize((cell_w, cell_h), Image.Resampling.NEAREST), (left, top))
            draw.text((left, top + cell_h + 2), _caption(view, name), "black", font)
    return sheet


def _cell(view: View, name: str) -> Tensor:
    if name != "error":
        return view.pictures[name]
    error = (view.pictures["student"] - view.pictures["photo"]).abs().mean(-1)
    return _heat((error / ERROR_FULL_SCALE).clamp(0, 1))


def _caption(view: View, name: str) -> str:
    if name == "photo":
        return view.name
    return "" if name == "error" else f"{psnr(view.pictures[name], view.pictures['photo']):.2f} dB"


def _heat(values: Tensor) -> Tensor:
    """(H, W) in 0..1 as (H, W, 3) colours from black over red and yellow to white."""
    from matplotlib import colormaps

    return torch.from_numpy(colormaps["inferno"](values.numpy())[..., :3].astype(np.float32))


def _to_image(picture: Tensor) -> Image.Image:
    return Image.fromarray((picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
