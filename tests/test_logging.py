"""Logs of a training run: images and numbers read back from tensorboard and wandb."""

import io

import numpy as np
import pytest
import torch
from builders import stub_teacher_config
from nerfstudio.utils import writer
from PIL import Image

from mobiler2l_ns.student.renderer import StudentRenderer
from mobiler2l_ns.training.metrics import error_map, psnr

PANELS = ["photo", "student", "teacher", "student - photo", "student - teacher"]


@pytest.fixture
def train(student_config, stub_teacher, monkeypatch, tmp_path):
    """Trains the tiny student for 12 steps by nerfstudio's own loop, with an evaluation at step 10; returns its folder.

    The last 3 steps fine-tune.
    """
    from nerfstudio.scripts.train import train_loop

    monkeypatch.setattr(writer, "EVENT_WRITERS", [])  # nerfstudio keeps them, and those of other tests, for good
    monkeypatch.setattr(writer, "EVENT_STORAGE", [])

    def go(vis="tensorboard"):
        config = student_config
        config.vis, config.max_num_iterations = vis, 12
        config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = 10
        config.pipeline.datamanager.teacher = stub_teacher_config(stub_teacher, tmp_path / "teacher")
        config.pipeline.model.export_when_done = False
        config.pipeline.finetuning.validation_photos = 2
        train_loop(0, 1, config)
        return config.get_base_dir()

    return go


def panels(picture: np.ndarray) -> dict:
    """(32, 5 * 32, 3) bytes as one float image a panel."""
    assert picture.shape == (32, 32 * len(PANELS), 3)
    parts = torch.from_numpy(picture.astype(np.float32) / 255).split(32, dim=1)
    return dict(zip(PANELS, parts))


def held_out(capture, stub_teacher):
    """(photo, teacher's picture) of both photos of the val split, in bytes' precision."""
    from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
    from nerfstudio.data.datasets.base_dataset import InputDataset

    dataset = InputDataset(BlenderDataParserConfig(data=capture).setup().get_dataparser_outputs(split="val"))
    return [(dataset.get_image_float32(i)[..., :3], stub_teacher.render(dataset.cameras[i : i + 1])) for i in range(2)]


def check_picture(picture: np.ndarray, capture, stub_teacher) -> dict:
    """The panels of an evaluation image, after a check that photo and teacher belong to one held-out camera."""
    found = panels(picture)
    photo, teacher = min(held_out(capture, stub_teacher), key=lambda pair: (pair[0] - found["photo"]).abs().mean())
    assert (found["photo"] - photo).abs().max() <= 1.01 / 255  # nerfstudio cuts bytes off rather than to round them
    assert (found["teacher"] - teacher).abs().max() <= 1.51 / 255
    for name in ("photo", "teacher"):
        error = error_map(found["student"], found[name])
        assert (found[f"student - {name}"] - error).abs().max() <= 10 / 255  # three times two bytes' rounding
        assert error.mean() > 0.01
    assert 0 < found["student"].std() and (found["student"] - teacher).abs().mean() > 0.01
    return found


def test_tensorboard_has_images_and_numbers(train, capture, stub_teacher):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(train()), size_guidance={"images": 0, "scalars": 0}).Reload()
    tags = events.Tags()
    assert set(tags["images"]) == {f"Eval Images/{name}" for name in ("img", "accumulation", "depth")}
    (event,) = events.Images("Eval Images/img")
    assert event.step == 10
    found = check_picture(
        np.array(Image.open(io.BytesIO(event.encoded_image_string))), capture, stub_teacher
    )  # fmt: skip

    def last(tag):
        return events.Scalars(tag)[-1].value

    metrics = {name: last(f"Eval Images Metrics/{name}") for name in ("psnr", "psnr_teacher", "psnr_to_teacher")}
    assert metrics["psnr"] == pytest.approx(psnr(found["student"], found["photo"]), abs=0.1)
    assert metrics["psnr_teacher"] == pytest.approx(psnr(found["teacher"], found["photo"]), abs=0.1)
    assert metrics["psnr_to_teacher"] == pytest.approx(psnr(found["student"], found["teacher"]), abs=0.1)
    # ns-eval's metrics know nothing of a teacher.
    assert "Eval Images Metrics Dict (all images)/psnr" in tags["scalars"]
    assert not [tag for tag in tags["scalars"] if "all images" in tag and "teacher" in tag]

    train_metrics = {tag.split("/")[1] for tag in tags["scalars"] if tag.startswith("Train Metrics Dict/")}
    assert train_metrics == {
        "psnr", "psnr_to_teacher", "psnr_to_photos", "pool_fill", "pool_age", "teacher_share", "photo_share",
    }  # fmt: skip
    assert last("Train Metrics Dict/pool_fill") == 0.5  # two views in a pool of four, rendered in step 0
    assert [event.value for event in events.Scalars("Train Metrics Dict/pool_age")] == [0, 10]
    assert [event.value for event in events.Scalars("Train Metrics Dict/photo_share")] == pytest.approx([0.5, 0.8])
    assert 0 < last("Train Metrics Dict/teacher_share") < 1
    assert [event.step for event in events.Scalars("Fine-Tuning/psnr")] == [9, 11]


