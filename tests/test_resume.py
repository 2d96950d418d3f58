"""Runs that end early: what is saved, and that a run which goes on becomes what it would have become."""

import copy
import os
import signal

import pytest
import torch
from builders import one_sentence, stub_teacher_config
from mobiler2l_ns.method_configs import (
    mobiler2l_small,
    mobiler2l_teacher,
    mobiler2l_teacher_ngp,
    mobiler2l_teacher_splat,
)
from nerfstudio.engine import trainer as engine

from mobiler2l_ns.checkpoints import read_checkpoint
from mobiler2l_ns.data.pool import ViewPool
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.trainer import SMALLER_DATA, SMALLER_STEPS, DistillationTrainer
from mobiler2l_ns.training.random_state import random_state, seed_all, set_random_state

STEPS = 16  # the last four fine-tune


@pytest.fixture
def start(student_config, stub_teacher, ball_capture, tmp_path):
    """Makes the trainer of a student whose training uses everything that a checkpoint has to keep."""

    names = []

    def make(load_dir=None, steps=STEPS, **options):
        config = copy.deepcopy(student_config)
        config.max_num_iterations, config.load_dir, config.steps_per_save = steps, load_dir, 1
        config.data = config.pipeline.datamanager.data = config.pipeline.datamanager.dataparser.data = ball_capture
        config.pipeline.model.surface_octaves, config.pipeline.model.export_when_done = 4, False
        config.pipeline.finetuning.steps, config.pipeline.finetuning.validation_photos = 4, 2
        config.pipeline.finetuning.validate_every = 1
        datamanager = config.pipeline.datamanager
        datamanager.teacher = stub_teacher_config(stub_teacher, tmp_path / "teacher")
        datamanager.patches_per_batch, datamanager.tile_cells = 8, 3
        datamanager.reprojected_share, datamanager.reprojected_views = 0.5, 6
        for name, value in options.items():
            setattr(datamanager, name, value)
        names.append(f"run-{len(names)}")
        config.timestamp = names[-1]
        seed_all(3)
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup()
        return trainer

    return make


@pytest.fixture
def at_step(monkeypatch):
    """Sets what happens in the middle of which step; None: nothing any more."""
    train, planned = DistillationTrainer.train_iteration, {}

    def train_iteration(self, step):
        if step in planned:
            planned[step]()
        return train(self, step)

    def plan(step, call=None):
        planned.clear()
        if step is not None:
            planned[step] = call

    monkeypatch.setattr(DistillationTrainer, "train_iteration", train_iteration)
    return plan


def interrupt():
    raise KeyboardInterrupt


def tensors_of(trainer):
    """Everything that a run has learned."""
    found = dict(trainer.pipeline.model.state_dict())
    for name, optimizer in trainer.optimizers.optimizers.items():
        for number, state in optimizer.state_dict()["state"].items():
            found |= {f"{name} {number} {key}": torch.as_tensor(value) for key, value in state.items()}
    return found


def largest_difference(trainer, other):
    found, expected = tensors_of(trainer), tensors_of(other)
    assert found.keys() == expected.keys()
    names = [name for name, value in found.items() if value.numel()]
    return max(float((found[name].double() - expected[name].double()).abs().max()) for name in names)


def test_the_same_seed_gives_the_same_student(start):
    first, second = start(), start()
    seed_all(5), first.train()
    seed_all(5), second.train()
    assert largest_difference(first, second) == 0
    other = start()
    seed_all(6), other.train()
    assert largest_difference(first, other) > 1e-3


