"""The benchmark of the published scenes, on tiny scenes in the formats of both data sets."""

import json
import sys

import numpy as np
import pytest
import torch
from bench import published
from bench.llff import convert_llff
from builders import StubTeacher, one_sentence
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image

from mobiler2l_ns.cameras import pinhole_cameras
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.geometry import look_at

WIDTH, HEIGHT, FOCAL = 48, 36, 50.0


def pose_at(x, y):
    """A camera (3, 4) on the wall, which looks at the origin."""
    return look_at(torch.tensor([[x, y, 4.0]]), torch.zeros(1, 3), torch.tensor([0.0, 1.0, 0.0]))[0]


@pytest.fixture(scope="module")
def forward_facing(tmp_path_factory):
    """Nine photos of the unit ball from a wall of cameras, in LLFF's format: poses of photos four times as large."""
    folder = tmp_path_factory.mktemp("llff") / "ball"
    (folder / "images_4").mkdir(parents=True)
    rows = []
    for number, (x, y) in enumerate([(x, y) for x in (-0.5, 0.0, 0.5) for y in (-0.4, 0.0, 0.4)]):
        pose = pose_at(x, y)
        view = StubTeacher().render(pinhole_cameras(pose[None], FOCAL, HEIGHT, WIDTH))
        Image.fromarray((view * 255).byte().numpy()).save(folder / "images_4" / f"image{number:03d}.png")
        right, up, back, position = pose.numpy().T
        matrix = np.stack([-up, right, back, position, [4 * HEIGHT, 4 * WIDTH, 4 * FOCAL]], axis=1)
        rows.append([*matrix.flatten(), 2.0, 6.0])
    np.save(folder / "poses_bounds.npy", np.array(rows))
    return folder


def test_llff_poses_are_nerfstudios(forward_facing, tmp_path):
    """As nerfstudio reads them, without its own turning and scaling of the world."""
    parser = NerfstudioDataParserConfig(
        data=convert_llff(forward_facing, tmp_path), downscale_factor=1, orientation_method="none",
        center_method="none", auto_scale_poses=False, scale_factor=1.0, eval_mode="interval", eval_interval=8,
    )  # fmt: skip
    train, test = (parser.setup().get_dataparser_outputs(split=split) for split in ("train", "test"))
    assert [path.name for path in test.image_filenames] == ["image000.png", "image008.png"]
    assert len(train.image_filenames) == 7
    camera = test.cameras[0:1]
    assert (int(camera.width), int(camera.height), float(camera.fx)) == (WIDTH, HEIGHT, pytest.approx(FOCAL, rel=1e-5))
    torch.testing.assert_close(camera.camera_to_worlds[0], pose_at(-0.5, -0.4), atol=1e-5, rtol=0)


def test_photos_that_do_not_fit_their_poses(forward_facing, tmp_path):
    scene = tmp_path / "scene"
    (scene / "images_4").mkdir(parents=True)
    np.save(scene / "poses_bounds.npy", np.zeros((3, 17)))
    with pytest.raises(UserError, match="has 3 rows for 0 photos"):
        convert_llff(scene, tmp_path / "out")


def test_both_data_sets_and_a_broken_scene(capture, forward_facing, tmp_path, monkeypatch, capsys):
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    (scenes / "island").symlink_to(capture)
    (scenes / "ball").symlink_to(forward_facing)
    (scenes / "torn").mkdir()
    (scenes / "torn" / "transforms_train.json").write_text("{}")
    (scenes / "notes").mkdir()
    path = tmp_path / "published.json"
    command = [
        "published.py", "--data", str(scenes), "--teacher", "mobiler2l-teacher-small", "--method", "mobiler2l-small",
        "--teacher-steps", "2", "--steps", "2", "--output", str(tmp_path / "runs"), "--json", str(path),
        "--changes", "patches_per_batch", "2", "initial_views", "2", "reprojected_views", "2",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        published.main()
    results = json.loads(path.read_text())
    found = results["scenes"]
    assert set(found) == {"ball", "island", "torn"} and "error" in found["torn"]
    assert (found["ball"]["resolution"], found["island"]["resolution"]) == ("48x36", "32x32")
    assert (found["ball"]["photos"], found["island"]["photos"]) == (2, 2)
    means = results["means"]
    assert (means["synthetic"]["published_psnr"], means["forward-facing"]["published_psnr"]) == (31.34, 26.15)
    assert means["forward-facing"]["student_psnr"] == found["ball"]["student_psnr"] > 3
    assert "31.34" in capsys.readouterr().out
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*.ckpt")}
    with pytest.raises(SystemExit):
        published.main()
    assert written == {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*.ckpt")}
    assert len(written) == 4


def test_a_folder_without_scenes(tmp_path, monkeypatch):
    for arguments, message in (
        (("--data", tmp_path / "nowhere"), "there is no folder"),
        (("--data", tmp_path), "has no scenes"),
        (("--data", tmp_path, "--scenes", "lego"), "lego is no scene"),
    ):
        monkeypatch.setattr(sys, "argv", ["published.py", *map(str, arguments)])
        with pytest.raises(UserError) as caught:
            published.main()
        assert message in one_sentence(caught)
