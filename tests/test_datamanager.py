"""What the student is fed: patches whose pixels belong to their rays, from teacher and photos, and clear refusals."""

import json
import re
import time

import pytest
import torch
import yaml
from builders import StubTeacherConfig, one_sentence, pixel_rays, stub_teacher_config
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from mobiler2l_ns.data import photos, pool
from mobiler2l_ns.datamanager import DistillationDataManager
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.teacher.frozen import TeacherConfig


@pytest.fixture
def build(student_config, stub_teacher, tmp_path):
    """Makes the student's datamanager with the stub as its teacher; keyword arguments are config fields."""

    def make(test_mode="val", **options) -> DistillationDataManager:
        config = student_config.pipeline.datamanager
        config.teacher = stub_teacher_config(stub_teacher, tmp_path / "teacher")
        for name, value in options.items():
            assert hasattr(config, name)
            setattr(config, name, value)
        return config.setup(device="cpu", test_mode=test_mode, world_size=1, local_rank=0)

    torch.manual_seed(0)
    return make


def worst_errors(stub, bundle, batch) -> torch.Tensor:
    """Largest colour error of each pixel against the stub, by closed form."""
    return (batch["image"] - stub.colours(*pixel_rays(bundle))).abs().amax(dim=-1)


# -- batches --------------------------------------------------------------------------------------------------------


def test_a_batch_has_patches_of_rays_and_pixels(build):
    datamanager = build()
    bundle, batch = datamanager.next_train(0)
    assert isinstance(bundle, RayBundle) and bundle.shape == (4, 2, 2)
    assert batch["image"].shape == (4, 16, 16, 3)
    assert 0 <= batch["image"].min() and batch["image"].max() <= 1
    assert datamanager.get_train_rays_per_batch() == 4 * 16 * 16
    bundle, batch = datamanager.next_eval(0)
    assert bundle.shape == (4, 2, 2) and batch["image"].shape == (4, 16, 16, 3)


def test_whole_pictures_without_a_patch_size(build):
    bundle, batch = build(patch_cells=None).next_train(0)
    assert bundle.shape == (4, 4, 4) and batch["image"].shape == (4, 32, 32, 3)


@pytest.mark.parametrize("tile_cells, patch_cells", [(None, 2), (3, 2), (2, 3)])
def test_targets_are_what_the_teacher_shows_at_these_rays(build, stub_teacher, tile_cells, patch_cells):
    datamanager = build(photo_share=0.0, tile_cells=tile_cells, patch_cells=patch_cells, patches_per_batch=30)
    assert datamanager.photos is None
    bundle, batch = datamanager.next_train(0)
    assert bundle.shape == (30, 2, 2)  # a patch is no larger than a tile
    errors = worst_errors(stub_teacher, bundle, batch)
    assert (errors <= 0.5 / 255 + 1e-4).float().mean() > 0.999  # a ray along the rim may round either way
    seen = batch["image"].amin(dim=-1) < 1
    assert 0.1 < seen.float().mean() < 0.95  # ball and background alike


def test_photo_targets_belong_to_their_rays(build, stub_teacher, ball_capture):
    datamanager = build(data=ball_capture, photo_share=1.0, patches_per_batch=30)
    bundle, batch = datamanager.next_train(0)
    errors = worst_errors(stub_teacher, bundle, batch)
    assert (errors <= 0.5 / 255 + 1e-4).float().mean() > 0.999
    assert stub_teacher.renders == 0  # photos only: no view is rendered
    bundle, batch = datamanager.next_eval(0)
    assert (worst_errors(stub_teacher, bundle, batch) <= 0.5 / 255 + 1e-4).float().mean() > 0.999


def test_a_smaller_picture_stays_on_its_rays(build, stub_teacher, ball_capture):
    """Photos shrink by 3/4 and lose rows above and below; colours change by less than 0.04 a pixel inside the ball."""
    datamanager = build(data=ball_capture, photo_share=1.0, patches_per_batch=30, image_size=(24, 16))
    assert datamanager.size == (16, 24)
    camera = datamanager.train_dataset.metadata["student_camera"]
    assert (camera.height, camera.width) == (16, 24)
    assert camera.focal == pytest.approx(0.75 * 16 / 0.36)
    bundle, batch = datamanager.next_train(0)
    origins, directions = pixel_rays(bundle)
    through = (origins * directions).sum(-1)
    miss = (origins - (through / (directions**2).sum(-1))[..., None] * directions).norm(dim=-1)
    inside = miss < 0.7
    assert inside.float().mean() > 0.2
    assert worst_errors(stub_teacher, bundle, batch)[inside].max() < 0.02


def test_photo_share_splits_the_batch(build, stub_teacher, capture):
    """Teacher views come first; photos are where the capture's cameras stand."""
    datamanager = build(photo_share=0.25, patches_per_batch=8)
    bundle, batch = datamanager.next_train(0)
    own = datamanager.train_dataset.cameras.camera_to_worlds[:, :, 3]
    distance = torch.cdist(bundle.origins[:, 0, 0], own).amin(dim=1)
    assert (distance[:6] > 1e-3).all() and (distance[6:] < 1e-5).all()
    assert (worst_errors(stub_teacher, bundle, batch)[:6] <= 0.5 / 255 + 1e-4).float().mean() > 0.999


