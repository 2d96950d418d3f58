"""Our recipe on the published scenes: the table of the paper with our figures beside it.

    python scripts/bench/published.py --data nerf_synthetic      a folder with the eight synthetic scenes
    python scripts/bench/published.py --data nerf_llff_data      a folder with the eight forward-facing scenes

Each scene is a folder in the format of its data set: transforms_train.json (NeRF-synthetic) or poses_bounds.npy (LLFF).
Teacher and student of each scene are runs in --output. Those that have ended are not trained again, and one that was
interrupted goes on from its last checkpoint. Scores are means over the held-out photos of a scene.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional, Tuple

if __name__ == "__main__":  # modules are found in scripts/, not in scripts/bench/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import tyro
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from bench.common import console, default_device, mean, new_table, with_machine, write_figures
from bench.distillation import pairs, quality, student_pairs
from bench.llff import HELD_OUT_EVERY, convert_llff
from bench.runs import figures_of, trained
from bench.training import method_config
from mobiler2l_ns.data.photos import load_photos
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export.command import load_student
from mobiler2l_ns.export.comparison import held_out_dataset
from mobiler2l_ns.pruning.report import measure
from mobiler2l_ns.run_config import read_config
from mobiler2l_ns.teacher.frozen import FrozenTeacher

PUBLISHED = {"synthetic": 31.34, "forward-facing": 26.15}  # PSNR in dB of MobileR2L: Cao et al., CVPR 2023, Table 1
MARKS = {"transforms_train.json": "synthetic", "poses_bounds.npy": "forward-facing"}
FORWARD_FACING_STRIDES = (2, 2, 3)  # 84x63 rays to 1008x756 pixels, as published; 8 does not divide 756


@dataclass
class Options:
    """Command line."""

    data: Path
    """Folder with a folder for each scene."""
    scenes: Tuple[str, ...] = ()
    """Names of scenes; left out: all."""
    teacher: str = "mobiler2l-teacher"
    """Method of the teachers."""
    method: str = "mobiler2l"
    """Method of the students."""
    teacher_steps: Optional[int] = None
    """Training steps of a teacher; left out: the method's."""
    steps: Optional[int] = None
    """Training steps of a student; left out: the method's."""
    changes: Dict[str, int] = field(default_factory=dict)
    """Fields of the students' datamanager that differ from the method's."""
    output: Path = Path("outputs/bench-published")
    """Folder for the runs."""
    json: Path = Path("docs/benchmarks/published.json")
    """File for the figures."""


def find_scenes(options: Options) -> Dict[str, str]:
    """Kinds of the scenes by name.

    Raises:
        UserError: There are none, or one that was named is missing.
    """
    names = options.scenes or sorted(path.name for path in options.data.glob("*") if path.is_dir())
    found = {}
    for name in names:
        kinds = [kind for mark, kind in MARKS.items() if (options.data / name / mark).is_file()]
        if kinds:
            found[name] = kinds[0]
        elif options.scenes:
            raise UserError(f"{options.data / name} is no scene: it needs {' or '.join(MARKS)}.")
    if not found:
        raise UserError(f"{options.data} has no scenes: name a folder of folders with {' or '.join(MARKS)}.")
    return found


def parser_of(name: str, kind: str, options: Options) -> DataParserConfig:
    """The data parser of a scene; the forward-facing ones are converted first."""
    scene = (options.data / name).resolve()
    if kind == "synthetic":
        return BlenderDataParserConfig(data=scene)
    data = convert_llff(scene, options.output.resolve() / "data" / name)
    return NerfstudioDataParserConfig(
        data=data, downscale_factor=1, eval_mode="interval", eval_interval=HELD_OUT_EVERY
    )  # fmt: skip


