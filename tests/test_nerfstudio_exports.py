"""nerfstudio's own ns-export on a student that knows a ball: surfaces where the ball is, and clear refusals."""

import copy

import numpy as np
import pytest
import torch
import trimesh
from builders import stub_teacher_config
from commands import run
from conftest import StubTeacher, tiny_student
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from test_model import camera_at

from mobiler2l_ns.cameras import bundle_camera, student_view
from mobiler2l_ns.compat import check_command
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.geometry import look_at

TSDF = ["--texture-method", "tsdf", "--use-bounding-box", "False"]


@pytest.fixture(scope="session")
def ball_run(capture, tmp_path_factory):
    """config.yml of a student that was trained on the analytic unit ball by nerfstudio's trainer."""
    folder = tmp_path_factory.mktemp("ball")
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
    return config.get_base_dir() / "config.yml"


def off_the_ball(points) -> float:
    """Median distance of points (N, 3) from the unit ball's surface."""
    return float(np.median(np.abs(np.linalg.norm(points, axis=1) - 1)))


def seen_from_above(points) -> np.ndarray:
    """Points that the capture's cameras, all above the ball's equator, can see."""
    return points[points[:, 2] > -0.2]


# -- a camera out of its rays -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 2), (24, 40), (61, 33)])
def test_a_pinhole_is_recovered_from_its_rays(shape):
    height, width = shape
    c2w = look_at(torch.tensor([[3.0, -1.0, 2.0]]), torch.zeros(1, 3), torch.tensor([0.0, 0.0, 1.0]))
    camera = Cameras(c2w, fx=70.0, fy=55.0, cx=11.5, cy=20.25, width=width, height=height)
    found = bundle_camera(camera.generate_rays(0, keep_shape=True))
    torch.testing.assert_close(found.camera_to_worlds, c2w, atol=1e-5, rtol=0)
    for name, value in {"fx": 70, "fy": 55, "cx": 11.5, "cy": 20.25, "width": width, "height": height}.items():
        assert float(getattr(found, name)) == pytest.approx(value, abs=2e-3), name


def distorted():
    camera = camera_at(4.0)
    camera.distortion_params = torch.tensor([[0.1, 0, 0, 0, 0, 0]])
    return camera.generate_rays(0, keep_shape=True)


def moving_origins():
    rays = camera_at(4.0).generate_rays(0, keep_shape=True)
    rays.origins = rays.origins + torch.linspace(0, 1, 48)[None, :, None]
    return rays


def mirrored():
    rays = camera_at(4.0).generate_rays(0, keep_shape=True)
    return rays[:, torch.arange(47, -1, -1)]


def parallel():
    ones = torch.ones(4, 5, 3) / 3**0.5
    return RayBundle(0 * ones, ones, ones[..., :1], metadata={"directions_norm": torch.ones(4, 5, 1)})


@pytest.mark.parametrize("make", [distorted, moving_origins, mirrored, parallel, lambda: distorted().flatten()])
def test_rays_of_no_pinhole_are_refused(make):
    with pytest.raises(UserError, match="pinhole cameras, not single rays: add --texture-method"):
        bundle_camera(make())


def test_panoramas_are_refused():
    camera = camera_at(4.0)
    camera.camera_type = torch.full_like(camera.camera_type, CameraType.EQUIRECTANGULAR.value)
    with pytest.raises(UserError, match="panoramas"):
        student_view(camera, 60.0, 8)


# -- what cannot work -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "outputs", "sentence"),
    [
        ("ExportTSDFMesh", {}, "rgbad", "add --texture-method tsdf to"),
        ("ExportPointCloud", {}, "rgbad", "add --normal-method open3d to"),
        ("ExportPoissonMesh", {}, "rgbad", "add --normal-method open3d --texture-method point_cloud to"),
        ("ExportTSDFMesh", {"texture_method": "tsdf"}, "rgb", "--pipeline.model.outputs rgbad"),
        ("ExportPointCloud", {"normal_method": "open3d"}, "rgba", "--pipeline.model.outputs rgbad"),
        ("ExportGaussianSplat", {}, "rgbad", "ns-export tsdf --texture-method tsdf"),
        ("ExportMarchingCubesMesh", {}, "rgbad", "ns-export tsdf --texture-method tsdf"),
        ("RenderInterpolated", {"render_nearest_camera": True}, "rgb", "leave it out"),
        ("RenderInterpolated", {"rendered_output_names": ["rgba"]}, "rgb", "--output-format images"),
        ("DatasetRender", {"rendered_output_names": ["rgba"]}, "rgb", "--image-format png"),
    ],
)
def test_one_sentence_before_the_work(name, options, outputs, sentence, tmp_path, monkeypatch):
    """The command's own ``main`` calls the pipeline's check, as it does through ``eval_setup``."""
    from nerfstudio.scripts import exporter, render

    scripts = exporter if hasattr(exporter, name) else render
    monkeypatch.setattr(scripts, "eval_setup", lambda *arguments, **keywords: check_command(outputs))
    where = {"output_dir": tmp_path} if scripts is exporter else {}
    with pytest.raises(UserError, match=sentence):
        getattr(scripts, name)(load_config=tmp_path / "config.yml", **where, **options).main()


