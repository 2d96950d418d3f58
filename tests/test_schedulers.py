"""The cosine schedule against closed formulas."""

import math

import pytest
import torch

from mobiler2l_ns.training.schedulers import CosineLR, CosineSchedulerConfig


def make_schedule(lr=2.0, **options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=lr)
    config = CosineSchedulerConfig(**{"warmup_steps": 4, "final_ratio": 0.1, **options})
    return optimizer, config.setup().get_scheduler(optimizer, lr)


def test_cosine_by_hand():
    """Warm-up 1/4, 2/4, 3/4, 1; then 0.1 + 0.9 (1 + cos(pi p)) / 2 with p = 0 at step 4 and 1 at step 12."""
    _, schedule = make_schedule(max_steps=12)
    expected = {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 6: 0.1 + 0.45 * (1 + 0.5**0.5), 8: 0.55, 12: 0.1, 50: 0.1}
    assert {step: schedule.factor(step) for step in expected} == pytest.approx(expected)


def test_the_optimizer_follows():
    optimizer, schedule = make_schedule(max_steps=12)
    rates = []
    for _ in range(13):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([2.0 * schedule.factor(step) for step in range(13)])
    assert rates[0] == pytest.approx(0.5) and rates[12] == pytest.approx(0.2)


def test_without_warm_up_the_full_rate_comes_first():
    _, schedule = make_schedule(warmup_steps=0, max_steps=10)
    assert schedule.factor(0) == 1 and schedule.factor(5) == pytest.approx(0.55)


def test_an_open_end_is_set_once():
    _, schedule = make_schedule()
    assert schedule.factor(1000) == 1
    schedule.fit_run(12, 100)
    assert schedule.factor(8) == pytest.approx(0.55)
    _, fixed = make_schedule(max_steps=12)
    fixed.fit_run(100, 100)
    assert fixed.max_steps == 12


def test_longer_runs_take_smaller_steps():
    """Four times the reference length: half the rate; a quarter of it: twice; never more than 2.5 times."""
    for max_steps, peak in ((400, 0.5), (100, 1.0), (25, 2.0), (2, 2.5)):
        _, schedule = make_schedule(max_steps=max_steps, reference_steps=100, warmup_steps=0)
        assert schedule.factor(0) == pytest.approx(peak)
        assert schedule.factor(max_steps) == pytest.approx(0.1 * peak)


def test_how_fast_the_rate_falls_with_the_length():
    """32 times the reference length to the power of 0.4 is 4; of 0.5 it is 5.66."""
    for exponent, peak in ((0.4, 1 / 4), (0.5, 1 / math.sqrt(32)), (0.0, 1.0)):
        _, schedule = make_schedule(max_steps=3200, reference_steps=100, length_exponent=exponent, warmup_steps=0)
        assert schedule.factor(0) == pytest.approx(peak)


def test_smaller_batches_take_smaller_steps():
    """A sixteenth of the pixels: half the rate; four times as long, too: a quarter. Larger batches change nothing."""
    for end, pixels, peak in ((100, 1600, 1.0), (100, 100, 0.5), (400, 100, 0.25), (2, 100, 1.25), (100, 6400, 1.0)):
        _, schedule = make_schedule(reference_steps=100, reference_pixels=1600, warmup_steps=0)
        schedule.fit_run(end, pixels)
        assert schedule.factor(0) == pytest.approx(peak)
    _, schedule = make_schedule(reference_steps=100, warmup_steps=0)
    schedule.fit_run(100, 250)
    assert schedule.factor(0) == 1


def test_state_is_plain_and_loads_with_weights_only(tmp_path):
    optimizer, schedule = make_schedule(max_steps=12)
    for _ in range(7):
        optimizer.step()
        schedule.step()
    assert all(type(value) is float for value in schedule.get_last_lr())
    torch.save({"schedulers": schedule.state_dict(), "optimizers": optimizer.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed_optimizer, resumed = make_schedule(max_steps=12)
    resumed_optimizer.load_state_dict(state["optimizers"])
    resumed.load_state_dict(state["schedulers"])
    for step in range(8, 11):
        for o, s in ((optimizer, schedule), (resumed_optimizer, resumed)):
            o.step()
            s.step()
        assert resumed_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2.0 * schedule.factor(step))


def test_two_groups_do_not_share_a_schedule():
    config = CosineSchedulerConfig(warmup_steps=0)
    optimizers = [torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0) for _ in range(2)]
    first, second = (config.setup().get_scheduler(o, 1.0) for o in optimizers)
    assert isinstance(first, CosineLR)
    first.fit_run(5, 100)
    assert second.max_steps is None and config.max_steps is None