def measure_scene(name: str, kind: str, options: Options) -> Dict:
    """Teacher and student of a scene."""
    parser = parser_of(name, kind, options)

    def config_of(method: str, steps: Optional[int]):
        config = method_config(method, parser.data, parser, options.output.resolve())
        config.experiment_name, config.timestamp = name, "published"
        config.max_num_iterations = steps or config.max_num_iterations
        return config

    teacher = trained(config_of(options.teacher, options.teacher_steps))
    config = config_of(options.method, options.steps)
    network = config.pipeline.model.network
    if kind == "forward-facing" and len(network.sr_strides) == len(FORWARD_FACING_STRIDES):
        network.sr_strides = FORWARD_FACING_STRIDES
    datamanager = config.pipeline.datamanager
    datamanager.teacher.load_config = teacher / "config.yml"
    for option, value in options.changes.items():
        setattr(datamanager, option, value)
    student = trained(config)
    return score_scene(teacher, student)


def score_scene(teacher: Path, student: Path) -> Dict:
    """Quality of both runs on all held-out photos, and their times."""
    model, config = load_student(student / "config.yml").model.to(default_device()), read_config(student / "config.yml")
    photos = load_photos(held_out_dataset(config), *model.size, model.upscale, model.device)
    frozen = FrozenTeacher(teacher / "config.yml", model.device)
    found = {"teacher": quality(pairs(frozen.render, photos)), "student": quality(student_pairs(model, photos))}
    figures = measure(model)
    return {
        "photos": len(photos),
        "resolution": f"{model.size[1]}x{model.size[0]}",
        **{f"{name}_{metric}": value for name, scores in found.items() for metric, value in scores.items()},
        "teacher_seconds": figures_of(teacher)["seconds"],
        "student_seconds": figures_of(student)["seconds"],
        "megabytes_fp16": figures.megabytes_fp16,
        "gmac": figures.gmac,
    }


def measure_all(options: Options) -> Dict[str, Dict]:
    """Figures of all scenes; one that cannot be measured has an error, and the others go on."""
    found = {}
    for name, kind in find_scenes(options).items():
        try:
            found[name] = {"kind": kind, **measure_scene(name, kind, options)}
        except UserError as error:
            found[name] = {"kind": kind, "error": str(error)}
            console.print(f"{name}: {error}")
        except torch.cuda.OutOfMemoryError:
            found[name] = {"kind": kind, "error": "the GPU has too little memory"}
            console.print(f"{name}: the GPU has too little memory: pass fewer patches or pool views with --changes.")
        write_figures(with_machine({"scenes": found, "means": means(found)}, default_device()), options.json)
    return found


def means(scenes: Dict[str, Dict]) -> Dict[str, Dict]:
    """Means over the scenes of a kind, beside the published PSNR."""
    found = {}
    for kind, published in PUBLISHED.items():
        rows = [row for row in scenes.values() if row["kind"] == kind and "error" not in row]
        if rows:
            keys = [key for key, value in rows[0].items() if isinstance(value, float)]
            found[kind] = {**{key: mean(row[key] for row in rows) for key in keys}, "published_psnr": published}
    return found


def print_table(scenes: Dict[str, Dict]) -> None:
    """A row for each scene, and the means beside the published ones."""
    table = new_table("published scenes", "scene", "teacher [dB]", "student [dB]", "SSIM", "minutes", "MobileR2L [dB]")
    for name, row in scenes.items():
        table.add_row(name, *([row["error"]] if "error" in row else cells(row)))
    for kind, row in means(scenes).items():
        table.add_row(f"mean, {kind}", *cells(row), f"{row['published_psnr']:.2f}")
    console.print(table)


def cells(row: Dict) -> List[str]:
    """The numbers of a row."""
    minutes = (row["teacher_seconds"] + row["student_seconds"]) / 60
    return [f"{row['teacher_psnr']:.2f}", f"{row['student_psnr']:.2f}", f"{row['student_ssim']:.3f}", f"{minutes:.1f}"]


def main() -> None:
    """Measures, prints and writes."""
    options = tyro.cli(Options, description=__doc__)
    if not options.data.is_dir():
        raise UserError(f"there is no folder {options.data}: pass the folder of the scenes with --data.")
    scenes = measure_all(options)
    print_table(scenes)
    if any("error" in row for row in scenes.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
