"""What distillation costs: the published recipe against ours, on one scene, in one run; or ours on a real capture.

    python scripts/bench_distillation.py                 recipes on the demo scene, ray-traced exactly, no photos
    python scripts/bench_distillation.py --setting gpu   the same at 800x800 with the full network
    python scripts/bench_distillation.py --data DIR      our student of a trained teacher, against held-out photos

All methods run through their own nerfstudio trainer, from the same poses, with networks of one size. The clock of a
run starts before its datamanager is built, so everything that the teacher renders is counted; only the scoring of
held-out views is left out. Held-out views are never used for a decision.
"""

import copy
import json
import random
import resource
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Callable, Dict, List, Literal, Optional, Tuple

import numpy as np
import torch
import tyro
from bench_teacher import device_name
from demo_scene.cameras import CAMERA_ANGLE_X, cameras
from demo_scene.island import diorama
from demo_scene.tracer import Scene
from make_demo_scene import make_demo_scene
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.callbacks import TrainingCallbackLocation
from nerfstudio.utils import writer
from rich.console import Console
from rich.table import Table

from mobiler2l_ns import method_configs
from mobiler2l_ns.cameras import cell_centres, pinhole_cameras, rays_at
from mobiler2l_ns.data.photos import load_photos
from mobiler2l_ns.datamanager import DistillationDataManager
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export.comparison import held_out_dataset
from mobiler2l_ns.student.network import NetworkConfig, count_parameters
from mobiler2l_ns.trainer import DistillationTrainer, DistillationTrainerConfig
from mobiler2l_ns.training.metrics import psnr, ssim

console = Console()


@dataclass
class Setting:
    """Sizes of the comparison of recipes."""

    size: int
    """Width and height of the pictures in pixels."""
    network: NetworkConfig
    ours: str
    """Name of our method."""
    paper_steps: int
    paper_frames: int
    """Pseudo views of the published recipe, all rendered before its first step."""
    test_views: int = 24


SETTINGS = {
    "cpu": Setting(160, method_configs.mobiler2l_small.config.pipeline.model.network, "mobiler2l-small", 1500, 300, 16),
    "gpu": Setting(800, NetworkConfig(), "mobiler2l", 20000, 2000),
}


@dataclass
class Options:
    """Command line."""

    setting: Literal["cpu", "gpu"] = "cpu"
    """Sizes of the comparison of recipes."""
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
    """Width and height of the student's picture of the capture; left out: the photos' size."""
    output: Path = Path("docs/benchmarks")
    """Where JSON and plot go."""
    name: Optional[str] = None
    """Name of the files; left out: after what was measured."""


class Island:
    """The demo scene as an exact teacher, ray-traced.

    Args:
        seed: Of the places inside the pixels where rays go.
        side: Each pixel gets side x side rays.
    """

    def __init__(self, seed: int, side: int = 1):
        self.scene, self.rng, self.side = Scene(diorama()), np.random.default_rng(seed), side

    def render(self, camera: Cameras) -> torch.Tensor:
        """The picture (H, W, 3) on white."""
        height, width, n = int(camera.height), int(camera.width), self.side**2
        part = cell_centres(self.side, self.side, (1 / self.side, 1 / self.side)).view(n, 1, 1, 2)
        inside = torch.from_numpy(self.rng.uniform(size=(n, height, width, 2)) - 0.5).float() / self.side
        origin, directions, _ = self._rays(camera, cell_centres(height, width, (1, 1)) - 0.5 + part + inside)
        face, weights = self.scene.hits(origin, directions)
        hit, colours = face >= 0, np.ones((len(face), 3), np.float32)
        colours[hit] = self.scene.colours(origin, directions[hit], face[hit], weights[hit])
        return torch.from_numpy(colours).view(n, height, width, 3).mean(0).to(camera.device)

    def surface_depths(self, camera: Cameras) -> torch.Tensor:
        """z (N,) of the surfaces that pixel centres see."""
        origin, directions, norm = self._rays(camera, cell_centres(int(camera.height), int(camera.width), (1, 1))[None])
        face, _ = self.scene.hits(origin, directions)
        hit = face >= 0
        return torch.from_numpy(self.scene.distance(origin, directions[hit], face[hit]) / norm[hit]).float()

    @staticmethod
    def _rays(camera: Cameras, coords: torch.Tensor):
        bundle = rays_at(camera.to("cpu"), torch.zeros(len(coords), dtype=torch.long), coords).flatten()
        norm = bundle.metadata["directions_norm"][:, 0].numpy()
        return bundle.origins[0].double().numpy(), bundle.directions.double().numpy(), norm


