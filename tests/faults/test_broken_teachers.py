"""Teachers that break while they are in use."""

import copy
import shutil
import weakref

import pytest
import torch
from builders import StubTeacher, camera_at, one_sentence, save_run

from mobiler2l_ns.data import view_stream
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.teacher import frozen
from mobiler2l_ns.teacher.frozen import FrozenTeacher


class Breaking(StubTeacher):
    """Renders a NaN into every second view, or into all from the n-th one on."""

    def __init__(self, first=None):
        super().__init__()
        self.first = first

    def render(self, camera):
        view = super().render(camera)
        is_broken = self.renders % 2 == 1 if self.first is None else self.renders >= self.first
        return (
            torch.where(torch.arange(view[..., 0].numel()).view_as(view[..., :1]) == 9, torch.nan, view)
            if is_broken
            else view
        )


def test_single_broken_views_are_left_out(build_pipeline, monkeypatch):
    manager = build_pipeline(pool_views=6, initial_views=6, photo_share=0.0).datamanager
    teacher = Breaking()
    manager.view_stream.render = lambda camera: teacher.render(camera)
    manager.next_train(0)
    assert manager.view_stream.num_broken == 6 and len(manager.pool) == 6
    assert (manager.pool.images[:, 0, 9] > 0).any()  # NaN would have become black


def test_a_teacher_that_breaks_for_good_ends_the_run(build_pipeline):
    manager = build_pipeline(pool_views=60, initial_views=40, photo_share=0.0).datamanager
    teacher = Breaking(first=5)
    manager.view_stream.render = lambda camera: teacher.render(camera)
    with pytest.raises(UserError, match="10 of 14 views of the teacher have NaN or infinite numbers") as caught:
        manager.next_train(0)
    one_sentence(caught)
    assert view_stream.MOST_BROKEN == 10


class Large(torch.nn.Module):
    """Fits into the memory of a GPU with at most a number of rays at a time."""

    device = torch.device("cpu")

    def __init__(self, fits: int):
        super().__init__()
        self.fits, self.config = fits, copy.copy(type("Config", (), {"eval_num_rays_per_chunk": 4096})())
        self.last_rays = lambda: None

    def get_outputs_for_camera(self, camera):
        assert self.last_rays() is None  # nobody keeps what did not fit
        rays = torch.zeros(self.config.eval_num_rays_per_chunk)
        self.last_rays = weakref.ref(rays)
        if len(rays) > self.fits:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return {"rgb": torch.full((int(camera.height), int(camera.width), 3), 0.5)}


def test_fewer_rays_at_a_time_where_memory_is_short(monkeypatch):
    model = Large(fits=1024)
    monkeypatch.setattr(frozen, "load_teacher", lambda path, device: (model, 0))
    teacher = FrozenTeacher("teacher/config.yml", "cpu")
    assert teacher.render(camera_at(3.0)).shape == (32, 48, 3) and model.config.eval_num_rays_per_chunk == 1024
    teacher.render(camera_at(3.0))
    assert model.config.eval_num_rays_per_chunk == 1024


def test_too_little_memory_is_one_sentence(monkeypatch):
    monkeypatch.setattr(frozen, "load_teacher", lambda path, device: (Large(fits=512), 0))
    teacher = FrozenTeacher("teacher/config.yml", "cpu")
    with pytest.raises(UserError, match="a view of teacher/config.yml does not fit into the GPU's memory") as caught:
        teacher.render(camera_at(3.0))
    assert "--pipeline.datamanager.tile-cells" in one_sentence(caught)


def test_the_weights_have_a_fingerprint(monkeypatch):
    model = Large(fits=4096)
    model.weight = torch.nn.Parameter(torch.arange(3.0))
    monkeypatch.setattr(frozen, "load_teacher", lambda path, device: (model, 0))
    teacher = FrozenTeacher("teacher/config.yml", "cpu")
    before = teacher.fingerprint
    assert teacher.fingerprint == before
    model.weight.data[1] += 1e-6
    assert teacher.fingerprint != before


def test_a_teacher_whose_files_vanish_goes_on_teaching(tiny_teacher, tmp_path):
    """Its weights are in memory."""
    path = save_run(tmp_path / "teacher", *tiny_teacher)
    teacher = FrozenTeacher(path, "cpu")
    before = teacher.render(camera_at(4.0))
    shutil.rmtree(path.parent)
    assert torch.equal(teacher.render(camera_at(4.0)), before)
