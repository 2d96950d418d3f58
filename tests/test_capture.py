"""Captures of all formats that nerfstudio reads, and errors of those that it cannot read."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from builders import StubTeacherConfig, one_sentence
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image
from scipy.spatial.transform import Rotation

from mobiler2l_ns.data.capture import CaptureDataManagerConfig
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.geometry import look_at

AS_IT_IS = {"orientation_method": "none", "center_method": "none", "auto_scale_poses": False}
LENS = {"k1": -0.08, "k2": 0.02, "p1": 0.01, "p2": -0.008}
PHONE = {"fl_x": 44.0, "fl_y": 44.0, "cx": 16.5, "cy": 11.6, "w": 32, "h": 24}
UPRIGHT = {"fl_x": 50.0, "fl_y": 50.0, "cx": 12.0, "cy": 16.0, "w": 24, "h": 32}
LARGE = {"fl_x": 80.0, "fl_y": 80.0, "cx": 32.0, "cy": 24.0, "w": 64, "h": 48}
MIXED = [PHONE, UPRIGHT, PHONE, LARGE, PHONE, UPRIGHT, PHONE, LARGE, UPRIGHT, PHONE]


def take_photos(folder, stub, intrinsics, lens):
    """Photos of the ball from a ring of cameras, and their frames in nerfstudio's dialect."""
    (folder / "images").mkdir(parents=True)
    count, frames = len(intrinsics), []
    turn = torch.arange(count) * 2 * math.pi / count
    position = torch.stack([3.5 * turn.cos(), 3.5 * turn.sin(), torch.full((count,), 2.0)], dim=-1)
    poses = look_at(position, torch.zeros(count, 3), torch.tensor([0.0, 0, 1]))
    for k, (pose, camera) in enumerate(zip(poses, intrinsics)):
        bent = torch.tensor([[lens.get(name, 0.0) for name in ("k1", "k2", "k3", "k4", "p1", "p2")]])
        numbers = (camera[name] for name in ("fl_x", "fl_y", "cx", "cy", "w", "h"))
        picture = stub.render(Cameras(pose[None], *numbers, bent))
        Image.fromarray((picture * 255).round().byte().numpy()).save(folder / "images" / f"{k}.png")
        matrix = [*pose.tolist(), [0, 0, 0, 1]]
        frames.append({"file_path": f"images/{k}.png", "transform_matrix": matrix, **camera, **lens})
    return frames


def write_nerfstudio(folder, frames):
    (folder / "transforms.json").write_text(json.dumps({"camera_model": "OPENCV", "frames": frames}))
    return NerfstudioDataParserConfig(data=folder, **AS_IT_IS)


def write_instant_ngp(folder, frames):
    shared = {name: frames[0][name] for name in (*PHONE, *LENS) if name in frames[0]}
    (folder / "transforms.json").write_text(json.dumps({**shared, "frames": frames}))
    return InstantNGPDataParserConfig(data=folder, scene_scale=1.0)


def write_colmap(folder, frames):
    model = folder / "colmap" / "sparse" / "0"
    model.mkdir(parents=True)
    cameras, images = [], []
    for k, frame in enumerate(frames, start=1):
        numbers = [frame.get(name, 0.0) for name in ("w", "h", "fl_x", "fl_y", "cx", "cy", "k1", "k2", "p1", "p2")]
        cameras.append(f"{k} OPENCV {' '.join(map(str, numbers))}\n")
        c2w = np.array(frame["transform_matrix"]) @ np.diag([1, -1, -1, 1])
        w2c = np.linalg.inv(c2w)
        x, y, z, w = Rotation.from_matrix(w2c[:3, :3]).as_quat()
        place = " ".join(map(str, (w, x, y, z, *w2c[:3, 3])))
        images.append(f"{k} {place} {k} {frame['file_path'].removeprefix('images/')}\n0 0 -1\n")
    for name, lines in (("cameras", cameras), ("images", images), ("points3D", ["1 0 0 1 200 200 200 0.1 1 0\n"])):
        (model / f"{name}.txt").write_text("".join(lines))
    return ColmapDataParserConfig(data=folder, assume_colmap_world_coordinate_convention=False, **AS_IT_IS)


