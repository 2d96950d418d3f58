"""The published recipe against ours on the demo scene, whose teacher is exact and which has no photos here."""

import copy
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import numpy as np
import torch
from demo_scene.cameras import CAMERA_ANGLE_X, cameras
from make_demo_scene import make_demo_scene
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from rich.table import Table

from bench.common import console, new_table
from bench.exact_teacher import ExactTeacher, ExactTeacherConfig
from bench.training import Run, ScoreFunction, method_config, train
from mobiler2l_ns import method_configs
from mobiler2l_ns.cameras import pinhole_cameras
from mobiler2l_ns.student.network import NetworkConfig
from mobiler2l_ns.trainer import DistillationTrainer, DistillationTrainerConfig
from mobiler2l_ns.training.metrics import psnr


@dataclass
class Setting:
    """Sizes of the comparison of recipes."""

    size: int
    """Width and height of the views in pixels."""
    network: NetworkConfig
    ours: str
    """Name of our method."""
    paper_steps: int
    paper_views: int
    """Teacher views of the published recipe, all rendered before its first step."""
    patches: int
    """Patches in a batch of ours: about as many pixels as the published recipe's whole images."""
    test_views: int = 24


SETTINGS = {
    "cpu": Setting(
        160, method_configs.mobiler2l_small.config.pipeline.model.network, "mobiler2l-small", 1500, 300, 30, 16
    ),
    "gpu": Setting(800, NetworkConfig(), "mobiler2l", 20000, 2000, 100),
}


def recipe(method: str, setting: Setting, scene: Path, outputs: Path) -> DistillationTrainerConfig:
    """A method's config for the exact scene: its own recipe, the setting's network, no photos."""
    config = method_config(method, scene, BlenderDataParserConfig(data=scene), outputs)
    old, network = config.pipeline.model.network, copy.deepcopy(setting.network)
    network.batch_norm, network.activation = old.batch_norm, old.activation
    config.pipeline.model.network = network
    config.pipeline.finetuning.steps, config.pipeline.model.outputs = 0, "rgb"
    datamanager = config.pipeline.datamanager
    datamanager.teacher = ExactTeacherConfig(load_config=scene / "config.yml")
    datamanager.photo_share = datamanager.reprojected_share = 0.0
    if method == setting.ours:
        datamanager.patches_per_batch = setting.patches
    return config


def paper(setting: Setting, scene: Path, outputs: Path, steps: int) -> DistillationTrainerConfig:
    """The published recipe with as many pixels a step as ours, and its teacher views scaled to the run's length."""
    config, ours = (recipe(name, setting, scene, outputs) for name in ("mobiler2l-paper", setting.ours))
    datamanager, other = config.pipeline.datamanager, ours.pipeline.datamanager
    cells = setting.size // setting.network.upscale
    datamanager.patches_per_batch = round(other.patches_per_batch * other.patch_cells**2 / cells**2)
    datamanager.pool_views = datamanager.initial_views = setting.paper_views
    config.max_num_iterations = steps
    return config


def held_out(setting: Setting) -> List[Tuple[Cameras, torch.Tensor]]:
    """Cameras and exact images (H, W, 3) of views that no run is given."""
    focal = 0.5 * setting.size / np.tan(0.5 * CAMERA_ANGLE_X)
    teacher, views = ExactTeacher(1, side=2), []
    for matrix in cameras(setting.test_views, False, np.random.default_rng(123)):
        camera = pinhole_cameras(torch.from_numpy(matrix[None, :3]).float(), focal, setting.size, setting.size)
        views.append((camera, teacher.render(camera)))
    return views


