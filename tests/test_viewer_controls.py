"""The student in nerfstudio's viewer: teacher and error, crop box, figures and sliders of the data, export."""

import json
import math
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components.renderers import background_color_override_context
from nerfstudio.viewer.utils import parse_object
from nerfstudio.viewer.viewer_elements import ViewerElement
from open_viewer import OpenViewer, look
from test_geometry import constant_model
from test_model import ORBIT, camera_at, make_model
from test_snap import orbit_cameras

from mobiler2l_ns.cameras import pinhole_cameras, rays_at, sphere_bounds
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.student.coverage import ray_distances, ray_offsets, trained_extent
from mobiler2l_ns.student.crop_box import box_mask
from mobiler2l_ns.trainer import DistillationTrainer
from mobiler2l_ns.viewer.start_view import StartView

RED = torch.tensor([1.0, 0.0, 0.0])


def text_of(element) -> str:
    """What a text in the viewer says, without the places where a path may break."""
    return element.gui_handle.content.replace("\N{ZERO WIDTH SPACE}", "")


@pytest.fixture
def run_folder(tmp_path, student_config):
    """The folder of a run on disk, as ns-train leaves it but for the checkpoint."""
    folder = tmp_path / "outputs" / "ball" / "mobiler2l-small" / "run"
    folder.mkdir(parents=True)
    student_config.experiment_name = "ball"
    (folder / "config.yml").write_text(yaml.dump(student_config))
    return folder


# -- teacher and error ------------------------------------------------------------------------------------------------


def test_the_viewer_offers_teacher_and_error(build_pipeline, stub_teacher, run_folder):
    """Each picture by its definition; the teacher renders only while it is looked at, once a picture."""
    pipeline = build_pipeline(outputs="rgbad")
    with OpenViewer(pipeline, run_folder) as viewer:
        panel = viewer.panel
        assert panel._output_render.options == ["rgb", "accumulation", "depth", "error", "teacher"]
        assert panel.split_output_render == "teacher"
        student = viewer.render()
        assert stub_teacher.renders == 0
        panel._output_render.value = "teacher"
        teacher = viewer.render()
        assert stub_teacher.renders == 2 and teacher.shape == (32, 32, 3)  # a coarse one comes first
        state = viewer.state
        camera = pinhole_cameras(state.c2w[None], 16 / np.tan(state.fov / 2), 32, 32)
        assert np.abs(teacher / 255 - stub_teacher.render(camera).numpy()).max() < 1.1 / 255
        panel._output_render.value = "error"
        expected = np.clip(3 * np.abs(student / 255 - teacher / 255), 0, 1)
        assert np.abs(viewer.render() / 255 - expected).max() < 8 / 255  # three times two roundings
        panel._output_render.value = "rgb"
        panel._split.value = True  # student on the left, teacher on the right of a line
        both = viewer.render()
        assert np.abs(both[:, :15].astype(int) - student[:, :15]).max() <= 1
        assert np.abs(both[:, 17:].astype(int) - teacher[:, 17:]).max() <= 1


def test_the_teacher_is_loaded_without_the_viewers_trace(build_pipeline, stub_teacher):
    comparison, seen = build_pipeline().comparison, []
    comparison.load = lambda: seen.append(sys.gettrace()) or stub_teacher

    def trace(frame, event, argument):
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        comparison._render(camera_at(4.0), None)
        assert sys.gettrace() is trace and seen == [None]
    finally:
        sys.settrace(before)


def test_composite_depth_leaves_the_teacher_to_the_split(build_pipeline, run_folder):
    with OpenViewer(build_pipeline(outputs="rgbad"), run_folder) as viewer:
        viewer.panel._layer_depth.value = True
        viewer.render()
        assert "gl_z_buf_depth" in viewer.panel._output_render.options
        assert viewer.panel.split_output_render == "teacher"