CAPTURES = {
    "nerfstudio, mixed": (write_nerfstudio, MIXED, {}),
    "nerfstudio, mixed and bent": (write_nerfstudio, MIXED, LENS),
    "colmap, mixed and bent": (write_colmap, MIXED, LENS),
    "instant-ngp, bent": (write_instant_ngp, [PHONE] * 10, LENS),
}


@pytest.mark.parametrize("name", CAPTURES)
def test_a_student_learns_from_every_dialect(name, build_pipeline, stub_teacher, tmp_path):
    """Photo windows belong to their rays, through lens, resize and crop; steps, evaluation and teacher data work."""
    write, intrinsics, lens = CAPTURES[name]
    parser = write(tmp_path / "photos", take_photos(tmp_path / "photos", stub_teacher, intrinsics, lens))
    options = {"data": tmp_path / "photos", "dataparser": parser, "patches_per_batch": 30}
    pipeline = build_pipeline("rgbad", photo_share=1.0, patch_cells=1, **options)
    datamanager, model = pipeline.datamanager, pipeline.model
    # Most photos are 32 x 24; a window is one cell of 8 x 8 pixels.
    assert datamanager.size == (24, 32) and model.config.points == "unbounded"
    cameras, photos = datamanager.photos.cameras, datamanager.photos.images.float() / 255
    for k in range(len(photos)):
        rays = cameras[k : k + 1].generate_rays(0, keep_shape=True)
        across = torch.linalg.cross(rays.origins, rays.directions, dim=-1).norm(dim=-1)
        error = (photos[k] - stub_teacher.colours(rays.origins, rays.directions)).abs().amax(dim=-1)[across < 0.7]
        assert len(error) > 30 and error.max() < 0.03
    for step in range(2):
        _, losses, _ = pipeline.get_train_loss_dict(step)
        sum(losses.values()).backward()
    model.eval()
    for camera, batch in datamanager.fixed_indices_eval_dataloader:
        outputs = model.get_outputs_for_camera(camera)
        assert outputs["rgb"].shape == batch["image"].shape
        model.get_image_metrics_and_images(outputs, batch)
    teacher = CaptureDataManagerConfig(data=options["data"], dataparser=parser, train_num_rays_per_batch=64)
    rays, batch = teacher.setup(device="cpu", test_mode="val", world_size=1, local_rank=0).next_train(0)
    assert len(rays) == len(batch["image"]) == 64


def test_a_capture_in_double_precision(build_pipeline, stub_teacher, tmp_path, monkeypatch):
    """A parser that keeps numpy's numbers: nerfstudio's rays would be float64, and networks refuse them."""
    folder = tmp_path / "photos"
    parser = write_nerfstudio(folder, take_photos(folder, stub_teacher, [PHONE] * 10, {}))
    generate = NerfstudioDataParserConfig()._target._generate_dataparser_outputs

    def in_double(self, *args, **kwargs):
        outputs = generate(self, *args, **kwargs)
        for name in ("camera_to_worlds", "fx", "fy", "cx", "cy", "distortion_params"):
            setattr(outputs.cameras, name, getattr(outputs.cameras, name).double())
        return outputs

    monkeypatch.setattr(NerfstudioDataParserConfig()._target, "_generate_dataparser_outputs", in_double)
    options = {"data": folder, "dataparser": parser, "reprojected_share": 0.5, "reprojected_views": 3}
    pipeline = build_pipeline("rgbad", photo_share=0.5, **options)
    bundle, batch = pipeline.datamanager.next_train(0)
    assert bundle.origins.dtype == bundle.directions.dtype == batch["image"].dtype == torch.float32
    pipeline.get_train_loss_dict(1)
    camera, _ = pipeline.datamanager.next_eval_image(0)
    outputs = pipeline.model.eval().get_outputs_for_camera(camera)
    assert {value.dtype for value in outputs.values()} == {torch.float32}


