"""Panels of nerfstudio's viewer: statistics and sliders of the training data, and the export button."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from nerfstudio.viewer.utils import parse_object
from nerfstudio.viewer.viewer_elements import ViewerElement
from open_viewer import OpenViewer, look, text_of

from mobiler2l_ns.pipeline import changeable_shares

# -- statistics and sliders -------------------------------------------------------------------------------------------


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
    assert changeable_shares(datamanager) == {"filling_share": 0.0, "teacher_share": 0.0}


def test_several_processes_have_no_sliders(build_pipeline, monkeypatch):
    datamanager = build_pipeline().datamanager
    monkeypatch.setattr("nerfstudio.utils.comms.get_world_size", lambda: 2)
    assert changeable_shares(datamanager) == {}


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
        datamanager.view_stream.render_view(datamanager.train_count)
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
        datamanager.view_stream.render_view(datamanager.train_count)
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
        assert "mine" in said and "pass another --output-dir" in said
        assert said in " ".join(capsys.readouterr().out.split())
        assert [path.name for path in (tmp_path / "mine").iterdir()] == ["note.txt"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failed_export_is_not_silent(build_pipeline, run_folder, tmp_path, monkeypatch):
    pipeline = build_pipeline()
    monkeypatch.setattr("mobiler2l_ns.export.command.ExportMobileR2L.export", lambda *_: 1 / 0)
    with OpenViewer(pipeline, run_folder):
        assert "see the console" in press(pipeline.export)
