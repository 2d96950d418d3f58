"""From photos or a video to a posed capture: poses against the truth, what is copied, interruptions, and bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rooms
from bench import poses
from bench.poses import pose_errors
from builders import one_sentence
from commands import run, start
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image
from system_packages import needs

from mobiler2l_ns.data.capture import CaptureDataset
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.process_data.colmap_steps import spread
from mobiler2l_ns.process_data.command import ProcessMobileR2L
from mobiler2l_ns.process_data.photos import Photo, copy_photo, find_photos, write_mask, write_smaller
from mobiler2l_ns.process_data.reconstruction import Reconstructor
from mobiler2l_ns.process_data.record import Record
from mobiler2l_ns.process_data.report import PoseReport, upright_scene
from mobiler2l_ns.process_data.video import choose_frames, import_video, measure_sharpness, upright

try:
    import pycolmap
except ImportError:
    pycolmap = None

needs_pycolmap = pytest.mark.skipif(pycolmap is None, reason="pycolmap has no wheel for this machine")
ORIENTATION, MAKE, FOCAL_35MM, EXIF_IFD = 0x0112, 0x010F, 0xA405, 0x8769


def files_below(folder: Path) -> dict:
    """Each file with its content."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder of 12 photos, and the capture that was made of it."""
    folder = tmp_path_factory.mktemp("room")
    rooms.write_photos(folder / "photos")
    ProcessMobileR2L(folder / "photos", folder / "capture", num_downscales=2).main()
    return folder


def steps_that_run(monkeypatch) -> list:
    """Notes the steps of pycolmap that run from now on."""
    ran, run = [], Reconstructor._run
    monkeypatch.setattr(Reconstructor, "_run", lambda self, step, *rest: (ran.append(step), run(self, step, *rest)))
    return ran


# -- a capture ---------------------------------------------------------------------------------------------------------


@needs_pycolmap
def test_poses_are_the_true_ones(room):
    frames = json.loads((room / "capture" / "transforms.json").read_text())["frames"]
    found = {frame["file_path"]: np.array(frame["transform_matrix"])[:3] for frame in frames}
    assert sorted(found) == [f"images/frame_{number:05d}.jpg" for number in range(1, 13)]
    errors = pose_errors(np.stack([found[name] for name in sorted(found)]), np.stack(rooms.camera_poses(12)))
    assert errors[:, 0].max() < 0.01 and errors[:, 1].max() < 2
    record = Record.read(room / "capture" / "process.json")
    assert record.report.posed == 12 and record.report.unposed == []
    assert record.report.reprojection_error < 0.3 and record.report.points > 500


@needs_pycolmap
def test_nerfstudio_reads_the_capture(room):
    parser = NerfstudioDataParserConfig(data=room / "capture", downscale_factor=2, train_split_fraction=0.9).setup()
    train, held_out = (CaptureDataset(parser.get_dataparser_outputs(split)) for split in ("train", "val"))
    assert (len(train), len(held_out)) == (11, 1)
    assert train.get_numpy_image(0).shape == (90, 120, 3) and train.cameras.width[0] == 120
    assert float(train.cameras.fx[0]) == pytest.approx(100, rel=0.02)
    assert {path.name for path in (room / "capture").iterdir()} == {
        "colmap", "images", "images_2", "images_4", "poses.png", "process.json", "sparse_pc.ply", "transforms.json",
    }  # fmt: skip


@needs_pycolmap
def test_the_picture_has_z_up(room):
    poses, points, colours = upright_scene(room / "capture")
    assert poses[:, 2, 1].mean() > 0.9 and len(points) == len(colours)  # the cameras' up is z
    with Image.open(room / "capture" / "poses.png") as picture:
        assert picture.width > 1000 and (np.asarray(picture.convert("RGB")) == (214, 39, 40)).all(-1).sum() > 100


@needs_pycolmap
def test_a_finished_capture_stays_as_it_is(room, capsys):
    before = files_below(room)
    ProcessMobileR2L(room / "photos", room / "capture", num_downscales=2).main()
    assert files_below(room) == before
    assert "12 of 12 photos have a pose" in capsys.readouterr().out