@pytest.mark.parametrize("cached", [False, True], ids=["in memory", "on disk"])
def test_a_run_that_goes_on_becomes_what_it_would_have_become(start, at_step, tmp_path, cached):
    whole = start(**({"cache_dir": tmp_path / "whole"} if cached else {}))
    whole.train()
    for step in (2, 7, 14):  # at once, in the distillation, in the fine-tuning
        options = {"cache_dir": tmp_path / f"cache-{step}"} if cached else {}
        ended = start(**options)
        at_step(step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            ended.train()
        at_step(None)
        torch.rand(7)  # another process has other random numbers
        resumed = start(load_dir=ended.checkpoint_dir, **options)
        pool = resumed.pipeline.datamanager.pool
        assert torch.equal(pool.images, ended.pipeline.datamanager.pool.images)
        resumed.train()
        assert (resumed.first_step, resumed.end_step) == (0, STEPS)
        assert largest_difference(resumed, whole) <= 1e-6, step
        scores = [trainer.pipeline.finetuning.scores for trainer in (resumed, whole)]
        assert scores[0] == pytest.approx(scores[1]) and len(scores[1]) > 1


def test_a_run_goes_on_where_the_pool_has_replaced_its_first_views(start, at_step):
    """A clock of its own lets the teacher render one view a step: the slots begin anew after the fourth."""
    ended = start()
    stream, rendered = ended.pipeline.datamanager.view_stream, ended.pipeline.datamanager.pool
    for step in range(7):
        stream.render_view(step)
    at_step(2, interrupt)
    with pytest.raises(KeyboardInterrupt):
        ended.train()
    resumed = start(load_dir=ended.checkpoint_dir, initial_views=4)
    pool = resumed.pipeline.datamanager.pool
    assert pool.num_added == rendered.num_added == 7
    assert torch.equal(pool.images, rendered.images) and torch.equal(pool.corner, rendered.corner)
    assert pool.added_at.tolist() == [4, 5, 6, 3]
    # With fewer initial views the newest ones come back.
    pool = start(load_dir=ended.checkpoint_dir, initial_views=2).pipeline.datamanager.pool
    assert len(pool) == 2 and torch.equal(pool.c2w[:2], rendered.c2w[[1, 2]])


def test_another_number_of_steps_follows_the_checkpoint(start, at_step, capsys):
    ended = start(steps=8)
    at_step(5, interrupt)
    with pytest.raises(KeyboardInterrupt):
        ended.train()
    at_step(None)
    capsys.readouterr()
    longer = start(load_dir=ended.checkpoint_dir, steps=9)
    assert (longer.first_step, longer.end_step) == (5, 14)
    assert "9 steps follow. The learning rates go on as in that run" in " ".join(capsys.readouterr().out.split())
    same = start(load_dir=ended.checkpoint_dir, steps=8)
    same.train()
    assert (same.step, same.end_step, same.config.max_num_iterations) == (7, 8, 8)
    assert longer.pipeline.datamanager.pool.num_added == 0  # a new run with the old weights: it has views of its own
    # A run that is complete is trained for as many steps again.
    again = start(load_dir=same.checkpoint_dir, steps=8)
    assert (again.first_step, again.end_step) == (8, 16)


def test_a_new_run_from_a_checkpoint_of_fine_tuning_distills_first(start, at_step):
    ended = start()
    at_step(14, interrupt)
    with pytest.raises(KeyboardInterrupt):
        ended.train()
    at_step(None)
    assert read_checkpoint(ended.checkpoint_dir / "step-000000013.ckpt")["run"]["pipeline"]["finetuning"]
    longer = start(load_dir=ended.checkpoint_dir, steps=12)
    datamanager, tuning = longer.pipeline.datamanager, longer.pipeline.finetuning
    assert datamanager.photo_share == 0.5 and not tuning.scores and (tuning.first, tuning.last) == (23, 25)
    longer.train()
    assert datamanager.photo_share == 0.8 and min(tuning.scores) == 0


def test_near_and_far_stay_those_of_the_run(start, at_step):
    ended = start()
    at_step(3, interrupt)
    with pytest.raises(KeyboardInterrupt):
        ended.train()
    resumed = start(load_dir=ended.checkpoint_dir)
    assert resumed.pipeline.datamanager.pool.depths == ended.pipeline.datamanager.pool.depths
    given = start(load_dir=ended.checkpoint_dir, near_far=(2.0, 6.0))
    assert given.pipeline.datamanager.pool.depths[:2] == (2.0, 6.0)


def test_sigterm_saves_the_step_that_it_interrupts(start, at_step, capsys):
    whole = start()
    whole.train()
    ended = start()
    at_step(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as caught:
        ended.train()
    assert caught.value.code == 143 and "Ended by SIGTERM after step 5." in capsys.readouterr().out
    assert [path.name for path in ended.checkpoint_dir.iterdir()] == ["step-000000005.ckpt"]
    at_step(None)
    resumed = start(load_dir=ended.checkpoint_dir)
    resumed.train()
    assert largest_difference(resumed, whole) <= 1e-6
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_run_that_was_ended_after_its_last_step_is_completed(start, at_step):
    whole = start()
    whole.train()
    ended = start()
    at_step(STEPS - 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        ended.train()
    assert not read_checkpoint(ended.checkpoint_dir / "step-000000015.ckpt")["run"]["completed"]
    at_step(None)
    resumed = start(load_dir=ended.checkpoint_dir)
    resumed.train()
    (saved,) = resumed.checkpoint_dir.iterdir()
    assert saved.name == "step-000000015.ckpt" and read_checkpoint(saved)["run"]["completed"]
    assert largest_difference(resumed, whole) <= 1e-6


def test_sigterm_before_the_first_step_ends_at_once(start, at_step):
    ended = start()
    at_step(0, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as caught:
        ended.train()
    assert caught.value.code == 143 and not ended.checkpoint_dir.exists()


def test_a_full_disk_costs_a_checkpoint_and_no_training(start, monkeypatch, capsys):
    save, failing = torch.save, {3, 4, STEPS - 1}

    def save_unless_full(content, file, **options):
        if content["step"] in failing:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(content, file)

    trainer = start()
    monkeypatch.setattr(torch, "save", save_unless_full)
    with pytest.raises(UserError, match="step 15 cannot be written to .*No space left.*--load-dir") as caught:
        trainer.train()
    one_sentence(caught)
    printed = capsys.readouterr().out.replace("\n", "")
    assert all(f"the checkpoint of step {step} cannot be written" in printed for step in (3, 4))
    assert printed.count("The training goes on.") == 3  # nerfstudio saves step 15 here, too, and at the end again
    (kept,) = trainer.checkpoint_dir.iterdir()
    assert kept.name == "step-000000014.ckpt" and read_checkpoint(kept)["step"] == 14
    assert not trainer.checkpoint_dir.with_name("nerfstudio_models.writing").exists()


def test_a_student_of_nan_replaces_no_checkpoint(start, at_step):
    trainer = start()
    at_step(6, lambda: trainer.pipeline.model.network.head[0].weight.data.fill_(torch.nan))
    with pytest.raises(UserError, match="has diverged, and .* is NaN or infinite after step 6") as caught:
        trainer.train()
    one_sentence(caught)
    (kept,) = trainer.checkpoint_dir.iterdir()
    assert all(value.isfinite().all() for value in read_checkpoint(kept)["pipeline"].values())


def test_a_run_without_a_gradient_scaler_goes_on_with_one(start, at_step, monkeypatch):
    """A run on a CPU saves no state of a scaler, and a scaler that works takes no empty state."""

    class Scaler(engine.GradScaler):
        def load_state_dict(self, state_dict):
            assert state_dict

    at_step(2, interrupt)
    first = start()
    with pytest.raises(KeyboardInterrupt):
        first.train()
    at_step(None)
    monkeypatch.setattr(engine, "GradScaler", Scaler)
    assert start(load_dir=first.checkpoint_dir)._start_step == 2


def test_too_little_gpu_memory_is_one_sentence(start, monkeypatch):
    def fill(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    trainer = start()
    monkeypatch.setattr(trainer.pipeline, "get_train_loss_dict", fill)
    with pytest.raises(UserError, match="the training of .* does not fit into the GPU's memory") as caught:
        trainer.train()
    assert one_sentence(caught).endswith("pass smaller --pipeline.datamanager.patches-per-batch.")
    monkeypatch.setattr(ViewPool, "__init__", fill)
    with pytest.raises(UserError, match="the training data of .* does not fit into the GPU's memory") as caught:
        start()
    assert "--pipeline.datamanager.pool-views or --pipeline.datamanager.image-size" in one_sentence(caught)


@pytest.mark.parametrize("spec", [mobiler2l_small, mobiler2l_teacher, mobiler2l_teacher_ngp, mobiler2l_teacher_splat])
def test_each_method_has_an_option_that_takes_less_memory(spec):
    """The first field of its datamanager that the message knows, and no other method's."""
    found = [
        next(name for name in options if hasattr(spec.config.pipeline.datamanager, name))
        for options in (SMALLER_DATA, SMALLER_STEPS)
    ]
    student, photos = ["patches_per_batch"] * 2, ["camera_res_scale_factor"] * 2
    expected = {"mobiler2l-small": student, "mobiler2l-teacher-splat": photos}
    assert found == expected.get(spec.config.method_name, ["camera_res_scale_factor", "train_num_rays_per_batch"])


def test_evaluation_keeps_no_graph(start):
    """On a GPU there may be no memory for the gradients of whole views."""
    _, losses, _ = start().pipeline.get_eval_loss_dict(0)
    assert losses and not any(loss.requires_grad for loss in losses.values())


@pytest.mark.parametrize("option", ["folder", "empty", "step", "file"])
def test_a_missing_checkpoint_is_one_sentence(student_config, tmp_path, option):
    """Before the teacher is loaded, which may take a minute."""
    (tmp_path / "empty").mkdir()
    if option == "file":
        student_config.load_checkpoint = tmp_path / "step-000000001.ckpt"
    else:
        student_config.load_dir = tmp_path / "empty" if option == "empty" else tmp_path / "nowhere"
    student_config.load_step = 7 if option == "step" else None
    trainer = student_config.setup(local_rank=0, world_size=1)
    with pytest.raises(UserError, match="pass a") as caught:
        trainer.setup()
    assert str(tmp_path) in one_sentence(caught)


def test_random_numbers_go_on():
    import random

    import numpy as np

    def draw():
        return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.rand(()))

    seed_all(1)
    draw()
    state = copy.deepcopy(random_state("cpu"))
    expected = draw()
    draw()
    set_random_state(state, "cpu")
    assert draw() == expected