class IslandDataManager(DistillationDataManager):
    """The student's datamanager with the exact teacher."""

    def _adopt_teacher(self, config) -> bool:
        return False

    @cached_property
    def teacher(self) -> Island:
        return Island(int(torch.initial_seed() % 2**31))


@dataclass
class Score:
    """One point of a curve."""

    step: int
    seconds: float
    views: int
    """Teacher views rendered so far, in whole pictures."""
    psnr: float


@dataclass
class Run:
    """One training run and its curve."""

    method: str
    seed: int
    steps: int
    parameters: int = 0
    seconds: float = 0.0
    teacher_seconds: float = 0.0
    pool_bytes: int = 0
    curve: List[Score] = field(default_factory=list)

    def first_at(self, level: float) -> Optional[Score]:
        """The first point of the curve at or above a PSNR."""
        return next((score for score in self.curve if score.psnr >= level), None)


def train(
    config: DistillationTrainerConfig,
    seed: int,
    score: Callable[[DistillationTrainer], float],
    num_scores: int,
    also_at: Tuple[int, ...] = (),
) -> Tuple[Run, DistillationTrainer]:
    """Trains a student through its nerfstudio trainer.

    Args:
        config: Its method's config.
        seed: Of all random numbers.
        score: PSNR of the student in its present state; its seconds do not count.
        num_scores: How many points the curve has, evenly spaced in steps.
        also_at: Numbers of steps with a point of their own.

    Returns:
        The run's figures and the trainer.
    """
    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(seed)
    steps = config.max_num_iterations
    run = Run(config.method_name, seed, steps)
    start = time.perf_counter()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup("val")
    datamanager, model = trainer.pipeline.datamanager, trainer.pipeline.model
    run.parameters = count_parameters(model.network)
    trainer.stop_training = False
    scored = 0.0
    for step in range(steps):
        trainer.step = step
        trainer.pipeline.train()
        for callback in trainer.callbacks:
            callback.run_callback_at_location(step, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
        trainer.train_iteration(step)
        for callback in trainer.callbacks:
            callback.run_callback_at_location(step, TrainingCallbackLocation.AFTER_TRAIN_ITERATION)
        last = step + 1 == steps or trainer.stop_training
        if last or step + 1 in also_at or (step + 1) * num_scores // steps > step * num_scores // steps:
            pause = time.perf_counter()
            statistics = datamanager.statistics()
            tile = statistics["view_height"] * statistics["view_width"] / (datamanager.size[0] * datamanager.size[1])
            model.eval()
            with torch.no_grad():
                value = score(trainer)
            model.train()
            run.seconds = pause - start - scored
            views = round(statistics["views"] * tile)
            run.curve.append(Score(step + 1, round(run.seconds, 2), views, round(value, 3)))
            console.print(f"  step {step + 1}, {run.seconds:.0f} s, {views} teacher views: {value:.2f} dB")
            pause = time.perf_counter() - pause
            scored += pause
            datamanager.exclude(pause)
        if last:
            break
    writer.EVENT_WRITERS.clear()  # nerfstudio keeps them for good; the folder that they write to will be gone
    run.seconds = round(run.seconds, 2)
    run.teacher_seconds, run.pool_bytes = datamanager.statistics()["teacher_seconds"], datamanager.statistics()["bytes"]
    return run, trainer


# -- recipes on the exact scene ---------------------------------------------------------------------------------------


def device_type() -> str:
    """Where everything runs."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def method_config(method: str, data: Path, parser, outputs: Path) -> DistillationTrainerConfig:
    """A method's config for a capture, without export."""
    config = copy.deepcopy(getattr(method_configs, method.replace("-", "_")).config)
    config.machine.device_type, config.vis = device_type(), "tensorboard"
    config.data, config.output_dir, config.pipeline.model.export_when_done = data, outputs, False
    config.pipeline.datamanager.data, config.pipeline.datamanager.dataparser = data, parser
    return config


def recipe(method: str, setting: Setting, scene: Path, outputs: Path) -> DistillationTrainerConfig:
    """A method's config for the exact scene: its own recipe, the setting's network, no photos."""
    config = method_config(method, scene, BlenderDataParserConfig(data=scene), outputs)
    old, network = config.pipeline.model.network, copy.deepcopy(setting.network)
    network.batch_norm, network.activation = old.batch_norm, old.activation
    config.pipeline.model.network = network
    config.pipeline.finetuning.steps, config.pipeline.model.outputs = 0, "rgb"
    datamanager = config.pipeline.datamanager
    datamanager._target, datamanager.photo_share = IslandDataManager, 0.0
    datamanager.teacher = scene / "config.yml"  # only a name: the data manager brings its own teacher
    return config


def paper(setting: Setting, scene: Path, outputs: Path, steps: int) -> DistillationTrainerConfig:
    """The published recipe with as many pixels a step as ours, and its pseudo data scaled to the run's length."""
    config, ours = (recipe(name, setting, scene, outputs) for name in ("mobiler2l-paper", setting.ours))
    datamanager, other = config.pipeline.datamanager, ours.pipeline.datamanager
    cells = setting.size // setting.network.upscale
    datamanager.patches_per_batch = round(other.patches_per_batch * other.patch_cells**2 / cells**2)
    datamanager.pool_views = datamanager.initial_views = setting.paper_frames
    config.max_num_iterations = steps
    return config


def held_out(setting: Setting) -> List[Tuple[Cameras, torch.Tensor]]:
    """Cameras and exact pictures of views that no run is given."""
    focal = 0.5 * setting.size / np.tan(0.5 * CAMERA_ANGLE_X)
    island, views = Island(1, side=2), []
    for matrix in cameras(setting.test_views, False, np.random.default_rng(123)):
        camera = pinhole_cameras(torch.from_numpy(matrix[None, :3]).float(), focal, setting.size, setting.size)
        views.append((camera, island.render(camera)))
    return views


def compare_recipes(options: Options, setting: Setting) -> Dict:
    """Trains both recipes for each seed and returns everything for the JSON file."""
    views, steps = held_out(setting), options.paper_steps or setting.paper_steps

    def score(trainer: DistillationTrainer) -> float:
        render = trainer.pipeline.model.get_outputs_for_camera
        return float(np.mean([psnr(render(camera)["rgb"].cpu().clamp(0, 1), target) for camera, target in views]))

    results = {"speedup_seconds": [], "speedup_steps": [], "gain_db": [], "runs": []}
    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder) / "scene"
        make_demo_scene(scene, resolution=setting.size, num_train=60, num_val=1, num_test=1)
        outputs = Path(folder) / "outputs"
        for seed in options.seeds:
            published, _ = train(paper(setting, scene, outputs, steps), seed, score, 8)
            report(published)
            config = recipe(setting.ours, setting, scene, outputs)
            config.max_num_iterations = steps // 12
            short, _ = train(config, seed, score, 25)
            report(short, "short")
            # As many steps as fit into the published recipe's seconds; a little less, so that it never takes longer.
            config.max_num_iterations = round(0.85 * published.seconds / short.seconds * short.steps)
            full, _ = train(config, seed, score, 10)
            report(full)
            target = published.curve[-1]
            reached = short.first_at(target.psnr) or full.first_at(target.psnr)
            # 0 where ours never got there.
            results["speedup_seconds"].append(round(target.seconds / reached.seconds, 2) if reached else 0.0)
            results["speedup_steps"].append(round(target.step / reached.step, 2) if reached else 0.0)
            in_time = [point.psnr for point in full.curve if point.seconds <= target.seconds]
            results["gain_db"].append(round(in_time[-1] - target.psnr, 2))
            results["runs"] += [{"recipe": name, **asdict(run)} for name, run in
                                (("paper", published), ("ours, short", short), ("ours", full))]  # fmt: skip
    return {"resolution": f"{setting.size}x{setting.size}", "pixels_a_step": pixels_a_step(config), **results}


