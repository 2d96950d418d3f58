"""The teacher's time budget, with a clock that the test moves."""

import pytest

from mobiler2l_ns.data.time_budget import TimeBudget


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def render(budget: TimeBudget, clock: Clock, seconds: float) -> None:
    with budget.rendering():
        clock.now += seconds


def test_views_due_by_hand(clock):
    """Half of the time while the pool of 4 fills, a tenth of it afterwards; a view takes 2 s."""
    budget = TimeBudget(0.5, 0.1, clock)
    render(budget, clock, 2)
    budget.start()
    assert budget.views_due(missing=3, capacity=4) == 0  # 0.5 * 2 - 2 < 0: the first view counts
    clock.now += 4
    assert budget.views_due(3, 4) == 1  # 0.5 * 6 - 2 = 1 s, half a view, is rounded up
    clock.now += 1000
    assert budget.views_due(3, 4) == 3  # no more than the pool lacks
    assert budget.views_due(0, 4) == 0  # the pool is full: a new phase begins here
    clock.now += 50
    assert budget.views_due(0, 4) == 3  # 0.1 * 50 = 5 s, 2.5 views
    clock.now += 1000
    assert budget.views_due(0, 4) == 4  # never more than the whole pool


def test_a_new_share_begins_a_new_phase(clock):
    budget = TimeBudget(0.0, 0.0, clock)
    render(budget, clock, 1)
    budget.start()
    clock.now += 3600
    budget.set_share("filling_share", 0.5)
    assert budget.views_due(9, 9) == 0  # the hour before is not made up for
    clock.now += 4
    assert budget.views_due(9, 9) == 2


def test_excluded_time_does_not_count(clock):
    budget = TimeBudget(0.5, 0.5, clock)
    render(budget, clock, 1)
    budget.start()
    clock.now += 9
    assert budget.share_so_far == pytest.approx(0.1)
    with budget.exclude():
        clock.now += 500
    assert budget.share_so_far == pytest.approx(0.1)
    assert budget.views_due(9, 9) == 4  # 0.5 * 10 - 1 = 4 s


def test_before_training_nothing_counts(clock):
    budget = TimeBudget(0.5, 0.5, clock)
    with budget.exclude():
        clock.now += 500
    assert not budget.has_started and budget.share_so_far == 0
    budget.start()
    assert budget.has_started


def test_the_device_is_waited_for_around_each_view(clock):
    """Work in the device's queue is charged to the view that it belongs to."""
    queue = [0.0]

    def synchronize() -> None:
        clock.now += queue[0]
        queue[0] = 0.0

    budget = TimeBudget(0.5, 0.5, clock, synchronize)
    queue[0] = 7.0  # a training step's
    with budget.rendering():
        queue[0] += 2.0
    assert budget.teacher_seconds == pytest.approx(2.0)


@pytest.mark.parametrize("seconds_a_step", [0.01, 0.3, 5.0])
@pytest.mark.parametrize("seconds_a_view", [0.2, 1.0, 7.0])
def test_the_teacher_never_takes_more_than_its_time_and_one_view(clock, seconds_a_step, seconds_a_view):
    """So a step is never blocked by more than what the teacher was owed and one view or tile."""
    budget, views, capacity, shares = TimeBudget(0.25, 0.1, clock), 1, 40, []
    render(budget, clock, seconds_a_view)
    budget.start()
    start, taken = clock.now - seconds_a_view, 0.0
    for _ in range(1000):
        clock.now += seconds_a_step
        was_full = views == capacity
        for _ in range(budget.views_due(capacity - views, capacity)):
            render(budget, clock, seconds_a_view)
            views = min(views + 1, capacity)
        if views == capacity and not was_full:
            start, taken = clock.now, budget.teacher_seconds
        elif was_full:
            shares.append((budget.teacher_seconds - taken, 0.1 * (clock.now - start)))
    assert all(used <= owed + seconds_a_view + 1e-6 for used, owed in shares)
    assert all(used <= 0.25 * (clock.now - start) + seconds_a_view + 1e-6 for used, _ in shares[-1:])
