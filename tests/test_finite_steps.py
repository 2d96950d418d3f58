"""Steps whose gradients are NaN or infinite."""

import pytest
import torch
from builders import one_sentence

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.training.finite_steps import CHECK_EVERY, MOST_IN_A_CHECK, FiniteSteps


@pytest.fixture
def run():
    """Two groups of weights; ``step`` takes one step of plain gradient descent with the given gradients."""

    class Run:
        def __init__(self):
            self.first, self.second = torch.zeros(3, requires_grad=True), torch.zeros(2, requires_grad=True)
            unused = torch.zeros(1, requires_grad=True)
            self.optimizers = {
                "matrices": torch.optim.SGD([self.first, unused], lr=1.0),
                "others": torch.optim.SGD([self.second], lr=1.0),
            }
            self.steps = FiniteSteps(self.optimizers)

        def step(self, first, second=(1.0, 1.0)):
            self.first.grad, self.second.grad = torch.tensor(first), torch.tensor(second)
            for optimizer in self.optimizers.values():
                optimizer.step()

    return Run()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_broken_gradient_counts_as_zero_in_its_group(run, value, capsys):
    run.step([1.0, 2.0, 3.0])
    run.step([1.0, value, 3.0])
    assert run.first.tolist() == [-1.0, -2.0, -3.0] and run.second.tolist() == [-2.0, -2.0]
    run.steps.after_step(50)
    assert "gradients of 1 steps before step 50 were NaN" in capsys.readouterr().out
    run.steps.after_step(100)
    assert capsys.readouterr().out == ""


def test_large_gradients_are_no_broken_ones(run):
    run.step([2.0**50, 0.0, -(2.0**50)])
    assert run.first.tolist() == [-(2.0**50), 0.0, 2.0**50]


def test_a_step_that_two_optimizers_leave_out_is_one(run, capsys):
    for _ in range(MOST_IN_A_CHECK - 1):
        run.step([torch.nan, 0.0, 0.0], [torch.nan, 0.0])
    run.steps.after_step(CHECK_EVERY)
    assert f"The gradients of {MOST_IN_A_CHECK - 1} steps before step 50" in capsys.readouterr().out


def test_too_many_broken_steps_end_the_run(run):
    for _ in range(MOST_IN_A_CHECK - 1):
        run.step([torch.nan, 0.0, 0.0])
    run.steps.after_step(CHECK_EVERY)
    for _ in range(MOST_IN_A_CHECK):
        run.step([0.0, 0.0, 0.0], [torch.inf, 0.0])
    with pytest.raises(UserError, match="gradients of 10 of the last 50 steps before step 100") as caught:
        run.steps.after_step(2 * CHECK_EVERY)
    assert "--optimizers" in one_sentence(caught)