def compare_recipes(setting: Setting, seeds: Tuple[int, ...], paper_steps: Optional[int]) -> Dict:
    """Trains both recipes for each seed.

    Args:
        setting: Sizes.
        seeds: One comparison each.
        paper_steps: Length of the published recipe's run; None: the setting's.

    Returns:
        Everything for the JSON file.
    """
    views = held_out(setting)

    def score(trainer: DistillationTrainer) -> float:
        render = trainer.pipeline.model.get_outputs_for_camera
        return float(np.mean([psnr(render(camera)["rgb"].cpu().clamp(0, 1), target) for camera, target in views]))

    results = {"speedup_seconds": [], "speedup_steps": [], "gain_db": [], "runs": []}
    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder) / "scene"
        make_demo_scene(scene, resolution=setting.size, num_train=60, num_val=1, num_test=1)
        for seed in seeds:
            runs = train_both(setting, seed, score, scene, paper_steps or setting.paper_steps)
            for name, value in compare(*runs.values()).items():
                results[name].append(value)
            results["runs"] += [{"recipe": name, **asdict(run)} for name, run in runs.items()]
        pixels = pixels_a_step(recipe(setting.ours, setting, scene, scene))
    return {"resolution": f"{setting.size}x{setting.size}", "pixels_a_step": pixels, **results}


def train_both(setting: Setting, seed: int, score: ScoreFunction, scene: Path, steps: int) -> Dict[str, Run]:
    """The published recipe, ours for an eighteenth of its steps, and ours for about as many seconds."""
    outputs = scene.parent / "outputs"
    published, _ = train(paper(setting, scene, outputs, steps), seed, score, 8)
    report(published)
    config = recipe(setting.ours, setting, scene, outputs)
    config.max_num_iterations = steps // 18
    short, _ = train(config, seed, score, 25)
    report(short, "short")
    # As many steps as fit into the published recipe's seconds; a little less, so that it never takes longer.
    first, last = short.curve[0], short.curve[-1]
    seconds_a_step = (last.seconds - first.seconds) / (last.step - first.step)
    config.max_num_iterations = round(0.85 * (published.seconds - first.seconds) / seconds_a_step)
    full, _ = train(config, seed, score, 10)
    report(full)
    return {"paper": published, "ours, short": short, "ours": full}


def compare(published: Run, short: Run, full: Run) -> Dict[str, float]:
    """How much sooner ours has the published recipe's last PSNR (0: never), and what it gains in equal seconds."""
    target = published.curve[-1]
    reached = short.first_at(target.psnr) or full.first_at(target.psnr)
    in_time = [point.psnr for point in full.curve if point.seconds <= target.seconds]
    return {
        "speedup_seconds": round(target.seconds / reached.seconds, 2) if reached else 0.0,
        "speedup_steps": round(target.step / reached.step, 2) if reached else 0.0,
        "gain_db": round(in_time[-1] - target.psnr, 2),
    }


def pixels_a_step(config: DistillationTrainerConfig) -> int:
    """Output pixels in a batch."""
    datamanager = config.pipeline.datamanager
    return datamanager.patches_per_batch * (datamanager.patch_cells * config.pipeline.model.network.upscale) ** 2


def report(run: Run, note: str = "") -> None:
    """Prints one line about a finished run."""
    last = run.curve[-1]
    console.print(
        f"seed {run.seed} {run.method} {note}: {last.psnr:.2f} dB after {last.step} steps, {run.seconds:.0f} s "
        f"({run.teacher_seconds:.0f} s teacher, {last.views} views)"
    )


def recipe_table(results: Dict) -> Table:
    """The comparison, one row a run."""
    title = f"{results['resolution']}, {results['pixels_a_step']} pixels a step"
    table = new_table(title, "recipe", "seed", "steps", "seconds", "teacher [s]", "views", "PSNR [dB]")
    for run in results["runs"]:
        last = run["curve"][-1]
        table.add_row(run["recipe"], str(run["seed"]), str(last["step"]), f"{run['seconds']:.0f}",
                      f"{run['teacher_seconds']:.0f}", str(last["views"]), f"{last['psnr']:.2f}")  # fmt: skip
    table.caption = (
        f"the published recipe's last PSNR in 1/{min(results['speedup_seconds'])} of its seconds and "
        f"1/{min(results['speedup_steps'])} of its steps; at equal seconds +{min(results['gain_db'])} dB (worst seed)"
    )
    return table