def pixels_a_step(config: DistillationTrainerConfig) -> int:
    """Output pixels in a batch."""
    datamanager = config.pipeline.datamanager
    return datamanager.patches_per_batch * (datamanager.patch_cells * config.pipeline.model.network.upscale) ** 2


def report(run: Run, note: str = "") -> None:
    """One line a finished run."""
    last = run.curve[-1]
    console.print(
        f"seed {run.seed} {run.method} {note}: {last.psnr:.2f} dB after {last.step} steps, {run.seconds:.0f} s "
        f"({run.teacher_seconds:.0f} s teacher, {last.views} views)"
    )


def recipe_table(results: Dict) -> Table:
    """The comparison, one row a run."""
    table = Table(title=f"{results['resolution']}, {results['pixels_a_step']} pixels a step", title_justify="left")
    for column in ("seed", "recipe", "steps", "seconds", "teacher [s]", "views", "PSNR [dB]"):
        table.add_column(column, justify="left" if column == "recipe" else "right")
    for run in results["runs"]:
        last = run["curve"][-1]
        table.add_row(str(run["seed"]), run["recipe"], str(last["step"]), f"{run['seconds']:.0f}",
                      f"{run['teacher_seconds']:.0f}", str(last["views"]), f"{last['psnr']:.2f}")  # fmt: skip
    table.caption = (
        f"the published recipe's last PSNR in 1/{min(results['speedup_seconds'])} of its seconds and "
        f"1/{min(results['speedup_steps'])} of its steps; at equal seconds +{min(results['gain_db'])} dB (worst seed)"
    )
    return table


