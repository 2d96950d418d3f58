"""A forward-facing capture: the demo island, towers behind it and a far wall, ray-traced exactly.

All cameras stand on a plane and look the same way. The wall is 64 times as far away as the nearest surface.
"""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Dict, List, Tuple

import numpy as np
import torch
from demo_scene.island import diorama
from demo_scene.shapes import BLUE, CREAM, GREEN, ORANGE, PINK, PURPLE, RED, SKY, WHITE, YELLOW, Part, cycle, moved
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image
from rich.table import Table
from trimesh.creation import box

from bench.common import mean, new_table
from bench.exact_teacher import ExactTeacher, ExactTeacherConfig
from bench.training import Run, method_config, train
from mobiler2l_ns.cameras import pinhole_cameras
from mobiler2l_ns.data.photos import load_photos
from mobiler2l_ns.export.comparison import held_out_dataset
from mobiler2l_ns.trainer import DistillationTrainer, DistillationTrainerConfig
from mobiler2l_ns.training.metrics import psnr

WIDTH, HEIGHT, FOCAL = 240, 180, 220.0
NUM_PHOTOS, NUM_VIEWS, STEPS, PATCHES, PATCH_SIDE = 30, 220, 400, 14, 96
CAMERA_Y, WALL_Y = -2.5, 82.0  # the island's edge is 1.3 in front of the cameras


def parts() -> List[Part]:
    """The island, eight towers behind it, and the wall."""
    towers = [
        Part(moved(box((0.16 * y, 0.16 * y, 0.5 * y)), x * y, y, 0.1 * y), bricks(0.05 * y, *colours))
        for x, y, colours in (
            (-0.55, 2.2, (RED, CREAM)), (0.5, 2.8, (BLUE, WHITE)), (-0.1, 4.0, (GREEN, YELLOW)),
            (0.75, 5.5, (PURPLE, PINK)), (-0.8, 7.0, (ORANGE, SKY)), (0.25, 10.0, (RED, WHITE)),
            (-0.4, 15.0, (BLUE, YELLOW)), (0.6, 22.0, (GREEN, CREAM)),
        )
    ]  # fmt: skip
    wall = Part(moved(box((200, 1, 160)), 0, WALL_Y + 0.5, 0), bricks(6.0, RED, SKY, YELLOW, BLUE, WHITE, GREEN, PINK))
    return [*diorama(), *towers, wall]


def bricks(width: float, *colours: np.ndarray):
    """Squares on the upright sides of a thing, ``width`` wide, in an order that does not repeat soon."""

    def paint(p: np.ndarray) -> np.ndarray:
        column, row = (np.floor(p[:, axis] / width) for axis in (0, 2))
        side = np.floor(p[:, 1] / width)
        return cycle(np.abs(5 * column + 3 * side + 7 * row + row * row), *colours)

    return paint


class ForwardFacingTeacherConfig(ExactTeacherConfig):
    """Plugs the scene into the student's datamanager."""

    def setup(self, device) -> ExactTeacher:
        """A teacher with the seed of the run."""
        return ExactTeacher(int(torch.initial_seed() % 2**31), parts=parts())


def write_capture(folder: Path) -> None:
    """Photos with four rays a pixel and their transforms.json."""
    (folder / "images").mkdir(parents=True)
    teacher, frames = ExactTeacher(1, side=2, parts=parts()), []
    for index, c2w in enumerate(poses(NUM_PHOTOS)):
        view = teacher.render(pinhole_cameras(c2w[None], FOCAL, HEIGHT, WIDTH))
        name = f"images/{index:03d}.png"
        Image.fromarray((view * 255).round().byte().numpy()).save(folder / name)
        frames.append({"file_path": name, "transform_matrix": [*c2w.tolist(), [0.0, 0.0, 0.0, 1.0]]})
    camera = {"w": WIDTH, "h": HEIGHT, "fl_x": FOCAL, "fl_y": FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2}
    (folder / "transforms.json").write_text(json.dumps({**camera, "frames": frames}))


