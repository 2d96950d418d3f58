"""The teacher beside the student in nerfstudio's viewer."""

import sys

import numpy as np
import pytest
import torch
from builders import camera_at
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components.renderers import background_color_override_context
from open_viewer import OpenViewer, text_of

from mobiler2l_ns.cameras import pinhole_cameras
from mobiler2l_ns.errors import UserError

RED = torch.tensor([1.0, 0.0, 0.0])


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
        comparison.render(camera_at(4.0), None)
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
    """One sentence in the viewer and once on the console; a grey picture; the render thread goes on."""
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


@pytest.mark.parametrize("after", ["a pause", "another selection"])
def test_a_teacher_that_failed_is_tried_again(build_pipeline, stub_teacher, run_folder, capsys, after):
    """Not in each render: after ten seconds, or when it is selected anew. Its message stays until it is rendered."""
    pipeline = build_pipeline()
    view, now, attempts, memory_is_full = pipeline.comparison, [100.0], [], True

    def load():
        attempts.append(now[0])
        if memory_is_full:
            raise RuntimeError("out of memory")
        return stub_teacher

    view.load, view.clock = load, lambda: now[0]
    with OpenViewer(pipeline, run_folder) as viewer:
        capsys.readouterr()
        help_text = text_of(view.message)
        viewer.panel._output_render.value = "teacher"
        for now[0] in (100.0, 105.0, 109.9, 110.0, 119.9):
            assert (viewer.render() == 127).all()
        assert attempts == [100.0, 110.0] and "out of memory" in text_of(view.message)
        assert capsys.readouterr().out.count("out of memory") == 1
        memory_is_full = False
        if after == "a pause":
            now[0] = 120.0
        else:
            viewer.panel._output_render.value = "rgb"
            viewer.render()
            viewer.panel._output_render.value = "teacher"
        assert np.abs(viewer.render().astype(int) - 127).max() > 50
        assert text_of(view.message) == help_text


def test_an_interrupted_teacher_comes_back(build_pipeline, stub_teacher, run_folder):
    """The viewer breaks off renders with an exception of its own, which is not a failure."""
    from nerfstudio.viewer_legacy.server.viewer_utils import IOChangeException

    pipeline = build_pipeline()
    comparison = pipeline.comparison
    comparison.load = lambda: (_ for _ in ()).throw(IOChangeException)
    with pytest.raises(IOChangeException):
        comparison.render(camera_at(4.0), None)
    assert comparison.failure is None


def test_the_teacher_is_cropped_like_the_student(build_pipeline, stub_teacher):
    """The unit ball's nearest point is at (0.6, 0, 0.8), 3 in front of the camera; the box holds that side only."""
    comparison = build_pipeline().comparison
    box = OrientedBox.from_params((0.6, 0.0, 0.8), (0.0, 0.0, 0.0), (0.3, 0.3, 0.3))
    camera = camera_at(4.0)
    with background_color_override_context(RED):
        picture = comparison.render(camera, box)
        behind = comparison.render(camera, OrientedBox.from_params((-0.6, 0.0, -0.8), (0.0, 0.0, 0.0), (0.3,) * 3))
    whole = stub_teacher.render(camera)
    assert torch.allclose(picture[16, 24], whole[16, 24], atol=1e-5)
    assert picture[2, 2].tolist() == picture[16, 12].tolist() == [1, 0, 0]
    assert (behind == RED).all()  # what lies there is hidden by what does not
