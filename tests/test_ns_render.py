"""nerfstudio's own ns-render and ns-eval on a student: what they write is what the model renders."""

import gzip
import json

import mediapy
import numpy as np
import pytest
import torch
from nerfstudio.utils.colormaps import apply_depth_colormap
from system_packages import needs

from mobiler2l_ns.checkpoints import load_model
from mobiler2l_ns.export.comparison import held_out_dataset
from mobiler2l_ns.run_config import read_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def held_out(ball_run):
    """Cameras of the held-out split, and the student's own outputs for each."""
    model, _ = load_model(ball_run, "cpu")
    cameras = held_out_dataset(read_config(ball_run)).cameras
    return cameras, [model.get_outputs_for_camera(cameras[i : i + 1]) for i in range(len(cameras))], model


def assert_same_picture(path, expected) -> None:
    """A PNG file equals a picture in 0..1 up to its rounding."""
    found = mediapy.read_image(path).astype(np.float32) / 255
    assert found.shape == tuple(expected.shape)
    assert np.abs(found - expected.clamp(0, 1).numpy()).max() <= 1 / 255 + 1e-5


def test_dataset_pictures_are_the_students(ball_run, held_out, tmp_path):
    from nerfstudio.scripts import render

    cameras, outputs, model = held_out
    render.DatasetRender(ball_run, tmp_path / "all", image_format="png").main()
    assert {path.name for path in (tmp_path / "all" / "test").iterdir()} == {"rgb", "gt-rgb", "accumulation", "depth"}
    names = ["rgb", "rgba", "depth", "raw-depth", "raw-accumulation"]
    render.DatasetRender(ball_run, tmp_path, image_format="png", rendered_output_names=names).main()
    for i, own in enumerate(outputs):
        files = {name: sorted((tmp_path / "test" / name).iterdir())[i] for name in names}
        assert_same_picture(files["rgb"], own["rgb"])
        assert_same_picture(files["rgba"], model.get_rgba_image(own))
        assert_same_picture(files["depth"], apply_depth_colormap(own["depth"], own["accumulation"]))
        for name in ("depth", "accumulation"):
            with gzip.open(files[f"raw-{name}"]) as file:
                np.testing.assert_allclose(np.load(file), own[name].numpy(), atol=1e-4)


def test_the_val_split_needs_no_teacher(ball_run, tmp_path):
    """The fixture's teacher never existed on disk."""
    from nerfstudio.scripts import render

    render.DatasetRender(ball_run, tmp_path, split="val", rendered_output_names=["rgb"]).main()
    assert len(list((tmp_path / "val" / "rgb").iterdir())) == 2


@needs("ffmpeg")  # nerfstudio looks for it, also where it writes images
def test_a_camera_path_with_a_crop(ball_run, held_out, tmp_path):
    """The box holds the part of the ball that is nearest to the camera, half as wide as the ball."""
    from nerfstudio.scripts import render

    cameras, _, _ = held_out
    c2w = torch.cat([cameras.camera_to_worlds[0], torch.tensor([[0.0, 0, 0, 1]])]).flatten().tolist()
    front = cameras.camera_to_worlds[0, :, 3] / cameras.camera_to_worlds[0, :, 3].norm()
    path = {"render_height": 31, "render_width": 45, "seconds": 1.0, "camera_type": "perspective",
            "camera_path": [{"camera_to_world": c2w, "fov": 40.0}] * 3,
            "crop": {"crop_bg_color": {"r": 255, "g": 0, "b": 0}, "crop_center": front.tolist(),
                     "crop_scale": [1.0, 1.0, 1.0]}}  # fmt: skip
    (tmp_path / "path.json").write_text(json.dumps(path))
    render.RenderCameraPath(
        ball_run, tmp_path / "frames.mp4", image_format="png", camera_path_filename=tmp_path / "path.json",
        output_format="images", rendered_output_names=["rgb", "accumulation"],
    ).main()  # fmt: skip
    frames = sorted((tmp_path / "frames").iterdir())
    assert len(frames) == 3
    picture = mediapy.read_image(frames[0])
    assert picture.shape == (31, 90, 3)
    red = (picture == [255, 0, 0]).all(axis=-1)
    # Outside the ball, in the middle of the box, and on the ball beside the box.
    assert red[0, 0] and not red[15, 22] and red[15, 31]


@needs("ffmpeg")
def test_videos_have_their_frames(ball_run, held_out, tmp_path):
    from nerfstudio.scripts import render

    cameras, outputs, _ = held_out
    height, width = outputs[0]["rgb"].shape[:2]
    render.RenderInterpolated(
        ball_run, tmp_path / "between.mp4", interpolation_steps=3, rendered_output_names=["rgb", "depth"]
    ).main()
    video = mediapy.read_video(tmp_path / "between.mp4")
    assert video.shape == (3 * (len(cameras) - 1), height, 2 * width, 3) and video.std() > 10
    assert np.abs(video[0, :, :width] / 255.0 - outputs[0]["rgb"].numpy()).mean() < 0.03  # compressed
    render.SpiralRender(ball_run, tmp_path / "spiral.mp4", seconds=0.25, downscale_factor=height / 21).main()
    video = mediapy.read_video(tmp_path / "spiral.mp4")  # an odd size
    assert video.shape[:2] == (6, 21) and video.std() > 10


def test_eval_writes_what_it_scores(ball_run, held_out, tmp_path):
    from nerfstudio.scripts.eval import ComputePSNR

    _, outputs, _ = held_out
    ComputePSNR(ball_run, tmp_path / "eval.json", tmp_path / "pictures").main()
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    scores = []
    for i, own in enumerate(outputs):
        picture = mediapy.read_image(tmp_path / "pictures" / f"eval_img_{i:04d}.png") / 255.0
        photo, shown, _ = np.split(picture, 3, axis=1)
        assert np.abs(shown - own["rgb"].clamp(0, 1).numpy()).max() <= 1 / 255 + 1e-5
        scores.append(-10 * np.log10(((photo - shown) ** 2).mean()))
        assert (tmp_path / "pictures" / f"eval_depth_{i:04d}.png").is_file()
    assert results["psnr"] == pytest.approx(np.mean(scores), abs=0.05)