def poses(count: int) -> torch.Tensor:
    """Cameras (count, 3, 4) on a plane, that look along +y."""
    rng = np.random.default_rng(5)
    columns = int(np.ceil(np.sqrt(count * 1.5)))
    c2w = torch.zeros(count, 3, 4)
    c2w[:, 0, 0], c2w[:, 2, 1], c2w[:, 1, 2] = 1, 1, -1  # right: x, up: z, back: -y
    for index in range(count):
        column, row = index % columns, index // columns
        x, z = (np.array([column, row]) + rng.uniform(-0.3, 0.3, 2)) / (columns - 1) - [0.5, 0.25]
        c2w[index, :, 3] = torch.tensor([1.6 * x, CAMERA_Y, 0.45 + 1.2 * z])
    return c2w


@dataclass
class Variant:
    """A student to compare."""

    name: str
    surface: bool
    """With the method's surface code, reprojected views and losses; without them half of each batch are photos."""
    published_cells: bool
    """Cells of 12x12 pixels, as published for such captures, instead of the method's own of 4x4."""


VARIANTS = (
    Variant("x12, no surface code", False, True),
    Variant("x12", True, True),
    Variant("x4, as mobiler2l-small", True, False),
)


def config_of(variant: Variant, capture: Path, outputs: Path) -> DistillationTrainerConfig:
    """mobiler2l-small with a fixed set of views. Patches of all variants have as many pixels."""
    parser = NerfstudioDataParserConfig(
        data=capture, orientation_method="none", center_method="none", auto_scale_poses=False
    )
    config = method_config("mobiler2l-small", capture, parser, outputs)
    config.max_num_iterations, config.pipeline.finetuning.steps = STEPS, 0
    model, datamanager = config.pipeline.model, config.pipeline.datamanager
    if variant.published_cells:
        model.network.sr_strides, model.network.sr_widths = (2, 2, 3), (48, 32, 16)
    datamanager.teacher = ForwardFacingTeacherConfig(load_config=capture / "config.yml")
    datamanager.pool_views = datamanager.initial_views = NUM_VIEWS
    datamanager.teacher_share = datamanager.filling_share = 0.0
    datamanager.patches_per_batch, datamanager.tile_cells = PATCHES, None
    datamanager.patch_cells = PATCH_SIDE // model.network.upscale
    if not variant.surface:
        model.surface_octaves, model.structure_weight = 0, 0.0
        datamanager.photo_share, datamanager.reprojected_share, datamanager.photo_depth = 0.5, 0.0, False
    return config


def compare_forward_facing(seeds: Tuple[int, ...]) -> Dict:
    """Trains all variants for each seed.

    Returns:
        Everything for the JSON file.
    """
    runs: List[Tuple[str, Run]] = []
    with tempfile.TemporaryDirectory() as folder:
        capture = Path(folder) / "capture"
        write_capture(capture)

        def score(trainer: DistillationTrainer) -> float:
            model = trainer.pipeline.model
            photos = load_photos(held_out_dataset(trainer.config), *model.size, model.upscale, model.device)
            return float(np.mean([psnr(model.get_outputs_for_camera(c)["rgb"].clamp(0, 1), p) for c, p in photos]))

        for seed in seeds:
            for variant in VARIANTS:
                run, _ = train(config_of(variant, capture, Path(folder) / "outputs"), seed, score, 4)
                runs.append((variant.name, run))
    return {
        "resolution": f"{WIDTH}x{HEIGHT}",
        "psnr": {name: [run.curve[-1].psnr for other, run in runs if other == name] for name, _ in runs},
        "runs": [{"recipe": name, **asdict(run)} for name, run in runs],
    }


def forward_facing_table(results: Dict) -> Table:
    """One row a run."""
    table = new_table(results["resolution"], "student", "seed", "steps", "seconds", "teacher [s]", "PSNR [dB]")
    for run in results["runs"]:
        last = run["curve"][-1]
        table.add_row(run["recipe"], str(run["seed"]), str(last["step"]), f"{run['seconds']:.0f}",
                      f"{run['teacher_seconds']:.0f}", f"{last['psnr']:.2f}")  # fmt: skip
    table.caption = "mean: " + "; ".join(f"{name} {mean(values):.2f} dB" for name, values in results["psnr"].items())
    return table