# -- a real teacher and photos ----------------------------------------------------------------------------------------


def measure_capture(options: Options) -> Dict:
    """Trains our student on a capture and returns everything for the JSON file."""
    data = options.data.resolve()
    is_blender = (data / "transforms_train.json").is_file()
    parser = BlenderDataParserConfig(data=data) if is_blender else NerfstudioDataParserConfig(data=data)
    photos = None

    def score(trainer: DistillationTrainer) -> float:
        nonlocal photos
        model = trainer.pipeline.model
        if photos is None:
            photos = load_photos(held_out_dataset(trainer.config), *model.size, model.upscale, model.device)
        return float(np.mean([psnr(*pair) for pair in pictures(model.get_outputs_for_camera, photos, "rgb")]))

    with tempfile.TemporaryDirectory() as folder:
        config = method_config(options.method, data, parser, Path(folder))
        config.max_num_iterations = options.steps or config.max_num_iterations
        datamanager = config.pipeline.datamanager
        datamanager.teacher, datamanager.image_size = options.teacher, options.image_size
        first = config.max_num_iterations - config.pipeline.finetuning.steps_of(config.max_num_iterations)
        run, trainer = train(config, options.seeds[0], score, 12, also_at=(first,))
        written = sum(path.stat().st_size for path in Path(folder).rglob("*.np*"))
        teacher = trainer.pipeline.datamanager.teacher
        shown = list(pictures(teacher.render, photos))
    model, statistics = trainer.pipeline.model, trainer.pipeline.datamanager.statistics()
    finished = list(pictures(model.eval().get_outputs_for_camera, photos, "rgb"))
    last_third = [point.psnr for point in run.curve if point.step > 2 / 3 * run.curve[-1].step]
    before = next((point.psnr for point in run.curve if point.step == first), None)
    results = {
        "data": data.name,
        "resolution": f"{model.size[1]}x{model.size[0]}",
        "held_out_photos": len(photos),
        "psnr": {"teacher": mean(psnr, shown), "student": mean(psnr, finished)},
        "ssim": {"teacher": mean(ssim, shown), "student": mean(ssim, finished)},
        "largest_fall_in_last_third_db": round(max(0.0, *(a - b for a, b in zip(last_third, last_third[1:]))), 3),
        "fine_tuning": {"held_out_before": before, "held_out_after": run.curve[-1].psnr},
        "teacher_share": statistics["share_of_training_time"],
        "pool_bytes": statistics["bytes"],
        "pseudo_data_bytes_on_disk": written,
        "runs": [{"recipe": options.method, **asdict(run)}],
    }
    results["gap_db"] = round(results["psnr"]["teacher"] - results["psnr"]["student"], 3)
    return results


