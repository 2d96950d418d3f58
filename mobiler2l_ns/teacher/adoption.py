"""Which run teaches a student, and whether it fits the student's capture.

A run fits if it lives in the same world (the same data parser with the same options) and shows the same scene.
"""

import copy
from pathlib import Path
from typing import Any, Iterable, NamedTuple, Optional, Tuple

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig, DataparserOutputs
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from mobiler2l_ns.checkpoints import checkpoint_paths, find_runs, load_dataparser_transform
from mobiler2l_ns.errors import UntrustedFile, UserError
from mobiler2l_ns.run_config import read_config
from mobiler2l_ns.teacher.kinds import check_teacher
from mobiler2l_ns.teacher.teacher import Teacher


class Adoption(NamedTuple):
    """The part of a teacher's run that a student takes over."""

    dataparser: DataParserConfig
    """The data parser that both live in one world with."""
    is_of_other_data: bool
    """Whether the teacher was trained on another folder."""


def adopt(config_path: Path, data: Path, dataparser: DataParserConfig, device) -> Adoption:
    """Takes over the data parser of a teacher unless the command line named one.

    Args:
        config_path: The teacher's config.yml.
        data: The student's capture.
        dataparser: The student's data parser.
        device: Where the teacher renders.

    Raises:
        UserError: The run cannot be a teacher, or not on this device.
    """
    teacher = read_config(config_path)
    check_teacher(config_path, teacher, device)
    datamanager: Any = teacher.pipeline.datamanager
    parser = datamanager.dataparser
    teacher_data = datamanager.data or teacher.data or parser.data
    if type(dataparser)() == _with_data(dataparser, type(dataparser)().data):  # no option was given
        dataparser = _with_data(parser, data)
        if hasattr(parser, "load_3D_points"):
            # Gaussians start at these points; reading them may ask the user to convert them.
            setattr(dataparser, "load_3D_points", False)  # noqa: B010 (an option of some parsers only)
    return Adoption(dataparser, Path(teacher_data).resolve() != data.resolve())


def _with_data(parser: DataParserConfig, data: Path) -> DataParserConfig:
    """A copy of a data parser's config for another folder."""
    parser = copy.deepcopy(parser)
    parser.data = data
    return parser


def check_same_world(config_path: Path, outputs: DataparserOutputs, data: Path) -> None:
    """Raises UserError if a teacher's pose transform or scale differs from the student's.

    Args:
        config_path: The teacher's config.yml.
        outputs: What the student's data parser returned.
        data: The student's capture.
    """
    saved = load_dataparser_transform(config_path)
    if saved is None:
        return
    transform, scale = saved
    same = torch.allclose(outputs.dataparser_transform.cpu().float(), transform.float(), atol=1e-4)
    if not same or abs(outputs.dataparser_scale - scale) > 1e-4 * abs(scale):
        raise UserError(
            f"{config_path} was trained in another world than {data} (pose transform or scale differ): pass a teacher "
            "of this capture, or leave the data parser's options as the teacher's."
        )


def check_same_scene(
    teacher: Teacher, photos: Iterable[Tuple[Cameras, Float[Tensor, "H W 3"]]], config_path: Path, data: Path
) -> None:
    """Raises UserError if a teacher's views are farther from the photos than one flat colour.

    Args:
        teacher: The teacher.
        photos: A few small photos and their cameras (1,).
        config_path: The teacher's config.yml.
        data: The student's capture.
    """
    target = torch.stack([photo for _, photo in photos])
    views = torch.stack([teacher.render(camera) for camera, _ in photos]).to(target)
    if (views - target).square().mean() > (target - target.mean(dim=(0, 1, 2))).square().mean():
        raise UserError(
            f"{config_path} shows another scene than the photos in {data}: pass a teacher of this capture with "
            "--pipeline.datamanager.teacher.load-config."
        )


def resolve_teacher(teacher: Optional[Path], data: Path, outputs: Path) -> Path:
    """The config.yml of the teacher to use: the given one, or the newest run on the same data.

    Args:
        teacher: A run's config.yml or folder, or None.
        data: The student's capture.
        outputs: Where runs are looked for.

    Raises:
        UserError: The given teacher cannot be used, or none is found.
    """
    if teacher is not None:
        path = teacher / "config.yml" if teacher.is_dir() else teacher
        config = read_config(path)
        if _is_student(config):
            raise UserError(f"{path} is a student, not a teacher: pass the config.yml of a radiance field.")
        return path
    for path in find_runs(outputs):
        try:
            config = read_config(path)
        except UntrustedFile as error:
            CONSOLE.print(f"Skipped: {error}")
            continue
        except UserError:
            continue  # a run of another project, or an unfinished one
        run_data = config.pipeline.datamanager.data or config.data
        same_data = run_data is not None and Path(run_data).resolve() == data.resolve()
        if same_data and not _is_student(config) and checkpoint_paths(path, config):
            CONSOLE.print(f"Teacher: {path} (the newest run on {data})")
            return path
    raise UserError(
        f"no teacher for {data} was found in {outputs}/: train one with `ns-train mobiler2l-teacher --data {data}`, "
        "or pass a run's config.yml with --pipeline.datamanager.teacher.load-config."
    )


def _is_student(config) -> bool:
    return hasattr(config.pipeline.datamanager, "teacher")
