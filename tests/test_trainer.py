"""nerfstudio's trainer with a pause button."""

from mobiler2l_ns.trainer import DistillationTrainer


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