def test_no_command_is_not_checked():
    check_command("rgb")


# -- the real commands ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tsdf_command_finds_the_ball(ball_run, tmp_path):
    run("ns-export", "tsdf", "--load-config", ball_run, "--output-dir", tmp_path, *TSDF, cwd=tmp_path)
    mesh = trimesh.load(tmp_path / "tsdf_mesh.ply", process=False)
    assert len(mesh.vertices) > 1000 and off_the_ball(seen_from_above(mesh.vertices)) < 0.05


@pytest.mark.slow
def test_clouds_cameras_and_poisson_meshes(ball_run, tmp_path):
    import json

    from nerfstudio.scripts import exporter

    exporter.ExportPointCloud(ball_run, tmp_path / "cloud", num_points=20000, normal_method="open3d").main()
    cloud = trimesh.load(tmp_path / "cloud" / "point_cloud.ply")
    assert len(cloud.vertices) > 15000 and off_the_ball(cloud.vertices) < 0.05
    # A ball's colour is 0.5 + 0.5 * normal, as the student's teacher has it.
    expected = 0.5 + 0.5 * cloud.vertices / np.linalg.norm(cloud.vertices, axis=1, keepdims=True)
    assert np.median(np.abs(cloud.colors[:, :3] / 255 - expected)) < 0.1

    box = {"obb_center": (0.0, 0.0, 1.0), "obb_rotation": (0.0, 0.0, 0.0), "obb_scale": (1.0, 1.0, 1.0)}
    exporter.ExportPointCloud(ball_run, tmp_path / "part", num_points=2000, normal_method="open3d", **box).main()
    part = trimesh.load(tmp_path / "part" / "point_cloud.ply").vertices
    assert (np.abs(part - [0, 0, 1]) <= 0.501).all()

    exporter.ExportPoissonMesh(
        ball_run, tmp_path / "mesh", num_points=5000, normal_method="open3d", texture_method="point_cloud"
    ).main()
    mesh = trimesh.load(tmp_path / "mesh" / "poisson_mesh.ply", process=False)
    assert off_the_ball(seen_from_above(mesh.vertices)) < 0.06

    exporter.ExportCameraPoses(ball_run, tmp_path / "cameras").main()
    frames = json.loads((tmp_path / "cameras" / "transforms_train.json").read_text())
    poses = np.array([frame["transform"] for frame in frames])
    assert poses.shape == (8, 3, 4) and (np.abs(np.linalg.norm(poses[:, :, 3] - [0, 0, 0.1], axis=1) - 4) < 0.11).all()


def test_the_pictures_of_a_cloud(ball_run):
    """Each camera once before any twice, at no more rays than asked for, and never twice the same rays."""
    from mobiler2l_ns.checkpoints import read_config

    config = copy.deepcopy(read_config(ball_run).pipeline.datamanager)
    manager = config.setup(device="cpu", test_mode="test", world_size=1, local_rank=0)
    first = [manager.next_train(0)[0] for _ in range(8)]
    again = [manager.next_train(0)[0] for _ in range(8)]
    places = {tuple(rays.origins[0, 0].tolist()) for rays in first}
    assert len(places) == 8 == len(places | {tuple(rays.origins[0, 0].tolist()) for rays in again})
    assert all(rays.shape == (32, 32) for rays in first)
    assert not any(torch.equal(a.directions, b.directions) for a in first for b in again)
    manager.train_pixel_sampler.num_rays_per_batch = 100
    assert manager.next_train(0)[0].shape == (10, 10)