def test_fisheye_photos_are_refused_in_a_sentence(build_pipeline, stub_teacher, tmp_path):
    folder = tmp_path / "photos"
    parser = write_nerfstudio(folder, take_photos(folder, stub_teacher, [PHONE] * 10, {}))
    meta = json.loads((folder / "transforms.json").read_text())
    for model in ("OPENCV_FISHEYE", "EQUIRECTANGULAR"):
        (folder / "transforms.json").write_text(json.dumps({**meta, "camera_model": model}))
        with pytest.raises(UserError, match="0.png is a fisheye photo or a panorama.*undistort") as caught:
            build_pipeline(data=folder, dataparser=parser)
        assert "\n" not in str(caught.value)


def test_too_few_photos_to_hold_one_out(stub_teacher, tmp_path):
    parser = write_nerfstudio(tmp_path / "photos", take_photos(tmp_path / "photos", stub_teacher, [PHONE] * 4, {}))
    with pytest.raises(UserError, match="photos has too few photos to hold one out"):
        CaptureDataManagerConfig(data=parser.data, dataparser=parser).setup(device="cpu", test_mode="val")


def test_instant_ngp_without_a_focal_length_is_one_sentence(stub_teacher, tmp_path):
    folder = tmp_path / "photos"
    frames = take_photos(folder, stub_teacher, [PHONE] * 2, {})
    (folder / "transforms.json").write_text(json.dumps({"w": 32, "h": 24, "frames": frames}))
    config = CaptureDataManagerConfig(data=folder, dataparser=InstantNGPDataParserConfig(data=folder))
    with pytest.raises(UserError, match="Focal length cannot be calculated"):
        config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)


# -- captures that cannot be read -------------------------------------------------------------------------------------


def load(folder):
    """The datamanager that teachers use, on a folder."""
    config = CaptureDataManagerConfig(data=folder, dataparser=BlenderDataParserConfig(data=folder))
    return config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)


BREAKS = {
    "no frames": lambda meta: meta["frames"].clear(),
    "no key": lambda meta: meta.pop("frames"),
    "no angle": lambda meta: meta.pop("camera_angle_x"),
    "no photo": lambda meta: meta["frames"][0].update(file_path="./train/gone"),
    "a list": lambda meta: meta.update(frames=[[1, 2]]),
    "ragged": lambda meta: meta["frames"][0].update(transform_matrix=[[1, 0, 0], [0, 1]]),
}


@pytest.fixture
def broken(capture, tmp_path):
    """A copy of the capture, and a function that changes one of its transforms files."""
    folder = tmp_path / "broken"
    shutil.copytree(capture, folder)

    def change(edit, split="train"):
        path = folder / f"transforms_{split}.json"
        meta = json.loads(path.read_text())
        edit(meta)
        path.write_text(json.dumps(meta))
        return folder

    return change


def test_the_copy_loads_while_nothing_is_broken(broken):
    datamanager = load(broken(lambda meta: None))
    assert len(datamanager.train_dataset) == 8 and len(datamanager.eval_dataset) == 2
    assert datamanager.train_dataset.metadata["transparent_background"] is True


def test_photos_without_alpha_have_no_transparent_background(ball_capture):
    assert load(ball_capture).train_dataset.metadata["transparent_background"] is False