@needs_pycolmap
def test_an_interrupted_command_goes_on(room, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    command = ProcessMobileR2L(room / "photos", tmp_path / "capture", num_downscales=1)
    monkeypatch.setattr(Reconstructor, "match", interrupt)
    with pytest.raises(KeyboardInterrupt):
        command.main()
    monkeypatch.undo()
    first = tmp_path / "capture" / "images" / "frame_00001.jpg"
    first.write_bytes(first.read_bytes() + b"untouched")
    ran = steps_that_run(monkeypatch)
    command.main()
    assert ran == ["find_features", "match", "find_poses"]
    assert first.read_bytes().endswith(b"untouched")  # neither photos nor features were made again
    assert Record.read(tmp_path / "capture" / "process.json").report.posed == 12


@needs_pycolmap
def test_poses_are_found_again_with_other_options(room, tmp_path, monkeypatch):
    """Other pairs of photos need no new features; another camera does."""
    shutil.copytree(room / "capture", tmp_path / "capture")
    ran = steps_that_run(monkeypatch)
    options = {"num_downscales": 2, "matching_method": "sequential"}
    ProcessMobileR2L(room / "photos", tmp_path / "capture", **options).main()
    assert "add_cameras" not in ran
    ProcessMobileR2L(room / "photos", tmp_path / "capture", camera_type="simple_pinhole", **options).main()
    assert "add_cameras" in ran
    transforms = json.loads((tmp_path / "capture" / "transforms.json").read_text())
    assert transforms["fl_x"] == transforms["fl_y"] == pytest.approx(200, rel=0.02) and len(transforms["frames"]) == 12


@needs_pycolmap
def test_a_removed_photo_after_an_error(tmp_path):
    damaged = rooms.write_photos(tmp_path / "photos", 12)[3]
    damaged.write_bytes(damaged.read_bytes()[:900])
    command = ProcessMobileR2L(tmp_path / "photos", tmp_path / "out", num_downscales=0)
    with pytest.raises(UserError, match="room03.jpg"):
        command.main()
    damaged.unlink()
    record = command._begin(find_photos(command.data, command.output_dir))
    assert len(record.files) == 11 and not record.photos


@needs_pycolmap
@pytest.mark.slow
def test_a_killed_command_goes_on(room, tmp_path):
    """SIGKILL while pycolmap works; the second call finds all poses and writes below its output folder alone."""
    arguments = ("--data", room / "photos", "--output-dir", tmp_path / "out" / "capture")
    home = tmp_path / "home"
    home.mkdir()
    process = start("ns-process-mobiler2l", *arguments, cwd=home)
    for line in process.stdout:
        if line.startswith("features"):
            os.kill(process.pid, signal.SIGKILL)
            break
    process.communicate()
    before = set(tmp_path.rglob("*"))
    printed = run("ns-process-mobiler2l", *arguments, cwd=home, HOME=str(home), TMPDIR=str(home))
    assert "12 of 12 photos have a pose" in printed and "pycolmap" not in printed
    new = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    settings = {home / ".cache", home / ".config"}  # of matplotlib
    assert all({tmp_path / "out" / "capture", *settings} & set(path.parents) for path in new)


@needs_pycolmap
def test_the_larger_of_two_groups_is_taken(tmp_path, capsys):
    rooms.write_photos(tmp_path / "photos", 11)
    others = rooms.write_photos(tmp_path / "photos", 3, seed=1, prefix="zz")
    ProcessMobileR2L(tmp_path / "photos", tmp_path / "capture", num_downscales=0).main()
    assert len(json.loads((tmp_path / "capture" / "transforms.json").read_text())["frames"]) == 11
    printed = " ".join(capsys.readouterr().out.split())
    assert f"Without a pose: {', '.join(path.name for path in others)}" in printed and "docs/capture.md" in printed


@needs_pycolmap
def test_photos_of_two_sizes_have_two_cameras(tmp_path):
    for number, path in enumerate(rooms.write_photos(tmp_path / "photos")):
        if number % 2:
            Image.fromarray(rooms.render(rooms.camera_poses(12)[number], 0, 180, 240)).save(path, quality=95)
    ProcessMobileR2L(tmp_path / "photos", tmp_path / "capture", num_downscales=0).main()
    frames = json.loads((tmp_path / "capture" / "transforms.json").read_text())["frames"]
    assert {(frame["w"], frame["h"]) for frame in frames} == {(240, 180), (180, 240)} and len(frames) == 12


def test_spread_by_hand():
    """101 points on a diagonal: five at each end are left out."""
    assert spread([(number, 2 * number) for number in range(101)], 100, 400) == pytest.approx(180 / 400)
    assert spread([(5, 5)], 10, 10) == 0


def test_many_photos_are_matched_with_their_followers(tmp_path, monkeypatch):
    names = [path.name for path in rooms.write_photos(tmp_path / "images", 3)]
    photos = [Photo(name, name, 240, 180) for name in names]
    assert Reconstructor(tmp_path, photos, "OPENCV").job.exhaustive
    monkeypatch.setattr("mobiler2l_ns.process_data.reconstruction.MAX_EXHAUSTIVE", 2)
    assert not Reconstructor(tmp_path, photos, "OPENCV").job.exhaustive
    assert Reconstructor(tmp_path, photos, "OPENCV", "exhaustive").job.exhaustive


@needs_pycolmap
def test_features_of_a_transparent_photo_lie_on_the_object(tmp_path):
    (tmp_path / "images").mkdir()
    photo = np.dstack([rooms.render(rooms.camera_poses(3)[1]), np.zeros((180, 240), np.uint8)])
    photo[40:140, 60:180, 3] = 255
    Image.fromarray(photo).save(tmp_path / "images" / "frame_00001.png")
    found = [Photo("frame_00001.png", "a.png", 240, 180)]
    Reconstructor(tmp_path, found, "OPENCV").find_features()
    with pycolmap.Database.open(tmp_path / "colmap" / "database.db") as database:
        points = database.read_keypoints(1)[:, :2]
    assert len(points) > 50
    assert (points >= (60 + 2, 40 + 2)).all() and (points <= (180 - 2, 140 - 2)).all()


def test_pose_errors_by_hand():
    """The found world is turned, scaled and moved; then one camera is off by a tenth and turned by 90 degrees."""
    rng = np.random.default_rng(0)
    true = np.stack([np.hstack([np.linalg.qr(rng.normal(size=(3, 3)))[0], rng.normal(size=(3, 1))]) for _ in range(9)])
    true[:, :, 0] *= np.linalg.det(true[:, :, :3])[:, None]
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    found = np.concatenate([turn @ true[:, :, :3], (3 * turn @ true[:, :, 3:]) + 5], axis=2)
    assert np.abs(pose_errors(found, true)).max() < 1e-5
    found[4, :, :3] = found[4, :, :3] @ turn
    errors = pose_errors(found, true)
    assert errors[4, 1] == pytest.approx(90) and np.delete(errors[:, 1], 4).max() < 1e-5
    found[4, :, 3] += 0.3  # in a world of three times the size
    assert 0.05 < pose_errors(found, true)[4, 0] * np.linalg.norm(np.ptp(true[:, :, 3], axis=0)) < 0.1 * 3**0.5


@needs_pycolmap
def test_the_benchmark_of_poses(room, tmp_path, monkeypatch):
    """With a room as the capture, and rings and a video that are rooms, too."""
    truth = rooms.camera_poses(12)
    capture = tmp_path / "capture"
    shutil.copytree(room / "photos", capture / "images")
    whole = [np.vstack([pose, [0, 0, 0, 1]]) for pose in truth]
    frames = [{"file_path": f"images/room{k:02d}.jpg", "transform_matrix": m.tolist()} for k, m in enumerate(whole)]
    (capture / "transforms.json").write_text(json.dumps({"frames": frames}))
    monkeypatch.setattr(poses, "inputs", lambda options: iter([("capture", capture / "images", whole)]))
    command = ["poses.py", "--work", str(tmp_path / "work"), "--json", str(tmp_path / "poses.json")]
    monkeypatch.setattr(sys, "argv", command)
    poses.main()
    found = json.loads((tmp_path / "poses.json").read_text())["capture"]
    assert (found["photos"], found["posed"]) == (12, 12) and found["median_position_error_percent"] < 1
    assert list(poses.capture_poses(capture)) == [f"room{k:02d}.jpg" for k in range(12)]


def test_photos_and_video_of_the_demo_scene(tmp_path, monkeypatch):
    monkeypatch.setattr(poses, "RINGS", ((20, 2), (60, 1)))
    options = poses.Options(work=tmp_path, side=40, frames=3)
    (rings, photos, ring_truth), (orbit, video, path_truth) = poses.inputs(options)
    assert (rings, len(list(photos.iterdir())), len(ring_truth)) == ("rings", 3, 3)
    assert (orbit, len(path_truth)) == ("orbit", 3)
    (tmp_path / "images").mkdir()
    assert [(photo.width, photo.height) for photo in import_video(video, tmp_path / "images", 3, 0)] == 3 * [(24, 24)]
    with pytest.raises(UserError, match="has no transforms.json with poses"):
        poses.capture_poses(tmp_path)


# -- photos ------------------------------------------------------------------------------------------------------------


def save_with_exif(path: Path, orientation: int) -> np.ndarray:
    """A photo of 60x40 pixels whose left half is red, with EXIF data. Returns its pixels as stored."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30] = (255, 0, 0)
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKE] = orientation, "phone"
    exif.get_ifd(EXIF_IFD)[FOCAL_35MM] = 26
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    return pixels


def test_an_upright_photo_is_copied_byte_for_byte(tmp_path):
    save_with_exif(tmp_path / "a.JPG", 1)
    assert copy_photo(tmp_path / "a.JPG", tmp_path, "frame_00001") == "frame_00001.jpg"
    assert (tmp_path / "frame_00001.jpg").read_bytes() == (tmp_path / "a.JPG").read_bytes()


def test_a_photo_on_its_side_is_turned_and_keeps_its_focal_length(tmp_path):
    save_with_exif(tmp_path / "a.jpg", 6)  # turn by 90 degrees clockwise: the left becomes the top
    name = copy_photo(tmp_path / "a.jpg", tmp_path, "frame_00001")
    with Image.open(tmp_path / name) as image:
        exif, pixels = image.getexif(), np.asarray(image)
    assert pixels.shape == (60, 40, 3) and pixels[10, 20, 0] > 200 and pixels[50, 20, 0] < 50
    assert exif.get(ORIENTATION, 1) == 1 and exif.get_ifd(EXIF_IFD)[FOCAL_35MM] == 26
    if pycolmap:
        camera = pycolmap.infer_camera_from_image(tmp_path / name)
        assert camera.has_prior_focal_length and camera.mean_focal_length() == pytest.approx(26 / 35 * 60, rel=0.05)


@pytest.mark.parametrize(("mode", "name", "stored"), [("P", "a.png", "RGB"), ("LA", "a.png", "RGBA"),
                                                      ("CMYK", "a.jpg", "RGB"), ("RGB", "a.tif", "RGB")])  # fmt: skip
def test_other_formats_are_encoded_anew(tmp_path, mode, name, stored):
    Image.new("RGB", (8, 6), (10, 200, 30)).convert("L" if mode == "LA" else "RGB").convert(mode).save(tmp_path / name)
    copied = copy_photo(tmp_path / name, tmp_path, "frame_00001")
    with Image.open(tmp_path / copied) as image:
        assert image.mode == stored and image.format in ("PNG", "JPEG")
    assert copied == ("frame_00001.png" if name.endswith("png") else "frame_00001.jpg")


def test_smaller_photos_are_means(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(np.kron([[0, 200], [100, 60]], np.ones((8, 8))).astype(np.uint8)).save(
        tmp_path / "images" / "a.png"
    )
    assert write_smaller(tmp_path / "images" / "a.png", 4) == (16, 16)
    sizes = [Image.open(tmp_path / f"images_{factor}" / "a.png").size[0] for factor in (2, 4, 8, 16)]
    assert sizes == [8, 4, 2, 1]
    with Image.open(tmp_path / "images_16" / "a.png") as smallest:
        assert smallest.getpixel((0, 0)) == pytest.approx(90, abs=3)


def test_a_mask_keeps_a_margin(tmp_path):
    alpha = np.zeros((20, 30), np.uint8)
    alpha[5:15, 10:20] = 255
    Image.fromarray(np.dstack([alpha] * 4)).save(tmp_path / "a.png")
    mask = np.asarray(Image.open(write_mask(tmp_path / "a.png", tmp_path / "masks")))
    assert np.argwhere(mask).min(0).tolist() == [7, 12] and np.argwhere(mask).max(0).tolist() == [12, 17]
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    assert write_mask(tmp_path / "b.png", tmp_path / "masks") is None


def test_smaller_copies_and_the_output_are_no_photos(tmp_path):
    for name in ("images/a.jpg", "images_2/a.jpg", "more/b.PNG", "out/images/frame_00001.jpg", "c.heic", "d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_photos(tmp_path, tmp_path / "out")]
    assert found == ["images/a.jpg", "more/b.PNG"]


# -- videos ------------------------------------------------------------------------------------------------------------


def test_the_sharpest_frame_of_each_interval_is_chosen():
    assert choose_frames([1, 5, 2, 9, 3, 4], 3) == [1, 3, 5]
    assert choose_frames([1, 2], 5) == [0, 1]
    assert choose_frames([3, 3, 3, 3, 3, 3, 3], 3) == [0, 2, 5]


def test_sharpness_is_the_variance_of_the_laplacian():
    gray = np.zeros((4, 5), np.uint8)
    gray[1, 2] = 10  # inside, the Laplacian is 10, -40, 10 and 0, 10, 0: mean -10 / 6, mean square 1900 / 6
    assert measure_sharpness(gray) == pytest.approx(1900 / 6 - (10 / 6) ** 2)


def test_blurred_frames_of_a_video_are_left_out(tmp_path):
    (tmp_path / "images").mkdir()
    frames = []
    for number, pose in enumerate(rooms.camera_poses(12)):
        image = Image.fromarray(rooms.render(pose))
        small = image.resize((24, 18)).resize((240, 180))
        frames.append(np.asarray(image if number % 3 == 1 else small))
    video = poses.write_video(tmp_path / "walk.mp4", iter(frames))
    found = import_video(video, tmp_path / "images", 4, 1)
    assert [photo.source for photo in found] == ["0.04 s", "0.17 s", "0.29 s", "0.42 s"]
    for photo, truth in zip(found, frames[1::3]):
        stored = np.asarray(Image.open(tmp_path / "images" / photo.name), np.float32)
        assert np.abs(stored - truth).mean() < 12 and (photo.width, photo.height) == (240, 180)
        assert (tmp_path / "images_2" / photo.name).is_file()


@pytest.mark.parametrize(("rotation", "corner"), [(0, (0, 0)), (-90, (0, 1)), (90, (1, 0)), (180, (1, 1))])
def test_a_frame_is_turned_as_the_phone_was_held(rotation, corner):
    frame = np.zeros((4, 6, 3), np.uint8)
    frame[0, 0] = 255
    turned = np.asarray(upright(frame, rotation))
    rows, columns = turned.shape[:2]
    assert turned[corner[0] * (rows - 1), corner[1] * (columns - 1), 0] == 255
    assert (rows, columns) == ((4, 6) if rotation in (0, 180) else (6, 4))


@needs("ffmpeg")
def test_a_video_that_was_recorded_upright(tmp_path):
    """ffmpeg, which turns frames as the file says, is the reference."""
    (tmp_path / "images").mkdir()
    stored = poses.write_video(tmp_path / "stored.mp4", (rooms.render(pose) for pose in rooms.camera_poses(3)))
    ffmpeg = ["ffmpeg", "-loglevel", "error", "-y"]
    turned, reference = tmp_path / "turned.mp4", tmp_path / "reference.png"
    subprocess.run([*ffmpeg, "-i", stored, "-c", "copy", "-metadata:s:v", "rotate=90", turned], check=True)
    subprocess.run([*ffmpeg, "-i", turned, "-frames:v", "1", reference], check=True)
    found = import_video(turned, tmp_path / "images", 3, 0)
    expected = np.asarray(Image.open(reference).convert("RGB"), np.float32)
    assert expected.shape == (240, 180, 3) and (found[0].width, found[0].height) == (180, 240)
    assert np.abs(np.asarray(Image.open(tmp_path / "images" / found[0].name), np.float32) - expected).mean() < 8


# -- bad input ---------------------------------------------------------------------------------------------------------


def bad_input(tmp_path: Path, case: str) -> ProcessMobileR2L:
    """A command that must be refused, and what it is about."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    command = ProcessMobileR2L(photos, out, num_downscales=0, num_threads=2)
    if case == "no folder":
        return command
    photos.mkdir()
    if case == "two photos":
        rooms.write_photos(photos, 2)
    elif case == "photos of nothing":
        for number in range(10):
            Image.new("RGB", (64, 48), (number, 99, 99)).save(photos / f"{number}.jpg")
    elif case == "nothing in common":
        for number in range(10):
            Image.fromarray(rooms.render(rooms.camera_poses(10)[number], seed=number)).save(photos / f"{number}.jpg")
    elif case == "other files":
        (photos / "a.heic").touch()
        (photos / "b.txt").touch()
    else:
        rooms.write_photos(photos, 10)
    if case == "a damaged photo":
        damaged = photos / "room03.jpg"
        damaged.write_bytes(damaged.read_bytes()[:900])
    elif case == "sixteen bits":
        Image.fromarray(np.zeros((48, 64), np.uint16)).save(photos / "room99.png")
    elif case == "another capture":
        out.mkdir()
        (out / "transforms.json").write_text("{}")
    elif case == "other photos":
        Record(str(photos.resolve()), {}, {}, {}, [Photo("a.jpg", "a.jpg", 1, 1)]).write(_made(out) / "process.json")
    elif case == "a damaged record":
        (_made(out) / "process.json").write_text("{")
    elif case == "its own folder":
        command.output_dir = photos
    elif case == "no video":
        command.data = photos / "room00.mp4"
        command.data.write_text("no video")
    elif case == "a video without frames":
        command.data = photos / "sound.wav"
        command.data.write_bytes(
            b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x40\x1f\0\0\1\0\x08\0data\0\0\0\0"
        )
    elif case == "one photo":
        command.data = photos / "room00.jpg"
    elif case == "below a file":
        command.output_dir = photos / "room00.jpg" / "out"
    elif case == "no frames wanted":
        command.num_frames_target = 0
    elif case == "too many sizes":
        command.num_downscales = 9
    return command


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


BAD_INPUT = {
    "no folder": "there is no ",
    "two photos": "has 2 photos: take at least 10",
    "photos of nothing": "show nothing that can be recognised",
    "nothing in common": "no two photos in ",
    "other files": "has no photos, only .heic, .txt",
    "a damaged photo": "room03.jpg cannot be read (",
    "sixteen bits": "room99.png has more than 8 bits a channel",
    "another capture": "has other files: pass an empty folder",
    "other photos": "was made from other photos or sizes",
    "a damaged record": "process.json cannot be read (",
    "its own folder": "has the photos themselves",
    "no video": "room00.mp4 cannot be read (",
    "a video without frames": "sound.wav is a video without frames",
    "one photo": "room00.jpg has 1 photos: take at least 10",
    "below a file": "out cannot be written (",
    "no frames wanted": "--num-frames-target 0 must be larger than 0",
    "too many sizes": "--num-downscales 9 is not between 0 and 8",
}


@needs_pycolmap
@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_sentence(tmp_path, case):
    command = bad_input(tmp_path, case)
    before = files_below(tmp_path)
    with pytest.raises(UserError) as caught:
        command.main()
    assert BAD_INPUT[case] in one_sentence(caught)
    after = files_below(tmp_path)
    assert {path: after.get(path) for path in before} == before
    assert all(tmp_path / "out" in path.parents for path in set(after) - set(before))


@needs_pycolmap
def test_a_step_that_is_killed_is_one_sentence(tmp_path, monkeypatch):
    """As the kernel does when the memory is full; the next call continues."""
    rooms.write_photos(tmp_path / "photos", 10)
    monkeypatch.setattr("mobiler2l_ns.process_data.reconstruction.sys.executable", killed_python(tmp_path))
    with pytest.raises(UserError, match="ended by signal 9 while it computed cameras") as caught:
        ProcessMobileR2L(tmp_path / "photos", tmp_path / "out", num_downscales=0).main()
    assert "--num-threads 1" in one_sentence(caught)


def killed_python(folder: Path) -> str:
    """A program that is killed, in place of Python."""
    (folder / "python").write_text("#!/bin/sh\nkill -9 $$\n")
    (folder / "python").chmod(0o755)
    return str(folder / "python")


@needs_pycolmap
def test_a_failure_of_pycolmap_keeps_its_traceback(tmp_path):
    (photo,) = rooms.write_photos(tmp_path / "images", 1)
    reconstructor = Reconstructor(tmp_path, [Photo(photo.name, "a.jpg", 240, 180)], "NO_MODEL")
    with pytest.raises(RuntimeError, match="(?s)pycolmap failed at cameras:.*Traceback"):
        reconstructor.find_features()


def test_without_pycolmap_nothing_is_written(tmp_path, monkeypatch):
    rooms.write_photos(tmp_path / "photos", 10)
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(UserError) as caught:
        ProcessMobileR2L(tmp_path / "photos", tmp_path / "out").main()
    sentence = one_sentence(caught)
    assert "mobiler2l-ns[capture]" in sentence and "ns-process-data" in sentence
    assert not (tmp_path / "out").exists()


def test_few_poses_bring_advice(capsys):
    PoseReport(9, ["a.jpg"], 0.5, 1000).print(exhaustive=True)
    assert "Without a pose: a.jpg" in (said := capsys.readouterr().out) and "Take more photos" not in said
    PoseReport(8, ["a.jpg", "b.jpg"], 0.5, 1000).print(exhaustive=True)
    assert "Take more photos" in (said := capsys.readouterr().out) and "Try" not in said
    PoseReport(8, ["a.jpg", "b.jpg"], 0.5, 1000).print(exhaustive=False)
    assert "Try --matching-method exhaustive first." in capsys.readouterr().out
