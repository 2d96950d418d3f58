"""Comparison of a student with held-out photos: PSNR, SSIM and a sheet of images.

The columns of the sheet are photo, teacher, student and the exported files. H, W: the student's image; all figures are
at this resolution.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Iterable, List, NamedTuple, Optional, cast

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.utils import colormaps
from nerfstudio.utils.rich_utils import CONSOLE
from PIL import Image, ImageDraw, ImageFont
from rich.progress import track
from torch import Tensor

from mobiler2l_ns.cameras import cell_centres, rays_at, student_rays
from mobiler2l_ns.data.capture import PARSER_ERRORS, CaptureDataset, check_cameras
from mobiler2l_ns.data.photos import load_photos
from mobiler2l_ns.datamanager import DistillationDataManagerConfig
from mobiler2l_ns.errors import UserError, first_line
from mobiler2l_ns.model import MobileR2LModel
from mobiler2l_ns.run_config import read_config
from mobiler2l_ns.runtime import Renderer
from mobiler2l_ns.teacher.frozen import TeacherConfig
from mobiler2l_ns.teacher.kinds import CUDA_ONLY, is_a
from mobiler2l_ns.teacher.teacher import Teacher
from mobiler2l_ns.training.metrics import psnr, ssim

if TYPE_CHECKING:
    import nerfstudio.engine.trainer

MAX_ROWS = 6
ERROR_FULL_SCALE = 0.3


class HeldOutView(NamedTuple):
    """A camera that neither teacher nor student was trained on. Images are in 0..1."""

    name: str
    photo: Float[Tensor, "H W 3"]
    renders: Dict[str, Float[Tensor, "H W 3"]]
    """By column of the sheet: teacher (if it can be rendered), student, onnx (if it was exported)."""


@dataclass
class Comparison:
    """Means over the held-out views, by column of the sheet, and the sheet."""

    psnr: Dict[str, float]
    """Against the photos, dB."""
    ssim: Dict[str, float]
    num_views: int
    height: int
    width: int
    precision_loss_db: Optional[float]
    """PSNR that pipeline.onnx loses to the student, both rendered with an ideal pinhole; None: it was not exported."""
    sheet: Image.Image

    def to_dict(self) -> Dict[str, object]:
        """The figures for report.json."""
        evaluation = {"views": self.num_views, "split": "test", "width": self.width, "height": self.height}
        figures: Dict[str, object] = {"psnr": self.psnr, "ssim": self.ssim, "evaluation": evaluation}
        if self.precision_loss_db is not None:
            figures["precision_loss_db"] = self.precision_loss_db
        return figures


def compare(
    config: "nerfstudio.engine.trainer.TrainerConfig", model: MobileR2LModel, folder: Path, num_views: int
) -> Comparison:
    """Renders held-out views with teacher, student and files.

    Args:
        config: The student run's config. Its data set must be readable; its teacher may be missing.
        model: The student, on the CPU.
        folder: An export. Without the folder onnx in it, files are not rendered.
        num_views: Number of held-out views, evenly spread over the split.

    Raises:
        UserError: The data set or a photo cannot be read.
    """
    photos = load_photos(held_out_dataset(config), *model.size, model.upscale, "cpu", limit=num_views)
    renderer = Renderer(folder, num_threads=torch.get_num_threads()) if (folder / "onnx").is_dir() else None
    teacher = _load_teacher(cast(DistillationDataManagerConfig, config.pipeline.datamanager).teacher)
    views, losses = [], []
    for camera, photo in track(photos, "Rendering held-out views", console=CONSOLE, transient=True):
        renders = {} if teacher is None else {"teacher": teacher.render(camera).cpu()}
        renders["student"] = model.get_outputs_for_camera(camera)["rgb"]
        if renderer is not None:
            renders["onnx"] = _render_files(renderer, model, camera)
            losses.append(_precision_loss(renderer, model, camera, photo))
        views.append(HeldOutView(f"view {len(views) + 1}", photo, renders))
    height, width = model.size
    columns = list(views[0].renders)
    return Comparison(
        psnr={name: _mean(psnr(view.renders[name], view.photo) for view in views) for name in columns},
        ssim={name: _mean(ssim(view.renders[name], view.photo) for view in views) for name in columns},
        num_views=len(views),
        height=height,
        width=width,
        precision_loss_db=_mean(losses) if losses else None,
        sheet=draw_sheet(views, f"{config.experiment_name}, held-out views at {width}x{height}"),
    )


def held_out_dataset(config: "nerfstudio.engine.trainer.TrainerConfig", split: str = "test") -> InputDataset:
    """The test or val split of a run's capture, which neither teacher nor student was trained on.

    Raises:
        UserError: The capture cannot be read.
    """
    dataparser = cast(VanillaDataManagerConfig, config.pipeline.datamanager).dataparser
    try:
        outputs = dataparser.setup().get_dataparser_outputs(split=split)
    except PARSER_ERRORS as error:
        raise UserError(
            f"the capture {dataparser.data} of this run cannot be read ({error}): restore it to compare with photos."
        ) from error
    check_cameras(outputs, dataparser.data)
    return CaptureDataset(outputs)


def _load_teacher(teacher: TeacherConfig) -> Optional[Teacher]:
    path = teacher.load_config
    if path is None or not path.is_file():
        CONSOLE.print("The teacher's run is missing: its column is left out.")
        return None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if is_a(read_config(path).pipeline.model._target, *CUDA_ONLY) and device == "cpu":
        CONSOLE.print("The teacher needs CUDA to render: its column is left out.")
        return None
    try:
        return teacher.setup(device)
    except (UserError, torch.cuda.OutOfMemoryError) as error:
        CONSOLE.print(f"The teacher's column is left out: {first_line(error)}")
        return None


def _render_files(renderer: Renderer, model: MobileR2LModel, camera: Cameras) -> Float[Tensor, "H W 3"]:
    """A photo's view through Embedder.onnx and MobileR2L.onnx.

    Sampler.onnx describes an ideal pinhole. A photo's lens may differ, so the points come from the photo's camera. The
    files have a fixed grid, which covers the photo even if its focal length is not the student's.
    """
    h, w = model.sampler.grid.tolist()
    centres = cell_centres(h, w, (model.upscale, model.upscale), camera.device)
    rays = rays_at(camera, torch.zeros(1, dtype=torch.long, device=camera.device), centres[None])
    rays_o, rays_d = student_rays(rays)
    points = model.sampler.points(rays_o, rays_d).reshape(1, 1, -1, 3 * model.config.num_points)
    return torch.from_numpy(renderer.render_points(points.numpy()))


def _precision_loss(renderer: Renderer, model: MobileR2LModel, camera: Cameras, photo: Float[Tensor, "H W 3"]) -> float:
    """PSNR in dB against a photo that pipeline.onnx loses to the student, at the photo's pose.

    Both render with the student's own pinhole, so that the photo's lens has the same effect on both.
    """
    c2w = camera.camera_to_worlds[0].cpu()
    return psnr(model.render_pose(c2w), photo) - psnr(torch.from_numpy(renderer.render(c2w.numpy())), photo)


def _mean(values: Iterable[float]) -> float:
    return round(float(np.mean(list(values))), 4)


def draw_sheet(views: List[HeldOutView], title: str) -> Image.Image:
    """A table of images with captions: a row for each view, and the student's error in the last column.

    Args:
        views: At least one; at most MAX_ROWS are drawn.
        title: Heading.
    """
    names = ["photo", *views[0].renders, "error"]
    height, width = views[0].photo.shape[:2]
    scale = max(1, round(240 / max(height, width)))
    cell_w, cell_h, gap, caption, head = width * scale, height * scale, 8, 22, 58
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
            cell = _to_pil(_cell(view, name)).resize((cell_w, cell_h), Image.Resampling.NEAREST)
            sheet.paste(cell, (left, top))
            draw.text((left, top + cell_h + 2), _caption(view, name), "black", font)
    return sheet


def _cell(view: HeldOutView, name: str) -> Float[Tensor, "H W 3"]:
    if name == "photo":
        return view.photo
    if name != "error":
        return view.renders[name]
    error = (view.renders["student"] - view.photo).abs().mean(-1, keepdim=True)
    return colormaps.apply_float_colormap((error / ERROR_FULL_SCALE).clamp(0, 1), "inferno")


def _caption(view: HeldOutView, name: str) -> str:
    if name == "photo":
        return view.name
    return "" if name == "error" else f"{psnr(view.renders[name], view.photo):.2f} dB"


def _to_pil(image: Float[Tensor, "H W 3"]) -> Image.Image:
    return Image.fromarray((image.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
