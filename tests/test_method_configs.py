"""Every method trains for two real steps through nerfstudio's own train_loop, from the installed entry points."""

import copy
import json
import shutil
import sys
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

import cuda_stand_ins
import pytest
import torch
from cuda_stand_ins import as_if_cuda  # noqa: F401  (a fixture)
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.datamanagers.parallel_datamanager import ParallelDataManagerConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.engine.callbacks import TrainingCallbackLocation
from PIL import Image

from mobiler2l_ns.cameras import pinhole_cameras
from mobiler2l_ns.checkpoints import checkpoint_paths, load_model
from mobiler2l_ns.compat import without_lpips_download
from mobiler2l_ns.data import photo_source
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export.command import ExportMobileR2L
from mobiler2l_ns.run_config import read_config
from mobiler2l_ns.runtime import Renderer
from mobiler2l_ns.teacher.frozen import FrozenTeacher, TeacherConfig
from mobiler2l_ns.trainer import forget_writers
from mobiler2l_ns.training.metrics import psnr

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TEACHERS = ["mobiler2l-teacher", "mobiler2l-teacher-small"]
CUDA_TEACHERS = ["mobiler2l-teacher-ngp", "mobiler2l-teacher-splat"]
OTHER_TEACHERS = {
    "vanilla-nerf": {"num_coarse_samples": 8, "num_importance_samples": 8},
    # Its grids grow after the second step.
    "tensorf": {"init_resolution": 8, "final_resolution": 16, "upsampling_iters": (1,), "num_uniform_samples": 16},
    "nerfacto": {"num_levels": 2, "max_res": 32, "log2_hashmap_size": 6, "hidden_dim": 8, "hidden_dim_color": 8},
    "mobiler2l-teacher-ngp": {"log2_hashmap_size": 6, "max_res": 32, "grid_resolution": 8},
    "mobiler2l-teacher-splat": {"num_random": 30, "num_downscales": 0},
}
STUDENTS = ["mobiler2l", "mobiler2l-compact", "mobiler2l-small", "mobiler2l-paper", "r2l"]


def installed_methods() -> dict:
    """Our methods, found as nerfstudio finds them."""
    found = {}
    for entry in entry_points(group="nerfstudio.method_configs"):
        if entry.dist.name == "mobiler2l-ns":
            spec = entry.load()
            found[spec.config.method_name] = spec
    return found


def two_steps(
    method: str, data: Path, outputs: Path, load_dir=None, load_checkpoint=None, student="rgb", model=None,
    teacher=None, search_dir=Path("outputs"), export=False, **datamanager,
) -> Path:  # fmt: skip
    """Trains a method, ours or nerfstudio's, for two steps on a CPU and returns the run's config.yml."""
    from nerfstudio.configs.method_configs import all_methods
    from nerfstudio.scripts.train import train_loop

    config = copy.deepcopy(all_methods[method])
    config.max_num_iterations, config.vis, config.timestamp = 2, "tensorboard", method
    config.machine.device_type, config.output_dir, config.data = "cpu", outputs, data
    if isinstance(config.pipeline.datamanager, ParallelDataManagerConfig):  # the same rays, from processes of its own
        config.pipeline.datamanager = VanillaDataManagerConfig()
    config.pipeline.datamanager.data = data
    config.pipeline.datamanager.dataparser = BlenderDataParserConfig()
    if method in STUDENTS:
        config.pipeline.model.outputs, config.pipeline.model.export_when_done = student, export
        config.pipeline.datamanager.teacher = TeacherConfig(load_config=teacher, search_dir=search_dir)
        datamanager = {"pool_views": 3, "initial_views": 2, "patches_per_batch": 8, **datamanager}
    else:
        config.pipeline.datamanager.train_num_rays_per_batch = 64
        config.pipeline.target_num_samples = 1 << 11  # of instant-ngp alone
    if hasattr(config.pipeline.model, "implementation"):
        config.pipeline.model.implementation = "torch"
    for part, options in ((config.pipeline.datamanager, datamanager), (config.pipeline.model, model or {})):
        for name, value in options.items():
            setattr(part, name, value)
    config.load_dir, config.load_checkpoint = load_dir, load_checkpoint
    config.save_config()
    with without_lpips_download():
        train_loop(0, 1, config)
    return config.get_base_dir() / "config.yml"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def teacher_run(capture, outputs):
    return two_steps("mobiler2l-teacher-small", capture, outputs)