def test_nobody_but_a_viewer_is_offered_the_teacher(build_pipeline, stub_teacher, run_folder):
    """Not even the evaluation of a training that is watched while the teacher is on the screen."""
    pipeline = build_pipeline(outputs="rgbad")
    camera = pipeline.datamanager.eval_dataset.cameras[:1]
    plain = ["rgb", "accumulation", "depth"]
    pipeline.eval()
    assert list(pipeline.model.get_outputs_for_camera(camera)) == plain
    with OpenViewer(pipeline, run_folder) as viewer:
        viewer.panel._output_render.value = "teacher"
        viewer.render()
        renders = stub_teacher.renders
        assert list(pipeline.model.get_outputs_for_camera(camera)) == plain
        pipeline.get_average_eval_image_metrics(0)
    assert stub_teacher.renders == renders


@pytest.mark.parametrize("failure", [UserError("there is no run/config.yml: train it."), RuntimeError("out of memory")])
def test_a_teacher_that_cannot_be_shown(build_pipeline, run_folder, monkeypatch, capsys, failure):
    """One sentence, once, in the viewer and on the console; a grey picture; and the render thread lives on."""
    pipeline = build_pipeline()
    asked = []

    def load():
        asked.append(1)
        raise failure

    pipeline.comparison.load = load
    with OpenViewer(pipeline, run_folder) as viewer:
        student = viewer.render()
        capsys.readouterr()
        for output in ("teacher", "error", "teacher"):
            viewer.panel._output_render.value = output
            assert (viewer.render() == 127).all()
        printed = " ".join(capsys.readouterr().out.split())
        assert printed.count(str(failure)) == len(asked) == 1
        assert str(failure) in text_of(pipeline.comparison.message)
        viewer.panel._output_render.value = "rgb"
        assert (viewer.render() == student).all()


def test_an_interrupted_teacher_comes_back(build_pipeline, stub_teacher, run_folder):
    """The viewer breaks off renders with an exception of its own, which is not a failure."""
    from nerfstudio.viewer_legacy.server.viewer_utils import IOChangeException

    pipeline = build_pipeline()
    comparison = pipeline.comparison
    comparison.load = lambda: (_ for _ in ()).throw(IOChangeException)
    with pytest.raises(IOChangeException):
        comparison._render(camera_at(4.0), None)
    assert not comparison.failed


def test_the_teacher_is_cropped_like_the_student(build_pipeline, stub_teacher):
    """The unit ball's nearest point is at (0.6, 0, 0.8), 3 in front of the camera; the box holds that side only."""
    comparison = build_pipeline().comparison
    box = OrientedBox.from_params((0.6, 0.0, 0.8), (0.0, 0.0, 0.0), (0.3, 0.3, 0.3))
    camera = camera_at(4.0)
    with background_color_override_context(RED):
        picture = comparison._render(camera, box)
        behind = comparison._render(camera, OrientedBox.from_params((-0.6, 0.0, -0.8), (0.0, 0.0, 0.0), (0.3,) * 3))
    whole = stub_teacher.render(camera)
    assert torch.allclose(picture[16, 24], whole[16, 24], atol=1e-5)
    assert picture[2, 2].tolist() == picture[16, 12].tolist() == [1, 0, 0]
    assert (behind == RED).all()  # what lies there is hidden by what does not


# -- crop box ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("centre", "kept"), [(0.0, True), (0.5, True), (1.0, False), (-1.0, False)])
def test_the_crop_box_keeps_surfaces_inside(centre, kept):
    """A wall at z = 4, in the origin; a box of side 1.2 is moved along the optical axis (0.6, 0, 0.8)."""
    camera = camera_at(4.0)
    position = (0.6 * centre, 0.0, 0.8 * centre)
    box = OrientedBox.from_params(position, (0.0, float(np.arctan2(0.6, 0.8)), 0.0), (1.2, 1.2, 1.2))
    with background_color_override_context(RED):
        outputs = constant_model(0.2, 0.4, 0.6, 1.0, 0.5).get_outputs_for_camera(camera, obb_box=box)
    assert bool(outputs["accumulation"][16, 24] > 0.99) is kept
    expected = torch.tensor([0.2, 0.4, 0.6]) if kept else RED
    assert torch.allclose(outputs["rgb"][16, 24], expected, atol=1e-4)
    assert outputs["rgb"][0, 0].tolist() == [1, 0, 0]  # its ray misses the box
    # Without depth whatever is seen through the box stays.
    assert box_mask(camera, box, None)[16, 24] == 1


