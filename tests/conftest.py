"""What the tests share: a tiny capture, an analytic teacher, and a student that is trained in seconds."""

import copy
import functools
import importlib.util
import sys
from pathlib import Path

import browser
import pytest
import torch
from builders import stub_teacher_config
from commands import student, workspace  # noqa: F401  (fixtures)
from nerfstudio.cameras.cameras import Cameras
from playwright.sync_api import sync_playwright
from torch import Tensor

SCRIPT = Path(__file__).parents[1] / "scripts" / "make_demo_scene.py"


@pytest.fixture(scope="session")
def capture(tmp_path_factory) -> Path:
    """A demo capture of 32 x 32 pixels: 8 train, 2 val and 2 test photos; read only."""
    name = "demo_scene_of_conftest"
    spec = importlib.util.spec_from_file_location(name, SCRIPT)
    sys.modules[name] = script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = tmp_path_factory.mktemp("shared") / "capture"
    assert script.make_demo_scene(folder, resolution=32, num_train=8, num_val=2, num_test=2, samples=1)
    return folder


@pytest.fixture(scope="module")
def new_page():
    """Opens pages in Chromium, see ``browser.new_page``; one Playwright, as a thread cannot have two."""
    with sync_playwright() as playwright:
        yield functools.partial(browser.new_page, playwright.chromium)


class StubTeacher(torch.nn.Module):
    """A ball at the origin on white, in closed form: each surface point has the colour 0.5 + 0.5 * normal.

    It is a module with a weight, so that it shows up in a state dict where a teacher does not belong.

    Args:
        radius: Of the ball.

    Attributes:
        renders: How many pictures it was asked for.
        probes: How many times it was asked for depths.
    """

    def __init__(self, radius: float = 1.0):
        super().__init__()
        self.radius = radius
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.renders = self.probes = 0

    def distances(self, origins: Tensor, directions: Tensor) -> Tensor:
        """First t with |origins + t * directions| = radius, (...), inf for a miss; directions of any length."""
        a = (directions**2).sum(-1)
        b = (origins * directions).sum(-1)
        c = (origins**2).sum(-1) - self.radius**2
        discriminant = b**2 - a * c
        t = (-b - discriminant.clamp_min(0).sqrt()) / a
        return torch.where((discriminant > 0) & (t > 0), t, torch.inf)

    def colours(self, origins: Tensor, directions: Tensor) -> Tensor:
        """Colours (..., 3) that rays see."""
        t = self.distances(origins, directions)[..., None]
        hit = t.isfinite()
        normals = (origins + t.where(hit, torch.zeros(())) * directions) / self.radius
        return torch.where(hit, 0.5 + 0.5 * normals, 1.0)

    def render(self, camera: Cameras) -> Tensor:
        """The picture (H, W, 3) of one camera."""
        self.renders += 1
        rays = camera.generate_rays(0, keep_shape=True)
        return self.colours(rays.origins, rays.directions)

    def depths(self, origins: Tensor, directions: Tensor) -> Tensor:
        """z (..., 1) of what rays see, 0 for a miss; directions of unit depth."""
        t = self.distances(origins, directions)[..., None]
        return torch.where(t.isfinite(), t, 0.0)

    def render_all(self, camera: Cameras) -> Tensor:
        """The picture, its accumulation and z (H, W, 5) of one camera."""
        rays = camera.generate_rays(0, keep_shape=True)
        z = self.depths(rays.origins, rays.directions * rays.metadata["directions_norm"])
        return torch.cat([self.render(camera), (z > 0).float(), z], dim=-1)

    def surface_depths(self, camera: Cameras) -> Tensor:
        """z (N,) of the surface points that one camera sees."""
        self.probes += 1
        rays = camera.generate_rays(0, keep_shape=True)
        z = self.distances(rays.origins, rays.directions) / rays.metadata["directions_norm"][..., 0]
        return z[z.isfinite()]


@pytest.fixture
def stub_teacher() -> StubTeacher:
    """A teacher that shows a unit ball at the origin."""
    return StubTeacher()


def tiny_student(capture: Path, folder: Path):
    """mobiler2l-small on the capture, shrunk to a 4 x 4 ray grid and a few thousand weights; it writes to folder."""
    from mobiler2l_ns.method_configs import mobiler2l_small
    from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig

    config = copy.deepcopy(mobiler2l_small.config)
    config.data, config.output_dir, config.vis, config.timestamp = capture, folder / "outputs", "tensorboard", "run"
    config.machine.device_type = "cpu"
    network = config.pipeline.model.network
    network.depth, network.width, network.sr_widths = 6, 16, (8, 8, 8)
    datamanager = config.pipeline.datamanager
    datamanager.data, datamanager.dataparser = capture, BlenderDataParserConfig(data=capture)
    datamanager.pool_views, datamanager.initial_views, datamanager.teacher_share = 4, 2, 0.0
    datamanager.filling_share = 0.0
    datamanager.patches_per_batch, datamanager.patch_cells = 4, 2
    return config


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
