"""Fine-tuning on the photos: its first step, the weights that it keeps, and the photos that it holds out."""

from types import SimpleNamespace

import torch
from builders import stub_teacher_config

from mobiler2l_ns.training.finetuning import FineTuning, FineTuningConfig


class Run:
    """A run of 100 steps whose only weight counts the steps; the score of a weight is looked up in a table."""

    def __init__(self, scores: dict, **options):
        self.model = torch.nn.Linear(1, 1, bias=False)
        self.shares = []
        self.trainer = SimpleNamespace(
            first_step=0,
            end_step=100,
            pipeline=SimpleNamespace(model=self.model),
            stop_training=False,
        )
        config = FineTuningConfig(steps=20, validate_every=5, patience=2, **options)
        self.tuning = FineTuning(config, self.trainer, lambda: scores[self.weight], self.shares.append)

    @property
    def weight(self) -> int:
        return round(float(self.model.weight))

    def go(self) -> "Run":
        before, after = self.tuning.callbacks()
        for step in range(100):
            if self.trainer.stop_training:
                break
            before.func(step)
            self.model.weight.data.fill_(step + 1)
            after.func(step)
            self.steps = step + 1
        return self


def test_it_takes_the_last_steps_of_the_run():
    run = Run({80: 20.0, 85: 21.0, 90: 22.0, 95: 23.0, 100: 24.0}).go()
    assert run.steps == 100 and run.shares == [0.8] and run.weight == 100
    assert run.tuning.statistics() == {"steps": 20, "best_step": 20, "psnr_before": 20.0, "psnr_after": 24.0}


def test_weights_from_before_are_restored_if_no_score_is_better():
    run = Run({80: 20.0, 85: 19.0, 90: 18.0}, photo_share=0.5).go()
    # Two scores in a row (patience) were no better than the one before the first step.
    assert run.steps == 90 and run.weight == 80 and run.shares == [0.5]
    assert run.tuning.statistics()["psnr_after"] == 20.0


def test_the_best_weights_in_between_are_kept():
    run = Run({80: 20.0, 85: 22.0, 90: 21.0, 95: 21.5}).go()
    assert run.steps == 95 and run.weight == 85
    assert run.tuning.statistics()["best_step"] == 5


def test_short_runs_keep_three_quarters_for_the_teacher():
    assert FineTuningConfig(steps=500).steps_of(2500) == 500
    assert FineTuningConfig(steps=500).steps_of(100) == 25
    assert FineTuningConfig(steps=500).steps_of(2) == 0


def test_held_out_photos_are_in_no_batch(student_config, stub_teacher, tmp_path):
    config = student_config.pipeline.datamanager
    config.teacher, config.validation_photos, config.photo_share = stub_teacher_config(stub_teacher, tmp_path), 3, 1.0
    config.patches_per_batch, config.patch_cells = 64, None
    manager = config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
    assert (len(manager.photos), len(manager.validation)) == (7, 1)  # at most a tenth, but one
    rays, batch = manager.next_train(0)
    trained = {tuple(origin) for origin in rays.origins[:, 0, 0].tolist()}
    held_out = {tuple(origin) for origin in manager.validation.cameras.camera_to_worlds[:, :, 3].tolist()}
    assert len(trained) == 7 and len(held_out) == 1 and not trained & held_out
    assert stub_teacher.renders == 0