def test_a_missing_folder(tmp_path):
    with pytest.raises(UserError, match="--data") as caught:
        load(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in one_sentence(caught)


def test_a_folder_without_poses(tmp_path):
    with pytest.raises(UserError, match="ns-process-mobiler2l.*blender-data") as caught:
        load(tmp_path)
    assert str(tmp_path) in one_sentence(caught)


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_transforms_file(broken, name):
    folder = broken(BREAKS[name])
    with pytest.raises(UserError) as caught:
        load(folder)
    assert str(folder) in one_sentence(caught)


def test_a_transforms_file_cut_short(broken):
    folder = broken(lambda meta: None)
    path = folder / "transforms_train.json"
    path.write_text(path.read_text()[:200])
    with pytest.raises(UserError) as caught:
        load(folder)
    assert str(folder) in one_sentence(caught)


@pytest.mark.parametrize("name", ["train/r_000.png", "train/r_005.png", "val/r_001.png"])
def test_a_photo_cut_short(broken, name):
    folder = broken(lambda meta: None)
    (folder / name).write_bytes((folder / name).read_bytes()[:20])
    with pytest.raises(UserError) as caught:
        load(folder)
    assert str(folder) in one_sentence(caught)


@pytest.mark.parametrize("meta", [{"frames": []}, {}, {"frames": [{"file_path": "a.png"}]}], ids=str)
def test_nerfstudio_data_without_poses(tmp_path, meta):
    (tmp_path / "transforms.json").write_text(json.dumps({"fl_x": 9, "cx": 4, "cy": 4, "w": 8, "h": 8, **meta}))
    config = CaptureDataManagerConfig(data=tmp_path, dataparser=NerfstudioDataParserConfig())
    with pytest.raises(UserError, match="nerfstudio-data") as caught:
        config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
    assert str(tmp_path) in one_sentence(caught)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("split, photo", [("train", "r_003"), ("val", "r_001")])
def test_an_unusable_camera_is_named(broken, value, split, photo):
    def spoil(meta):
        meta["frames"][int(photo[-1])]["transform_matrix"][1][3] = value

    folder = broken(spoil, split)
    with pytest.raises(UserError, match="NaN") as caught:
        load(folder)
    assert str(folder / split / f"{photo}.png") in one_sentence(caught)


def test_no_focal_length_is_named(broken):
    folder = broken(lambda meta: meta.update(camera_angle_x=-1.0))
    with pytest.raises(UserError, match="no focal length") as caught:
        load(folder)
    assert "r_000.png" in one_sentence(caught)


# -- whose mistake it is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bug", [TypeError, ValueError, KeyError, AssertionError, OSError])
def test_a_bug_after_the_capture_was_read_keeps_its_traceback(bug, build_pipeline, monkeypatch):
    """Loading the teacher and building the pool come after it, in the same constructor of nerfstudio's."""

    def fail(self, device):
        raise bug("a bug")

    monkeypatch.setattr(StubTeacherConfig, "setup", fail)
    with pytest.raises(bug, match="a bug"):
        build_pipeline()


def test_a_missing_attribute_in_a_teacher_is_not_the_datamanagers(build_pipeline, monkeypatch):
    monkeypatch.setattr(StubTeacherConfig, "setup", lambda self, device: device.nothing)
    with pytest.raises(RuntimeError, match="config.yml cannot be loaded") as caught:
        build_pipeline()
    assert "nothing" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("parser", "name"),
    [(ColmapDataParserConfig, "colmap"), (InstantNGPDataParserConfig, "instant-ngp-data"),
     (NerfstudioDataParserConfig, "nerfstudio-data"), (BlenderDataParserConfig, "blender-data")],
)  # fmt: skip
def test_a_message_names_parsers_as_the_command_line_does(parser, name, tmp_path):
    config = CaptureDataManagerConfig(data=tmp_path, dataparser=parser(data=tmp_path))
    with pytest.raises(UserError, match=f"cannot be read as {name} \\("):
        config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)


def test_a_photo_that_is_no_image_is_named(stub_teacher, tmp_path):
    """Not the first one, which is looked at for its background, but one that is read with all others."""
    folder = tmp_path / "photos"
    parser = write_nerfstudio(folder, take_photos(folder, stub_teacher, [PHONE] * 10, {}))
    (folder / "images" / "5.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="the photo .*images/5.png cannot be read") as caught:
        CaptureDataManagerConfig(data=folder, dataparser=parser).setup(device="cpu", test_mode="val")
    one_sentence(caught)