def pictures(render: Callable, photos, output: Optional[str] = None):
    """Pairs of a rendered picture and its photo, (H, W, 3) each."""
    for camera, photo in photos:
        with torch.no_grad():
            picture = render(camera)
        picture = picture if output is None else picture[output]
        yield picture.cpu().clamp(0, 1), photo.cpu()


def mean(metric: Callable, pairs: List[Tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Mean of a metric over pairs of pictures."""
    return round(float(np.mean([metric(*pair) for pair in pairs])), 3)


def capture_table(results: Dict) -> Table:
    """What became of the capture."""
    run, tuning = results["runs"][0], results["fine_tuning"]
    table = Table(title=f"{results['data']}, {results['resolution']}, {results['held_out_photos']} held-out photos")
    for column in ("", "PSNR [dB]", "SSIM"):
        table.add_column(column, justify="right" if column else "left")
    for name in ("teacher", "student"):
        table.add_row(name, f"{results['psnr'][name]:.2f}", f"{results['ssim'][name]:.3f}")
    table.caption = (
        f"{run['curve'][-1]['step']} steps in {run['seconds']:.0f} s, {run['teacher_seconds']:.0f} s of them the "
        f"teacher's; fine-tuning {tuning['held_out_before']} -> {tuning['held_out_after']} dB; "
        f"largest fall in the last third {results['largest_fall_in_last_third_db']} dB"
    )
    return table


# -- output -----------------------------------------------------------------------------------------------------------


def machine() -> Dict:
    """What the figures were measured on."""
    return {
        "device": device_name(torch.device(device_type())),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def plot(results: Dict, path: Path) -> None:
    """PSNR against steps, seconds and teacher views."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), sharey=True)
    colours = dict(zip(dict.fromkeys(run["recipe"] for run in results["runs"]), ("tab:gray", "tab:orange", "tab:blue")))
    labelled = set()
    for run in results["runs"]:
        for axis, key in zip(axes, ("step", "seconds", "views")):
            label = None if run["recipe"] in labelled else run["recipe"]
            axis.plot([p[key] for p in run["curve"]], [p["psnr"] for p in run["curve"]], ".-",
                      color=colours[run["recipe"]], label=label if key == "step" else None)  # fmt: skip
            axis.set(xlabel={"step": "steps", "seconds": "seconds, teacher included", "views": "teacher views"}[key])
            axis.grid(alpha=0.3)
        labelled.add(run["recipe"])
    axes[0].set(ylabel=f"held-out PSNR [dB] at {results['resolution']}")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs what the command line asks for."""
    options = tyro.cli(Options, description=__doc__)
    if options.data is None:
        name = options.name or f"distillation-recipes-{options.setting}"
        results = compare_recipes(options, SETTINGS[options.setting])
        console.print(recipe_table(results))
    else:
        if not options.data.is_dir():
            raise UserError(f"there is no folder {options.data}: pass a posed capture with --data.")
        name = options.name or f"distillation-{options.data.resolve().name}"
        results = measure_capture(options)
        console.print(capture_table(results))
    results = {
        "command": " ".join(["python", "scripts/bench_distillation.py", *sys.argv[1:]]),
        "machine": machine(),
        **results,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(results, options.output / f"{name}.png")
    console.print(f"written: {options.output / name}.json and .png")


if __name__ == "__main__":
    main()
