"""The demo capture: its files, its cameras and rays by hand, and its depth against its own geometry."""

import json
import sys
from pathlib import Path

import demo_scene.capture
import make_demo_scene as script
import numpy as np
import pytest
import trimesh
from demo_scene.cameras import cameras, look_at, pixel_rays
from demo_scene.island import diorama
from demo_scene.rays import EmbreeRays, NumpyRays
from demo_scene.tracer import Scene, centre_depth, render
from PIL import Image

SIZES = {"resolution": 32, "num_train": 3, "num_val": 1, "num_test": 2}


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
    """A tiny capture, rendered once."""
    folder = tmp_path_factory.mktemp("demo") / "capture"
    assert script.make_demo_scene(folder, **SIZES)
    return folder


def frames(capture: Path, split: str) -> list[dict]:
    """The frames that a split's transforms file lists."""
    return json.loads((capture / f"transforms_{split}.json").read_text())["frames"]


def centre_rays(transform: list) -> np.ndarray:
    """Unit rays (32 * 32, 3) through pixel centres, worked out apart from the script: tan(0.6911112 / 2) is 0.36."""
    row, column = np.divmod(np.arange(32 * 32), 32)
    rays = np.stack([(column + 0.5) / 16 - 1, 1 - (row + 0.5) / 16, np.full(32 * 32, -1 / 0.36)], axis=1)
    return (rays / np.linalg.norm(rays, axis=1, keepdims=True)) @ np.array(transform)[:3, :3].T


def test_the_folder_holds_the_capture_and_nothing_else(capture):
    names = {str(path.relative_to(capture)) for path in capture.rglob("*") if path.is_file()}
    pictures = {"train": 3, "val": 1, "test": 2}
    expected = {f"{split}/r_{k:03d}.png" for split, count in pictures.items() for k in range(count)}
    expected |= {f"transforms_{split}.json" for split in pictures} | {"geometry.ply", "scene.json"}
    assert names == expected | {"test/r_000_depth.npy", "test/r_001_depth.npy"}
    assert [path.name for path in capture.parent.iterdir()] == [capture.name]


def test_transforms_name_the_pictures(capture):
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        meta = json.loads((capture / f"transforms_{split}.json").read_text())
        assert meta["camera_angle_x"] == 0.6911112
        assert [frame["file_path"] for frame in meta["frames"]] == [f"./{split}/r_{k:03d}" for k in range(count)]


def test_pictures_have_quarter_steps_of_alpha_and_an_empty_border(capture):
    for path in capture.rglob("*.png"):
        picture = Image.open(path)
        assert (picture.mode, picture.size) == ("RGBA", (32, 32))
        pixels = np.array(picture)
        alpha = pixels[..., 3]
        assert {0, 255} < set(alpha.ravel().tolist()) <= {0, 64, 128, 191, 255}  # four samples a pixel
        assert not pixels[alpha == 0].any()
        assert not np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]]).any()


def test_alpha_is_straight(capture):
    """A pixel one quarter covered shows its object's full colour; were it premultiplied, no channel could pass 64."""
    pixels = np.concatenate([np.array(Image.open(path)).reshape(-1, 4) for path in capture.rglob("*.png")])
    assert pixels[pixels[:, 3] == 64, :3].max() > 128


def test_look_at_and_rays_by_hand():
    matrix = look_at(np.array([0.0, -4.0, 0.1]))
    np.testing.assert_allclose(matrix[:3, 0], [1, 0, 0])  # right
    np.testing.assert_allclose(matrix[:3, 1], [0, 0, 1])  # up
    np.testing.assert_allclose(matrix[:3, 2], [0, -1, 0])  # back
    middle = pixel_rays(matrix, 1, np.full((1, 1, 1, 2), 0.5))
    np.testing.assert_allclose(middle, [[0, 1, 0]], atol=1e-12)
    top_left = pixel_rays(matrix, 1, np.zeros((1, 1, 1, 2)))[0]
    np.testing.assert_allclose(top_left / top_left[1], [-0.36, 1, 0.36], atol=1e-6)


def test_cameras_are_rotations_on_the_shell_that_look_at_the_centre(capture):
    positions = []
    for frame in frames(capture, "train") + frames(capture, "val") + frames(capture, "test"):
        matrix = np.array(frame["transform_matrix"])
        np.testing.assert_allclose(matrix[:3, :3].T @ matrix[:3, :3], np.eye(3), atol=1e-12)
        assert np.linalg.det(matrix[:3, :3]) == pytest.approx(1)
        np.testing.assert_array_equal(matrix[3], [0, 0, 0, 1])
        away = matrix[:3, 3] - [0, 0, 0.1]
        radius = np.linalg.norm(away)
        assert 3.9 <= radius <= 4.1
        assert 15 - 1e-6 <= np.degrees(np.arcsin(away[2] / radius)) <= 70 + 1e-6
        np.testing.assert_allclose(matrix[:3, 2], away / radius, atol=1e-12)
        assert matrix[2, 0] == 0 and matrix[2, 1] > 0  # level, and not upside down
        positions.append(matrix[:3, 3])
    assert len(np.unique(np.round(positions, 6), axis=0)) == 6


def test_training_cameras_go_all_round():
    positions = np.array([m[:3, 3] for m in cameras(24, True, np.random.default_rng(0))])
    azimuths = np.sort(np.degrees(np.arctan2(positions[:, 1], positions[:, 0])))
    assert np.diff(azimuths, append=azimuths[0] + 360).max() < 45  # three times the even step of 15 degrees


def test_geometry_fits_its_box(capture):
    bounds = trimesh.load(capture / "geometry.ply").bounds
    assert (np.abs(bounds) < 1.2).all()
    assert (bounds[1] - bounds[0])[:2].min() > 2  # and is not small in it


