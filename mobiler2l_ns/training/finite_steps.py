"""Steps whose gradients are NaN or infinite: the gradients count as zero, and too many such steps end the run.

Only the momentum of the steps before moves the weights then.
"""

from typing import Dict

import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from torch.optim import Optimizer

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.training.progress import log_line

CHECK_EVERY = 50  # steps; each check waits for the GPU
MOST_IN_A_CHECK = 10


class Diverged(UserError):
    """Too many gradients of a run were NaN or infinite."""


class FiniteSteps:
    """Replaces gradients that are not finite by zeros before an optimizer takes them.

    On a GPU the decision is taken there, so that no step waits for it.

    Args:
        optimizers: The optimizers of the run, by the names of their parameter groups.
    """

    def __init__(self, optimizers: Dict[str, Optimizer]):
        self.left_out: Dict[str, torch.Tensor] = {}
        self.counted = dict.fromkeys(optimizers, 0)
        for name, optimizer in optimizers.items():
            device = optimizer.param_groups[0]["params"][0].device
            self.left_out[name] = torch.zeros((), device=device)
            optimizer.register_step_pre_hook(lambda optimizer, args, kwargs, name=name: self._check(name, optimizer))

    def _check(self, name: str, optimizer: Optimizer) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not gradients:
            return
        # A norm is finite if all its numbers are; their squares overflow only far beyond any useful gradient.
        broken = ~torch.stack([gradient.norm() for gradient in gradients]).sum().isfinite()
        self.left_out[name] += broken
        if broken.device.type == "cuda" or bool(broken):
            for gradient in gradients:
                gradient.masked_fill_(broken, 0.0)

    def callback(self) -> TrainingCallback:
        """The callback for nerfstudio's trainer."""
        after_step = [TrainingCallbackLocation.AFTER_TRAIN_ITERATION]
        return TrainingCallback(after_step, self.after_step, update_every_num_iters=CHECK_EVERY)

    def after_step(self, step: int) -> None:
        """Counts the steps that were left out since the last call, by the optimizer that left out most.

        Raises:
            Diverged: They are too many.
        """
        total = {name: int(count) for name, count in self.left_out.items()}
        new = max(total[name] - self.counted[name] for name in total)
        self.counted = total
        if new >= MOST_IN_A_CHECK:
            raise Diverged(
                f"the gradients of {new} of the last {CHECK_EVERY} steps before step {step} were NaN or infinite: "
                "train again with smaller learning rates (--optimizers)."
            )
        if new > 0:
            log_line(f"The gradients of {new} steps before step {step} were NaN or infinite, and counted as zero.")