def test_entry_points_name_all_methods():
    from nerfstudio.configs.method_configs import all_methods

    methods = installed_methods()
    assert sorted(methods) == sorted(TEACHERS + CUDA_TEACHERS + STUDENTS)
    assert all(all_methods[name] is not None for name in methods)
    assert all(spec.description for spec in methods.values())


def test_every_package_folder_is_installed():
    """The package list in pyproject.toml is explicit, so a new folder could be forgotten."""
    root = Path(__file__).parent.parent
    folders = {p.parent.relative_to(root) for p in root.glob("mobiler2l_ns/**/__init__.py")}
    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {".".join(folder.parts) for folder in folders} == set(listed) - {"mobiler2l_ns.method_configs"}
    assert (root / "method_configs" / "__init__.py").is_file()


@pytest.mark.parametrize("method", TEACHERS)
def test_teacher_trains_and_reloads(method, capture, outputs):
    config_path = two_steps(method, capture, outputs)
    config = read_config(config_path)
    # The demo photos have a transparent background, so auto must have become object, on white, without contraction.
    assert config.pipeline.model.scene == "bounded"
    assert config.pipeline.model.camera_optimizer.mode == "off"
    model, step = load_model(config_path, "cpu")
    assert step == 1 and model.field.spatial_distortion is None
    (checkpoint,) = checkpoint_paths(config_path, config)
    torch.load(checkpoint, map_location="cpu", weights_only=True)  # as every ns-* command does on torch >= 2.6


@pytest.mark.parametrize("method", OTHER_TEACHERS)
def test_a_student_of_any_teacher(method, capture, tmp_path, as_if_cuda, monkeypatch):  # noqa: F811
    """Two real steps of the teacher, then two of a student; instant-ngp and splats on stand-ins for their kernels."""
    monkeypatch.setattr(cuda_stand_ins, "SAMPLES", 32)
    teacher = two_steps(method, capture, tmp_path, model=OTHER_TEACHERS[method])
    if method in CUDA_TEACHERS:
        assert read_config(teacher).pipeline.model.scene == "bounded"
        (checkpoint,) = checkpoint_paths(teacher, read_config(teacher))
        torch.load(checkpoint, map_location="cpu", weights_only=True)
    config_path = two_steps(
        "mobiler2l-small", capture, tmp_path, student="rgbad", search_dir=tmp_path, near_far=(2.0, 6.0),
    )  # fmt: skip
    config = read_config(config_path).pipeline.datamanager
    assert config.teacher.load_config == teacher.resolve() and isinstance(config.dataparser, BlenderDataParserConfig)
    model, _ = load_model(config_path, "cpu")
    c2w = torch.eye(4)[None, :3].clone()
    c2w[0, 2, 3] = 4.0
    camera = pinhole_cameras(c2w, 8.0, 8, 8)
    picture = FrozenTeacher(teacher, "cpu").render_all(camera)
    assert picture.shape == (8, 8, 5) and picture.isfinite().all()
    assert picture[..., :4].min() >= 0 and picture[..., :4].max() <= 1
    assert model.get_outputs_for_camera(camera)["depth"].isfinite().all()