def test_depth_is_finite_where_a_centre_ray_hits(capture):
    mesh = trimesh.load(capture / "geometry.ply")
    for frame in frames(capture, "test"):
        depth = np.load(capture / f"{frame['file_path']}_depth.npy")
        assert (depth.shape, depth.dtype) == ((32, 32), np.float32)
        rays = centre_rays(frame["transform_matrix"])
        origins = np.tile(np.array(frame["transform_matrix"])[:3, 3], (len(rays), 1))
        hit = mesh.ray.intersects_any(origins, rays)
        finite = np.isfinite(depth).ravel()
        assert 200 < hit.sum() < 900
        assert (hit != finite).sum() <= 1  # a ray along an edge may round either way
        assert (depth[~np.isfinite(depth)] == np.inf).all()
        alpha = np.array(Image.open(capture / f"{frame['file_path']}.png"))[..., 3].ravel()
        assert finite[alpha == 255].mean() > 0.98


def test_depth_points_lie_on_the_geometry(capture):
    mesh = trimesh.load(capture / "geometry.ply")
    for frame in frames(capture, "test"):
        depth = np.load(capture / f"{frame['file_path']}_depth.npy").ravel()
        seen = np.isfinite(depth)
        rays = centre_rays(frame["transform_matrix"])[seen]
        points = np.array(frame["transform_matrix"])[:3, 3] + rays * depth[seen, None]
        assert np.abs(trimesh.proximity.closest_point(mesh, points)[1]).max() < 1e-3


def test_a_second_call_does_no_work(capture):
    before = {path: path.stat().st_mtime_ns for path in capture.rglob("*")}
    assert not script.make_demo_scene(capture, **SIZES)
    assert {path: path.stat().st_mtime_ns for path in capture.rglob("*")} == before


def test_the_same_seed_gives_the_same_capture(capture, tmp_path):
    script.make_demo_scene(tmp_path / "again", **SIZES)
    for path in capture.rglob("*.*"):
        assert (tmp_path / "again" / path.relative_to(capture)).read_bytes() == path.read_bytes(), path.name


def test_other_settings_need_overwrite(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "capture"
    small = {"resolution": 8, "num_train": 1, "num_val": 1, "num_test": 1, "samples": 1}
    script.make_demo_scene(folder, **small)
    with pytest.raises(FileExistsError, match="--overwrite"):
        script.make_demo_scene(folder, **small, seed=1)
    monkeypatch.setattr(sys, "argv", ["make_demo_scene.py", "--output", str(folder)])
    assert script.main() == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert script.make_demo_scene(folder, **small, seed=1, overwrite=True)
    assert json.loads((folder / "scene.json").read_text())["seed"] == 1


def test_a_folder_of_something_else_is_never_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="not a demo scene"):
        script.make_demo_scene(tmp_path, **SIZES, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "keep me"


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_scene.capture, "centre_depth", interrupt)
    with pytest.raises(KeyboardInterrupt):
        script.make_demo_scene(tmp_path / "capture", **SIZES)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="square number"):
        script.make_demo_scene(tmp_path / "capture", **{**SIZES, "samples": 5})


def test_without_embreex_numpy_traces_the_same_images(monkeypatch, capsys):
    pytest.importorskip("embreex", reason="embreex has no wheel for this machine: there is nothing to compare with")
    with_embree = Scene(diorama())
    for name in [name for name in sys.modules if name.split(".")[0] == "embreex"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "embreex", None)
    without = Scene(diorama())
    assert isinstance(with_embree.rays, EmbreeRays) and isinstance(without.rays, NumpyRays)
    message = capsys.readouterr().err
    assert message.startswith("embreex is not installed") and message.count("\n") == 1
    for matrix in cameras(3, False, np.random.default_rng(0)):
        fast, slow = (render(scene, matrix, 32, 4, np.random.default_rng(1)) for scene in (with_embree, without))
        assert np.abs(fast.astype(int) - slow).max() <= 1
        assert 0.1 < (fast[..., 3] == 255).mean() < 0.9
        fast, slow = (centre_depth(scene, matrix, 32) for scene in (with_embree, without))
        np.testing.assert_array_equal(np.isfinite(fast), np.isfinite(slow))
        seen = np.isfinite(fast)
        np.testing.assert_allclose(fast[seen], slow[seen], rtol=1e-6)


def test_numpy_rays_by_hand():
    """Two triangles behind each other, and a light from above that only reaches the upper side of the first."""
    corners = np.array([[-1, -1, 1], [3, -1, 1], [-1, 3, 1], [-1, -1, 0], [3, -1, 0], [-1, 3, 0]], float)
    rays = NumpyRays(trimesh.Trimesh(corners, [[3, 4, 5], [0, 1, 2]], process=False), np.array([0.0, 0.0, 1.0]))
    down = np.array([[0, 0, -1.0], [-0.25, -0.25, -1], [1, 1, -1]])
    faces, weights = rays.first_hits(np.array([0, 0, 2.0]), down / np.linalg.norm(down, axis=1, keepdims=True))
    np.testing.assert_array_equal(faces, [1, 1, -1])
    np.testing.assert_allclose(weights[:2], [[0.5, 0.25, 0.25], [0.625, 0.1875, 0.1875]])
    points = np.array([[0, 0, 1.1], [0, 0, 0.9], [0, 0, -0.1], [2.5, 2.5, -0.1]])
    np.testing.assert_array_equal(rays.reach_light(points), [True, False, False, True])
    with pytest.raises(ValueError, match="outside of the scene"):
        rays.first_hits(np.array([0, 0, 0.5]), down / np.linalg.norm(down, axis=1, keepdims=True))
