"""Fixtures of the fault tests."""

import copy
from pathlib import Path

import forks
import pytest
import torch
import victims
from builders import TINY_NERFACTO
from mobiler2l_ns.method_configs import mobiler2l_teacher_small
from nerfstudio.data.scene_box import SceneBox

from mobiler2l_ns.compat import without_lpips_download


@pytest.fixture(scope="session")
def processes():
    """Starts a victim in a process of its own; its pipe tells the phases."""

    def start(victim: str, folder: Path, capture: Path, largest_file=None):
        receiver, sender = forks.context.Pipe(duplex=False)
        process = forks.process(victims.run, victim, folder, capture, sender, largest_file)
        process.start()
        sender.close()
        return process, receiver

    return start


@pytest.fixture(scope="module")
def tiny_teacher():
    """A tiny nerfacto with random weights, and its config."""
    config = copy.deepcopy(mobiler2l_teacher_small.config)
    for name, value in TINY_NERFACTO.items():
        setattr(config.pipeline.model, name, value)
    box = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    with without_lpips_download():
        return config, config.pipeline.model.setup(
            scene_box=box, num_train_data=8, metadata={}, device="cpu", grad_scaler=None
        )