def test_splats_go_on_with_the_parameters_of_the_checkpoint(capture, tmp_path, as_if_cuda):  # noqa: F811
    """splatfacto replaces its parameters while it loads them; the optimizers would train the old ones."""
    method = "mobiler2l-teacher-splat"
    run = two_steps(method, capture, tmp_path, model=OTHER_TEACHERS[method])
    config = read_config(run)
    config.load_dir = run.parent / "nerfstudio_models"
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    optimizers, parameters = trainer.optimizers.optimizers, trainer.pipeline.model.gauss_params
    assert {*optimizers} == {*parameters}
    for name, optimizer in optimizers.items():
        (group,) = optimizer.param_groups
        assert group["params"][0] is parameters[name] is trainer.optimizers.parameters[name][0]
    before = parameters["means"].clone()
    for callback in trainer.callbacks:
        callback.run_callback_at_location(2, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
    trainer.train_iteration(2)
    assert not torch.equal(parameters["means"], before)
    forget_writers()


# mobiler2l-compact is trained by the test of its benchmark, alpha and depth by the one of twelve pixels a ray.
@pytest.mark.parametrize("method", [method for method in STUDENTS if method != "mobiler2l-compact"])
def test_student_trains_exports_and_reloads(method, capture, outputs, teacher_run):
    # The newest teacher run on the same data is found without being named.
    config_path = two_steps(method, capture, outputs, search_dir=outputs, export=True)
    config = read_config(config_path)
    assert config.pipeline.datamanager.teacher.load_config.name == "config.yml"
    assert "teacher" in config.pipeline.datamanager.teacher.load_config.parent.name
    model, step = load_model(config_path, "cpu")
    assert step == 1 and model.size == (32, 32)
    assert model.config.outputs == "rgb"
    assert model.network.tail[0].out_channels == config.pipeline.model.network.out_channels == 3
    (checkpoint,) = checkpoint_paths(config_path, config)
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["pipeline"]
    assert all(key.startswith("_model.") for key in state), "the teacher must not be in the student's checkpoint"
    assert not any("field" in key for key in state)
    pool = json.loads((config_path.parent / "distillation.json").read_text())["pool"]
    assert pool["views"] >= 2 and pool["teacher_seconds"] > 0
    # The run's own export shows the same picture as the reloaded student.
    folder = config_path.parent / "export"
    report = json.loads((folder / "report.json").read_text())
    assert report["run"]["method"] == method
    c2w = torch.eye(4)[:3]
    c2w[2, 3] = 4.0
    with torch.no_grad():
        h, w = model.sampler.grid.tolist()
        rays_d = (model.sampler.directions() @ c2w[:, :3].T).view(1, h, w, 3)
        image = model.renderer.render_rays(c2w[:, 3].expand_as(rays_d), rays_d)[0, :3].permute(1, 2, 0)
    assert psnr(torch.from_numpy(Renderer(folder, num_threads=1).render(c2w.numpy())), image) > 70


def test_student_of_a_student_is_refused(capture, outputs, teacher_run):
    student = two_steps("mobiler2l-small", capture, outputs, teacher=teacher_run)
    with pytest.raises(UserError, match="is a student, not a teacher"):
        two_steps("mobiler2l-small", capture, outputs, teacher=student)


def test_missing_teacher_names_the_file(capture, outputs):
    with pytest.raises(UserError, match="nowhere.*config.yml"):
        two_steps("mobiler2l-small", capture, outputs, teacher=Path("nowhere/config.yml"))


def test_no_teacher_for_the_data_says_how_to_train_one(capture, tmp_path):
    with pytest.raises(UserError, match="ns-train mobiler2l-teacher"):
        two_steps("mobiler2l-small", capture, tmp_path, search_dir=tmp_path)


def test_size_not_divisible_names_the_cure(capture, outputs, teacher_run):
    with pytest.raises(UserError, match="--pipeline.datamanager.image-size 28 32"):
        two_steps("mobiler2l-small", capture, outputs, teacher=teacher_run, image_size=(30, 32))


def test_a_checkpoint_file_is_resumed(capture, outputs, teacher_run, tmp_path):
    """--load-checkpoint goes on after the file's step, for as many steps more."""
    first = two_steps("mobiler2l-small", capture, outputs, teacher=teacher_run)
    (checkpoint,) = checkpoint_paths(first, read_config(first))
    second = two_steps("mobiler2l-small", capture, tmp_path, teacher=teacher_run, load_checkpoint=checkpoint)
    (old, old_step), (new, new_step) = load_model(first, "cpu"), load_model(second, "cpu")
    assert (old_step, new_step) == (1, 3)
    # Two steps at the schedule's tail: near the old weights, where a new start would be anywhere.
    before, after = (torch.cat([p.flatten() for p in model.network.parameters()]) for model in (old, new))
    assert 0 < float((after - before).norm() / before.norm()) < 0.1


def test_an_unbounded_student_of_twelve_pixels_a_ray(capture, tmp_path, teacher_run):
    """24x24 pixels from 2x2 rays, upscaled as for forward-facing captures: trained, reloaded, exported."""
    small = installed_methods()["mobiler2l-small"].config.pipeline.model.network
    network = replace(small, sr_widths=(48, 32, 16), sr_strides=(2, 2, 3))
    config_path = two_steps(
        "mobiler2l-small", capture, tmp_path, teacher=teacher_run, image_size=(24, 24), student="rgbad",
        model={"points": "unbounded", "network": network},
    )  # fmt: skip
    model, _ = load_model(config_path, "cpu")
    assert model.sampler.unbounded and (model.upscale, model.size) == (12, (24, 24))
    assert model.network.tail[0].out_channels == len(model.config.outputs) == 5
    targets = ("onnx", "snap", "web")
    report = ExportMobileR2L(config_path, tmp_path / "files", targets, outputs="rgbad", num_views=0).export()
    assert max(report["parity"]["max_abs"].values()) <= 2e-4
    c2w = model.coverage.viewpoints[5]
    shown = Renderer(tmp_path / "files", num_threads=1).render_all(c2w.numpy())
    assert psnr(torch.from_numpy(shown["rgb"]), model.render_pose(c2w)) > 70
    assert model.sampler.near <= shown["depth"].min() and shown["depth"].max() <= model.sampler.far


def test_resuming_another_architecture_names_the_folder(capture, outputs, teacher_run):
    folder = two_steps("mobiler2l-small", capture, outputs, teacher=teacher_run).parent / "nerfstudio_models"
    with pytest.raises(UserError, match="nerfstudio_models cannot be resumed by mobiler2l "):
        two_steps("mobiler2l", capture, outputs, teacher=teacher_run, load_dir=folder)


def test_teacher_of_another_scene_is_refused(capture, outputs, teacher_run, tmp_path):
    """The same poses and scale, but other photos: only looking at the pictures can tell."""
    other = tmp_path / "other"
    shutil.copytree(capture, other)
    for path in other.glob("train/*.png"):
        # Photos of a scene that is dark where the teacher's is white.
        Image.new("RGBA", (32, 32), (0, 0, 0, 255)).save(path)
        with Image.open(path) as image:
            image.paste((40, 0, 0, 255), (0, 0, 16, 32))
            image.save(path)
    with pytest.raises(UserError, match="shows another scene than the photos in .*other"):
        two_steps("mobiler2l-small", other, outputs, teacher=teacher_run)


def test_a_capture_that_was_moved_keeps_its_teacher(capture, outputs, teacher_run, tmp_path, monkeypatch):
    moved = tmp_path / "moved"
    shutil.copytree(capture, moved)
    photos = {}

    def render_as_the_photos_are(self, camera):
        # Two steps do not make a teacher: let it show the photo that belongs to the pose.
        key = tuple(camera.camera_to_worlds.flatten().tolist())
        return photos.get(key, torch.zeros(int(camera.height), int(camera.width), 3))

    load = photo_source.load_photos

    def remember(*arguments, **options):
        found = load(*arguments, **options)
        for i in range(len(found)):
            key = tuple(found.cameras.camera_to_worlds[i].flatten().tolist())
            photos[key] = found.images[i].float() / 255
        return found

    monkeypatch.setattr(photo_source, "load_photos", remember)
    monkeypatch.setattr(FrozenTeacher, "render", render_as_the_photos_are)
    assert two_steps("mobiler2l-small", moved, outputs, teacher=teacher_run).is_file()
