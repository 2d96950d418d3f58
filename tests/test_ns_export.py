"""nerfstudio's own ns-export on a student that knows a ball: surfaces where the ball is, and clear refusals."""

import copy

import numpy as np
import pytest
import torch
import trimesh
from commands import run
from system_packages import needs_open3d

TSDF = ["--texture-method", "tsdf", "--use-bounding-box", "False"]


def off_the_ball(points) -> float:
    """Median distance of points (N, 3) from the unit ball's surface."""
    return float(np.median(np.abs(np.linalg.norm(points, axis=1) - 1)))


def seen_from_above(points) -> np.ndarray:
    """Points that the capture's cameras, all above the ball's equator, can see."""
    return points[points[:, 2] > -0.2]


# -- the real commands ------------------------------------------------------------------------------------------------


@needs_open3d
@pytest.mark.slow
def test_tsdf_command_finds_the_ball(ball_run, tmp_path):
    run("ns-export", "tsdf", "--load-config", ball_run, "--output-dir", tmp_path, *TSDF, cwd=tmp_path)
    mesh = trimesh.load(tmp_path / "tsdf_mesh.ply", process=False)
    assert len(mesh.vertices) > 1000 and off_the_ball(seen_from_above(mesh.vertices)) < 0.05


@needs_open3d
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
    from mobiler2l_ns.run_config import read_config

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