def test_wandb_works_offline(train, capture, stub_teacher, monkeypatch):
    for name, value in {"MODE": "offline", "SILENT": "true", "CONSOLE": "off"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    import wandb

    try:
        folder = train("wandb")
    finally:
        wandb.finish()
    (run,) = (folder / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))
    (path,) = run.glob("files/media/images/Eval Images/img_*.png")
    check_picture(np.array(Image.open(path)), capture, stub_teacher)


# -- the batch ------------------------------------------------------------------------------------------------------


def test_scores_of_teacher_views_and_photos_apart(build_pipeline):
    """Errors of 0.1, 0.2 and 0.4 on teacher views, photos and hard patches: by hand 20, 13.98 and 12.79 dB in all."""
    pipeline = build_pipeline(hard_share=0.25, photo_share=0.5, patches_per_batch=8)
    pipeline.datamanager.next_train(0)
    pipeline.datamanager.mixer.add_hard_patches(torch.rand(8))
    _, batch = pipeline.datamanager.next_train(1)
    teacher, reprojected, photos, hard = batch["sources"]
    assert (teacher, reprojected, photos, hard) == (3, 0, 3, 2)
    off = torch.tensor([0.1] * teacher + [0.2] * photos + [0.4] * hard).view(-1, 1, 1, 1)
    metrics = pipeline.model.get_metrics_dict({"rgb": batch["image"] + off}, batch)
    assert all(isinstance(value, torch.Tensor) for value in metrics.values())
    mean = (3 * 0.01 + 3 * 0.04 + 2 * 0.16) / 8
    assert float(metrics["psnr_to_teacher"]) == pytest.approx(20, abs=1e-3)
    assert float(metrics["psnr_to_photos"]) == pytest.approx(13.979, abs=1e-3)
    assert float(metrics["psnr"]) == pytest.approx(-10 * np.log10(mean), abs=1e-3)


def test_a_batch_of_one_kind_has_one_score(build_pipeline):
    pipeline = build_pipeline(photo_share=0.0)
    _, batch = pipeline.datamanager.next_train(0)
    assert set(pipeline.model.get_metrics_dict({"rgb": batch["image"] + 0.1}, batch)) == {"psnr", "psnr_to_teacher"}
    assert pipeline.datamanager.progress()["photo_share"] == 0


# -- evaluation -----------------------------------------------------------------------------------------------------


def test_the_teacher_renders_a_held_out_photo_once(build_pipeline, stub_teacher):
    manager = build_pipeline().datamanager
    before = stub_teacher.renders
    pictures = {}
    for step in range(20):  # of two photos, drawn at random
        _, batch = manager.next_eval_image(step)
        kept = pictures.setdefault(batch["image_idx"], batch["teacher"])
        assert torch.equal(kept, batch["teacher"])
    assert stub_teacher.renders - before == len(pictures) == 2


def test_a_large_photo_is_rendered_at_the_students_size(build_pipeline, stub_teacher):
    """Half the photo's size, then enlarged: the ball is where it was, but for its rim."""
    manager = build_pipeline(image_size=(16, 16)).datamanager
    camera, _ = manager.next_eval_image(0)
    ((index, small),) = manager.teacher_views.views.items()
    assert small.shape == (16, 16, 3)
    large = manager.teacher_views.render(index, camera)
    assert large.shape == (32, 32, 3)
    difference = (large - stub_teacher.render(camera)).abs().amax(dim=-1)
    assert difference.median() < 0.05 and (difference > 0.2).float().mean() < 0.15


def test_ns_eval_does_not_render_the_teacher(build_pipeline, stub_teacher):
    pipeline = build_pipeline()
    asked = stub_teacher.renders, stub_teacher.probes
    metrics = pipeline.get_average_eval_image_metrics()
    assert "psnr" in metrics and not [name for name in metrics if "teacher" in name]
    assert (stub_teacher.renders, stub_teacher.probes) == asked


@pytest.mark.parametrize("evaluate", ["get_eval_loss_dict", "get_eval_image_metrics_and_images",
                                      "get_average_eval_image_metrics", "validation_psnr"])  # fmt: skip
def test_evaluations_do_not_count_as_training_time(build_pipeline, stub_teacher, monkeypatch, evaluate):
    """The clock advances in evaluations only, 100 s per view or batch; the teacher's share does not change."""
    pipeline = build_pipeline(validation_photos=2)
    manager = pipeline.datamanager
    manager.validation = manager.photos
    manager.next_train(0)
    start = manager.budget.clock()
    now = [start + 50.0]
    manager.budget.clock = lambda: now[0]
    before = manager.statistics()["share_of_training_time"], manager.budget.views_due(2, 4)
    forward = StudentRenderer.render_with_surface

    def slow(self, *arguments, **options):
        now[0] += 100
        return forward(self, *arguments, **options)

    monkeypatch.setattr(StudentRenderer, "render_with_surface", slow)
    with torch.no_grad():
        getattr(pipeline, evaluate)(*([0] if evaluate.startswith("get_eval") else []))
    assert now[0] >= start + 50 + 100
    assert (manager.statistics()["share_of_training_time"], manager.budget.views_due(2, 4)) == before
