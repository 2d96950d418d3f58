"""Fixtures that several test modules use: captures, an analytic teacher, tiny students, and a browser."""

import copy
import functools
import importlib.util
import json
import math
import sys
from pathlib import Path

import browser
import pytest
import quick_stack  # noqa: F401  (before nerfstudio is imported)
import torch
import yaml
from builders import StubTeacher, stub_teacher_config, tiny_student
from commands import build_once, student, workspace  # noqa: F401  (fixtures)
from PIL import Image
from playwright.sync_api import sync_playwright

from mobiler2l_ns.cameras import pinhole_cameras
from mobiler2l_ns.geometry import look_at
from mobiler2l_ns.teacher import fast_nerfacto
from mobiler2l_ns.teacher.frozen import TeacherConfig

SCRIPT = Path(__file__).parents[1] / "scripts" / "make_demo_scene.py"

# Files that take minutes come first, so that both test processes end at about the same time.
LONGEST = (
    "test_web", "test_coreml", "test_commands", "test_verification", "test_method_configs", "test_export",
    "test_bench_pruning", "test_process_data", "test_output_folder", "test_surface", "test_notebook", "test_resume",
)  # fmt: skip

ANGLE = 2 * math.atan(0.36)  # the demo scene's field of view: focal is 16 / 0.36 = 44.44 for 32 pixels
SPLITS = {"train": 8, "val": 2, "test": 2}


def pytest_collection_modifyitems(items):
    """The longest files first, the others in their order."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(scope="session", autouse=True)
def coarse_density_grids():
    """Teachers that tests load in their own process are ready at once, not after ten seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_nerfacto, "GRID_RESOLUTION", 32)
        yield


@pytest.fixture(scope="session")
def capture(tmp_path_factory) -> Path:
    """A demo capture of 32 x 32 pixels: 8 train, 2 val and 2 test photos; read only."""
    name = "demo_scene_of_conftest"
    spec = importlib.util.spec_from_file_location(name, SCRIPT)
    sys.modules[name] = script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def make(folder: Path) -> None:
        assert script.make_demo_scene(folder / "capture", resolution=32, num_train=8, num_val=2, num_test=2, samples=1)

    return build_once(tmp_path_factory, "shared", make) / "capture"


@pytest.fixture(scope="module")
def new_page():
    """Opens pages in Chromium, see ``browser.new_page``; one Playwright, as a thread cannot have two."""
    with sync_playwright() as playwright:
        yield functools.partial(browser.new_page, playwright.chromium)


@pytest.fixture
def stub_teacher() -> StubTeacher:
    """A teacher that shows a unit ball at the origin."""
    return StubTeacher()


@pytest.fixture
def student_config(capture, tmp_path):
    """A tiny student of the capture, to be changed at will."""
    return tiny_student(capture, tmp_path)


@pytest.fixture
def build_pipeline(student_config, stub_teacher, tmp_path):
    """Makes a student's pipeline with the stub as its teacher; keyword arguments are the datamanager's fields."""

    def make(outputs="rgb", **options):
        config = copy.deepcopy(student_config.pipeline)
        config.model.outputs = outputs
        config.datamanager.teacher = stub_teacher_config(stub_teacher, tmp_path / "teacher")
        for name, value in options.items():
            setattr(config.datamanager, name, value)
        return config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)

    torch.manual_seed(0)
    return make


@pytest.fixture
def ball_capture(stub_teacher, tmp_path):
    """A capture whose photos show exactly what the stub teacher shows, from a ring of cameras."""
    folder = tmp_path / "ball"
    for split, count in SPLITS.items():
        (folder / split).mkdir(parents=True)
        turn = torch.arange(count) * 2 * math.pi / count
        position = torch.stack([3.5 * turn.cos(), 3.5 * turn.sin(), torch.full((count,), 2.0)], dim=-1)
        poses = look_at(position, torch.zeros(count, 3), torch.tensor([0.0, 0, 1]))
        frames = []
        for k in range(count):
            picture = stub_teacher.render(pinhole_cameras(poses[k : k + 1], 16 / 0.36, 32, 32))
            pixels = (picture * 255).round().to(torch.uint8).numpy()
            Image.fromarray(pixels).save(folder / split / f"{k}.png")
            matrix = [*poses[k].tolist(), [0, 0, 0, 1]]
            frames.append({"file_path": f"./{split}/{k}", "transform_matrix": matrix})
        transforms = {"camera_angle_x": ANGLE, "frames": frames}
        (folder / f"transforms_{split}.json").write_text(json.dumps(transforms))
    stub_teacher.renders = 0
    return folder


@pytest.fixture(scope="session")
def ball_run(capture, tmp_path_factory):
    """config.yml of a student that was trained on the analytic unit ball by nerfstudio's trainer."""
    folder = build_once(tmp_path_factory, "ball", lambda folder: train_on_the_ball(capture, folder))
    (path,) = folder.glob("outputs/ball/mobiler2l-small/*/config.yml")
    return path


def train_on_the_ball(capture: Path, folder: Path) -> None:
    """Trains a student of the analytic unit ball for 400 steps."""
    config = tiny_student(capture, folder)
    config.method_name, config.experiment_name, config.max_num_iterations = "mobiler2l-small", "ball", 400
    config.pipeline.model.export_when_done, config.pipeline.finetuning.steps = False, 0
    config.pipeline.model.network.width = 32
    manager = config.pipeline.datamanager
    manager.photo_share, manager.pool_views, manager.initial_views = 0.0, 60, 60
    manager.patches_per_batch, manager.patch_cells = 16, None
    manager.teacher = stub_teacher_config(StubTeacher(), folder / "teacher")
    torch.manual_seed(0)
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.train()
    # The installed commands read config.yml too, and cannot import a teacher of the tests.
    manager.teacher = TeacherConfig(load_config=manager.teacher.load_config)
    config.save_config()


@pytest.fixture
def run_folder(tmp_path, student_config):
    """The folder of a run on disk, as ns-train leaves it but for the checkpoint."""
    folder = tmp_path / "outputs" / "ball" / "mobiler2l-small" / "run"
    folder.mkdir(parents=True)
    student_config.experiment_name = "ball"
    (folder / "config.yml").write_text(yaml.dump(student_config))
    return folder