# -- what was never seen ----------------------------------------------------------------------------------------------


def test_trained_extent_by_hand():
    """Of 75 x 80 pixels at focal 50 the sides' middles are 40 and 37.5 off the axis: sines 0.8/1.64^.5 and 0.6."""
    c2w = torch.stack([look(4.0), look(2.0)])
    extent = trained_extent(c2w, torch.zeros(3), (75, 80), 50.0).tolist()
    assert extent == pytest.approx([4 * 0.8 / 1.64**0.5, 4 * 0.6], abs=1e-5)


def test_ray_offsets_by_hand():
    """From 5 to the south, 0.6 to the right or to the left, and 0.6 up: 3 past the origin."""
    rays_d = torch.tensor([[0.6, 0.8, 0.0], [-0.6, 0.8, 0.0], [0.0, 0.8, 0.6]])
    rays_o = torch.tensor([[0.0, -5.0, 0.0]]).expand(3, 3)
    offsets = ray_offsets(rays_o, rays_d, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    assert offsets.flatten().tolist() == pytest.approx([3, 0, -3, 0, 0, 3], abs=1e-6)


def test_ray_distances_by_hand():
    rays_o, rays_d = (
        torch.tensor([[0.0, 3.0, 4.0]]).expand(3, 3),
        torch.tensor([[0.0, 0, -1], [0, 0, 1], [0, -0.6, -0.8]]),
    )
    # Past the origin at 3; away from it, so nearest at the start; and straight through it.
    assert ray_distances(rays_o, rays_d, torch.zeros(3)).tolist() == pytest.approx([3.0, 5.0, 0.0], abs=1e-6)


def test_ball_window_by_hand():
    """A ball of radius 2.4 seen from 4: its tangents are at asin(0.6), tan = 0.75, so 45 pixels at focal 60."""
    camera = camera_at(4.0, focal=60.0, height=200, width=300)
    assert sphere_bounds(camera, torch.zeros(3), 2.4) == pytest.approx((55, 105, 90, 90), abs=1)
    assert sphere_bounds(camera, torch.zeros(3), 2.4, margin=10) == pytest.approx((45, 95, 110, 110), abs=1)
    assert sphere_bounds(camera, torch.zeros(3), 4.5) == (0, 0, 200, 300)  # from inside
    assert sphere_bounds(camera, camera.camera_to_worlds[0] @ torch.tensor([0.0, 1.0, 9.0, 1.0]), 9.5) == (
        0,
        0,
        200,
        300,
    )
    assert 0 in sphere_bounds(camera, 2 * camera.camera_to_worlds[0, :, 3], 1.0)[2:]  # behind


@pytest.mark.parametrize("aim", [(0.0, 0.0, 0.0), (1.0, -0.5, 0.3), (0.0, 3.0, 0.0)])
def test_ball_window_holds_every_ray_that_meets_the_ball(aim):
    camera = camera_at(4.0, focal=20.0, height=80, width=100)
    y, x = torch.meshgrid(torch.arange(80) + 0.5, torch.arange(100) + 0.5, indexing="ij")
    rays = rays_at(camera, torch.zeros(1, dtype=torch.long), torch.stack([y, x], -1)[None])
    meets = ray_distances(rays.origins, rays.directions, torch.tensor(aim))[0] <= 0.9
    top, left, height, width = sphere_bounds(camera, torch.tensor(aim), 0.9)
    rows, columns = meets.any(1).nonzero()[:, 0], meets.any(0).nonzero()[:, 0]
    # The window is as small as it can be: a pixel at most on each side.
    assert 0 <= rows[0] - top <= 1 and 0 <= top + height - 1 - rows[-1] <= 1
    assert 0 <= columns[0] - left <= 1 and 0 <= left + width - 1 - columns[-1] <= 1


def orbit_model(*channels):
    """Grey, opaque and in the middle of its planes; its cameras are 4 from the focus, and see 2.4 far beside it."""
    model = constant_model(*channels, focus=torch.zeros(3), focus_depths=(3.8, 4.2))
    # 48 x 32 pixels at focal 60: to the side rays are up to atan(24 / 60) from the axis, so 1.4856 from the focus,
    # upwards up to atan(16 / 60) and 1.0307.
    model.coverage.viewpoints.copy_(look(4.0).expand(32, 3, 4))
    return model


@pytest.mark.parametrize("channels", [(0.5,) * 3, (0.5, 0.5, 0.5, 1 - 1e-6), (0.5, 0.5, 0.5, 1 - 1e-6, 0.5)])
def test_what_no_training_picture_contained_is_background(channels):
    model = orbit_model(*channels)
    outputs = model.get_outputs_for_camera(camera_at(4.0, height=200, width=200))
    rgb, accumulation = outputs["rgb"], outputs["accumulation"]
    y, x = torch.meshgrid(torch.arange(200) - 99.5, torch.arange(200) - 99.5, indexing="ij")
    length = (x**2 + y**2 + 60**2).sqrt()
    distance = torch.maximum(4 * x.abs() / length / 1.4856, 4 * y.abs() / length / 1.0307)  # of rays, in extents
    inside, outside = distance < 1.04, distance > 1.11
    assert torch.allclose(rgb[inside], torch.tensor(0.5), atol=1e-4) and (accumulation[inside] > 0.999).all()
    assert (rgb[outside] == 1).all() and (accumulation[outside] == 0).all()
    edge = accumulation[(distance > 1.06) & (distance < 1.09)]
    assert 0 < edge.min() and edge.max() < 1


def test_cameras_of_the_training_see_what_they_saw():
    model, camera = orbit_model(0.5, 0.5, 0.5, 0.9, 0.5), camera_at(4.0)
    outputs = model.get_outputs_for_camera(camera)
    model.coverage.viewpoints.zero_()  # a student that does not know
    for name, value in model.get_outputs_for_camera(camera).items():
        assert torch.equal(outputs[name], value)


@pytest.mark.parametrize("channels", [(0.5,) * 3, (0.5, 0.5, 0.5, 0.9, 0.5)])
@pytest.mark.parametrize("size", [(1, 1), (30, 53), (288, 511)])
@pytest.mark.parametrize("distance", [1e-4, 0.5, 4.0, 1e3])
def test_any_size_field_of_view_and_place(channels, size, distance):
    for degrees in (10, 120):
        camera = camera_at(distance, size[0] / 2 / np.tan(np.radians(degrees / 2)), *size)
        outputs = orbit_model(*channels).get_outputs_for_camera(camera)
        assert outputs["rgb"].shape == (*size, 3)
        for value in outputs.values():
            assert value.shape[:2] == size and value.isfinite().all()
        assert 0 <= outputs["rgb"].min() and outputs["rgb"].max() < 1 + 1e-5


def test_a_camera_that_looks_away_sees_nothing():
    camera = camera_at(4.0)
    camera.camera_to_worlds[:, :, [0, 2]] *= -1
    outputs = orbit_model(0.5, 0.5, 0.5, 0.9, 0.5).get_outputs_for_camera(camera)
    assert (outputs["rgb"] == 1).all() and (outputs["accumulation"] == 0).all()


# -- figures and sliders ----------------------------------------------------------------------------------------------


def test_what_the_viewer_finds(build_pipeline, run_folder):
    pipeline = build_pipeline()
    found = [path for path, _ in parse_object(pipeline, ViewerElement, "Custom Elements")]
    assert found == [
        "Custom Elements/comparison/message",
        *(f"Custom Elements/export/{name}" for name in ("destination", "export", "outcome")),
        *(f"Custom Elements/stream/{name}" for name in
          ("figures", "filling_share", "photo_share", "teacher_share")),
    ]  # fmt: skip
    assert not any(name.startswith(("export", "comparison", "stream", "datamanager")) for name in pipeline.state_dict())


def test_a_student_without_photos_has_no_slider_for_them(build_pipeline):
    datamanager = build_pipeline().datamanager
    datamanager.photos = None
    assert datamanager.changeable_shares() == {"filling_share": 0.0, "teacher_share": 0.0}


def test_several_processes_have_no_sliders(build_pipeline, monkeypatch):
    datamanager = build_pipeline().datamanager
    monkeypatch.setattr("nerfstudio.utils.comms.get_world_size", lambda: 2)
    assert datamanager.changeable_shares() == {}


def test_figures_of_the_pool(build_pipeline, run_folder, monkeypatch):
    """A clock that stands still but for 10 s a step; views are rendered before steps 1 and 3."""
    pipeline = build_pipeline(photo_share=0.25, tile_cells=2)
    datamanager = pipeline.datamanager
    attributes = SimpleNamespace(trainer=SimpleNamespace(base_dir=run_folder))
    (callback,) = (c for c in pipeline.get_training_callbacks(attributes) if c.update_every_num_iters == 50)
    callback.func(0)  # without a viewer
    with OpenViewer(pipeline, run_folder):
        datamanager.next_train(0)
        datamanager.next_train(1)
        datamanager.next_train(2)
        datamanager.view_stream.render_view(0)
        callback.func(2)
        lines = pipeline.stream.figures.gui_handle.content.split("  \n")
    share = lines.pop(2)
    # Two views of step 1 and one of step 3, looked at in step 3: 4/3 steps.
    assert lines == [
        "Teacher views: 3 of 4, 3 so far", "Mean age: 1 steps", "Photos: 8, 25% of each batch", "Memory: 0 MB"
    ]  # fmt: skip
    assert share.startswith("Teacher's share of the time: ") and share.endswith("%")


def test_mean_age_by_hand(build_pipeline):
    """The pool holds 4 views; those of the first step make room for the next ones."""
    datamanager = build_pipeline().datamanager
    ages = []
    for step in range(5):
        datamanager.next_train(step)
        datamanager.view_stream.render_view(0)
        ages.append(datamanager.progress()["pool_age"])
    # Rendered in steps 1 1 1, then 2 and so on: (1+1+1)/3, (1+1+1+2)/4, (1+1+2+3)/4, (1+2+3+4)/4, (2+3+4+5)/4.
    assert ages == pytest.approx([0.0, 0.75, 1.25, 1.5, 1.5])


def test_sliders_change_the_next_batch(build_pipeline, run_folder, stub_teacher):
    pipeline = build_pipeline(photo_share=0.5, patches_per_batch=8)
    datamanager, photos = pipeline.datamanager, []
    sample = datamanager.photos.sample
    datamanager.photos.sample = lambda count, *size: photos.append(count) or sample(count, *size)
    with OpenViewer(pipeline, run_folder):
        stream = pipeline.stream
        datamanager.next_train(0)
        stream.photo_share.gui_handle.value = 0.25
        wait_for(lambda: datamanager.photo_share == 0.25)
        datamanager.next_train(1)
    assert photos == [4, 2]


def test_a_larger_teacher_share_counts_from_now(build_pipeline, stub_teacher, monkeypatch):
    """Hours without the teacher are no debt: at 1 s a view and half of the time, the next 4 s are worth 2 views."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    render = stub_teacher.render
    monkeypatch.setattr(stub_teacher, "render", lambda camera: (now.__setitem__(0, now[0] + 1), render(camera))[1])
    pipeline = build_pipeline(pool_views=50)
    datamanager = pipeline.datamanager
    datamanager.next_train(0)
    now[0] += 10000
    pipeline.stream.filling_share.cb_hook(type("Slider", (), {"value": 0.5}))
    datamanager.next_train(1)
    assert datamanager.budget.views_rendered == 2
    now[0] += 4
    datamanager.next_train(2)
    assert datamanager.budget.views_rendered == 4


# -- export -----------------------------------------------------------------------------------------------------------


def wait_for(condition) -> None:
    """Until a condition holds, at most half a minute."""
    deadline = time.time() + 30
    while not condition():
        assert time.time() < deadline, "it never came"
        time.sleep(0.02)


def press(panel) -> str:
    """What the export panel says after its button was pressed."""
    panel.export.cb_hook(panel.export)
    panel.worker.join()
    return text_of(panel.outcome)


def test_export_of_the_weights_at_hand(build_pipeline, run_folder, tmp_path, monkeypatch, capsys):
    """The files render what the model in training renders; training and viewer go on meanwhile."""
    from mobiler2l_ns.runtime import Renderer

    monkeypatch.chdir(tmp_path)
    pipeline = build_pipeline().train()
    with OpenViewer(pipeline, run_folder) as viewer:
        panel = pipeline.export
        assert panel.destination.value == "exports/ball"
        viewer.lock.acquire()  # a training step is under way
        threads = []
        real = panel.copy_student
        panel.copy_student = lambda: threads.append(viewer.lock.locked()) or real()
        viewer.lock.release()
        said = press(panel)
        assert threads == [True] and not viewer.lock.locked()
        assert "exports/ball" in said and "step 7" in said
        assert said in " ".join(capsys.readouterr().out.split())
        report = json.loads((tmp_path / "exports" / "ball" / "report.json").read_text())
        assert report["run"] == {"config": str(run_folder / "config.yml"), "step": 7, "method": "mobiler2l-small"}
        pipeline.model.eval()
        picture = Renderer(tmp_path / "exports" / "ball").render(look(4.0).numpy())
        np.testing.assert_allclose(picture, pipeline.model.render_pose(look(4.0)).numpy(), atol=2e-4)
        # Again into the same folder, then where files of the user's are.
        assert "exports/ball" in press(panel)
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "note.txt").write_text("mine")
        panel.destination.gui_handle.value = "mine"
        said = press(panel)
        assert "holds files of yours" in said and said in " ".join(capsys.readouterr().out.split())
        assert [path.name for path in (tmp_path / "mine").iterdir()] == ["note.txt"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failed_export_is_not_silent(build_pipeline, run_folder, tmp_path, monkeypatch):
    pipeline = build_pipeline()
    monkeypatch.setattr("mobiler2l_ns.export.command.ExportMobileR2L.export", lambda *_: 1 / 0)
    with OpenViewer(pipeline, run_folder):
        assert "see the console" in press(pipeline.export)


def test_the_copy_is_the_students_own():
    model = constant_model(0.2, 0.4, 0.6, 0.8, 0.5).train()
    twin = model.copy_to_cpu()
    assert not twin.training and model.training
    for name, value in model.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value)
        assert value.numel() == 0 or twin.state_dict()[name].data_ptr() != value.data_ptr()


# -- where the viewer opens -----------------------------------------------------------------------------------------


def test_the_viewer_opens_where_the_photos_were_taken():
    """Photos from azimuth 30 to 150, 20 to 60 degrees up, 2 to 3 away from the origin: the middle of all three."""
    client = SimpleNamespace(camera=SimpleNamespace())
    StartView(make_model(**ORBIT, viewpoints=orbit_cameras()))._place(client)
    up = math.radians(40)
    assert client.camera.position == pytest.approx([0, 25 * math.cos(up), 25 * math.sin(up)], abs=0.05)
    assert client.camera.look_at == pytest.approx([0, 0, 0], abs=1e-6)
    assert client.camera.up_direction == pytest.approx([0, 0, 1], abs=1e-2)


# -- the pause button -------------------------------------------------------------------------------------------------


def test_a_pause_is_no_time_for_the_teacher(build_pipeline):
    """Ten minutes of rest are not owed by the teacher afterwards; without leaving them out it would fill the pool."""
    trainer = DistillationTrainer.__new__(DistillationTrainer)
    trainer.training_state = "training"
    trainer.pipeline = build_pipeline(filling_share=0.5)
    datamanager = trainer.pipeline.datamanager
    datamanager.next_train(0)
    budget = datamanager.budget
    trainer.training_state = "paused"
    clock = budget.clock
    budget.clock = lambda: clock() + 600
    assert budget.views_due(2, 4) > 0
    trainer.training_state = "training"
    budget.teacher_seconds += 5  # more than the seconds of this test allow
    assert budget.views_due(2, 4) == 0 and trainer.training_state == "training"