# -- the teacher ----------------------------------------------------------------------------------------------------


def test_without_a_share_only_the_first_views_are_rendered(build, stub_teacher):
    datamanager = build(teacher_share=0.0, filling_share=0.0)
    assert stub_teacher.renders == 0 and stub_teacher.probes == 24
    for step in range(3):
        datamanager.next_train(step)
    assert stub_teacher.renders == datamanager.pool.num_added == 2


def test_the_teacher_renders_within_its_share_of_the_time(build, stub_teacher, monkeypatch):
    """A clock that stands still but for 1 s a view, and 10 s a step."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    render = stub_teacher.render
    monkeypatch.setattr(stub_teacher, "render", lambda camera: (now.__setitem__(0, now[0] + 1), render(camera))[1])
    datamanager = build(teacher_share=0.3, filling_share=0.5)
    counts = []
    for step in range(5):
        datamanager.next_train(step)
        counts.append(datamanager.pool.num_added)
        now[0] += 10
        if step == 3:  # an evaluation, which is no training time
            with datamanager.budget.exclude():
                now[0] += 100
    # First 2 views, at t = 2: 0.5 t - 2 < 0. t = 12: 0.5 t - 2 = 4, but 2 fill the pool. From t = 24 on the full pool's
    # share counts anew: 0 there, 0.3 * 10 = 3 at t = 34, and 0.3 * 23 - 3 = 3.9, rounded up, at t = 47.
    assert counts == [2, 4, 4, 7, 11]
    assert len(datamanager.pool) == 4 and datamanager.statistics()["views"] == 11
    poses = datamanager.pool.c2w
    assert torch.cdist(poses[:, :, 3], poses[:, :, 3]).fill_diagonal_(1).min() > 1e-3  # new poses each time


def test_statistics(build):
    datamanager = build(tile_cells=2)
    datamanager.next_train(0)
    found = datamanager.statistics()
    assert found.pop("teacher_seconds") >= 0 and found.pop("share_of_training_time") > 0
    # Pool: 4 views of 16*16*3 bytes, 12 floats and 2 longs; photos: 8 of 32*32*3.
    size = 4 * (16 * 16 * 3 + 48 + 16) + 8 * 32 * 32 * 3
    assert found == {
        "capacity": 4, "views": 2, "view_height": 16, "view_width": 16, "bytes": size, "photos": 8,
    }  # fmt: skip


def test_the_teacher_is_loaded_once_and_is_no_part_of_the_student(build, stub_teacher, monkeypatch):
    loads, setup = [], StubTeacherConfig.setup
    monkeypatch.setattr(StubTeacherConfig, "setup", lambda self, device: loads.append(device) or setup(self, device))
    datamanager = build()
    datamanager.next_train(0)
    assert datamanager.teacher is stub_teacher and len(loads) == 1
    assert not datamanager.state_dict() and not list(datamanager.parameters())
    datamanager.eval()
    assert stub_teacher.training


@pytest.mark.parametrize("test_mode", ["test", "inference"])
def test_other_commands_do_not_need_the_teacher(build, monkeypatch, test_mode):
    def never(*arguments):
        raise AssertionError("only ns-train may touch the teacher")

    monkeypatch.setattr(StubTeacherConfig, "setup", never)
    monkeypatch.setattr(StubTeacherConfig, "find", never)
    datamanager = build(test_mode=test_mode)
    assert datamanager.pool is None and "student_camera" not in datamanager.train_dataset.metadata


def test_a_cache_spares_the_first_views(build, stub_teacher, tmp_path):
    build(cache_dir=tmp_path / "cache").next_train(0)
    assert stub_teacher.renders == 2
    again = build(cache_dir=tmp_path / "cache")
    again.next_train(0)
    assert stub_teacher.renders == 2 and again.pool.num_added == 2
    build(cache_dir=tmp_path / "cache", teacher_share=0.5, filling_share=0.5).next_train(0)
    assert stub_teacher.renders == 3  # one, to find out how long it takes


@pytest.mark.parametrize("other", [{"poses": "path"}, {"image_size": (24, 24)}], ids=str)
def test_a_cache_of_other_poses_or_sizes_is_refused(build, tmp_path, other):
    build(cache_dir=tmp_path / "cache").next_train(0)
    with pytest.raises(UserError, match="has views of another teacher"):
        build(cache_dir=tmp_path / "cache", **other)


# -- near and far ---------------------------------------------------------------------------------------------------


def test_near_and_far_enclose_the_ball(build):
    """Cameras are 3.9 to 4.1 from (0, 0, 0.1) and look at it, so the ball's centre lies at z = 3.93..4.2.

    Its nearest point is 1 before that; the farthest visible ones, on the rim, 1/4 before it. On either side come 3
    percent of the range.
    """
    camera = build().train_dataset.metadata["student_camera"]
    assert 2.88 < camera.near < 3.2
    assert 3.6 < camera.far < 4.03
    assert (camera.height, camera.width) == (32, 32) and camera.focal == pytest.approx(16 / 0.36)


def test_given_near_and_far_are_taken_as_they_are(build, capsys):
    """The ball lies between 2.88 and 4.03."""
    for planes, warns in (((1.5, 7.0), False), ((5.0, 7.0), True)):
        camera = build(near_far=planes).train_dataset.metadata["student_camera"]
        assert (camera.near, camera.far) == planes
        assert ("Warning: only 0% of what the teacher renders" in capsys.readouterr().out) == warns
    for wrong in ((0.0, 1.0), (3.0, 2.0)):
        with pytest.raises(UserError, match="--pipeline.datamanager.near-far needs 0 < near < far"):
            build(near_far=wrong)


@pytest.mark.parametrize("even, expected", [(False, 2 / 17), (True, 32 / 47)])
def test_even_borders_are_shown_as_often_as_the_middle(build, even, expected, monkeypatch):
    """Of 17 starts inside of 32 pixels two are at the border; of 47 that meet them, 16 are moved to each side."""
    told = []
    for module in (pool, photos):
        cut = module.cut_patches
        monkeypatch.setattr(module, "cut_patches", lambda *args, cut=cut: told.append(args[-1]) or cut(*args))
    datamanager = build(even_borders=even, tile_cells=2, pool_views=400, initial_views=400, photo_share=0.5)
    datamanager.next_train(0)
    corner = datamanager.pool.corner
    share = ((corner == 0) | (corner == 16)).float().mean()
    assert float(share) == pytest.approx(expected, abs=0.06)
    assert told == [even] * 2


# -- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, cure", [((30, 32), "24 32"), ((32, 31), "32 24"), ((4, 4), "8 8")], ids=str)
def test_a_size_that_does_not_divide_names_its_cure(build, size, cure):
    with pytest.raises(UserError, match=f"--pipeline.datamanager.image-size {cure}") as caught:
        build(image_size=size)
    one_sentence(caught)


def test_photos_that_are_enlarged_are_named(build, capsys):
    build(image_size=(40, 40))
    assert "Warning: the photos are 32x32 pixels, and the student's view of 40x40" in capsys.readouterr().out
    build(image_size=(24, 24))
    assert "Warning" not in capsys.readouterr().out


def test_photos_that_do_not_divide_are_named(build, capture):
    with pytest.raises(UserError, match="upscale factor 12.*image-size 24 24") as caught:
        build(upscale=12)
    assert str(capture / "train" / "r_000.png") in one_sentence(caught)


def test_a_teacher_of_another_world_is_refused(build, tmp_path, capture):
    path = tmp_path / "teacher" / "dataparser_transforms.json"
    path.parent.mkdir()
    world = {"transform": torch.eye(4)[:3].tolist(), "scale": 1.0}
    path.write_text(json.dumps(world))
    build()  # the same world
    shifted = torch.eye(4)[:3]
    shifted[0, 3] = 0.1
    for other in ({"scale": 2.0}, {"transform": shifted.tolist()}):
        path.write_text(json.dumps({**world, **other}))
        with pytest.raises(UserError, match="another world") as caught:
            build()
        message = one_sentence(caught)
        assert str(path.with_name("config.yml")) in message and str(capture) in message


# -- small parts ----------------------------------------------------------------------------------------------------


def test_the_teachers_parser_is_taken_over_unless_one_is_given(tmp_path, capture):
    import copy

    from mobiler2l_ns.method_configs import mobiler2l_teacher_small

    teacher = copy.deepcopy(mobiler2l_teacher_small.config)
    teacher.pipeline.datamanager.dataparser = BlenderDataParserConfig(data=tmp_path / "old", scale_factor=2.0)
    path = tmp_path / "config.yml"
    path.write_text(yaml.dump(teacher))

    def adopt(parser):
        return TeacherConfig(load_config=path).find(capture, parser, "cpu").dataparser

    adopted = adopt(NerfstudioDataParserConfig(data=capture))
    assert adopted == BlenderDataParserConfig(data=capture, scale_factor=2.0)
    given = BlenderDataParserConfig(data=capture, scale_factor=3.0)
    assert adopt(copy.deepcopy(given)) == given


def test_memory_is_as_announced(build, capsys):
    datamanager = build(pool_views=500)
    text = " ".join(capsys.readouterr().out.split())
    announced = [float(number) for number in re.findall(r"\(([\d.]+) MB\)", text)]
    assert len(announced) == 2  # pool and photos; test_batches.py has reprojected views, too
    assert sum(announced) == pytest.approx(datamanager.statistics()["bytes"] / 1e6, rel=0.1)
    tensors = [datamanager.pool.images, datamanager.pool.c2w, datamanager.pool.corner, datamanager.photos.images]
    assert sum(t.numel() * t.element_size() for t in tensors) == datamanager.statistics()["bytes"]
