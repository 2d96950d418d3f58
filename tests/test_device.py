"""What a training step does on a GPU, as far as a CPU can show it: where it waits, and on which device tensors are."""

import traceback
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mobiler2l_ns.training.optimizers import Muon

# A GPU has to finish its queue before the CPU knows the result, or the size of the result.
WAITING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2",
    "aten::unique_dim", "aten::repeat_interleave.Tensor", "aten::bincount",
}  # fmt: skip


class Waits(TorchDispatchMode):
    """Counts the operations for which a GPU and the CPU would wait for each other, by their line in the package."""

    def __init__(self):
        super().__init__()
        self.lines = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        by_mask = name in ("aten::index", "aten::index_put", "aten::index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in WAITING or by_mask:
            frames = [frame for frame in traceback.extract_stack() if "mobiler2l_ns" in frame.filename]
            if frames:
                self.lines[f"{frames[-1].filename.split('mobiler2l_ns/')[-1]}: {frames[-1].line}"] += 1
        return func(*args, **(kwargs or {}))


def test_the_counter_counts():
    with Waits() as waits:
        pass
    assert not waits.lines
    names = set()

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.add(func._schema.name)
            return func(*args, **(kwargs or {}))

    with Names():
        x = torch.arange(3.0)
        float(x.sum())
        x[x > 1]
        x.nonzero()
    assert {"aten::_local_scalar_dense", "aten::nonzero", "aten::index"} <= names


@pytest.mark.parametrize("photo_share", [0.3, 1.0], ids=["distillation", "fine-tuning"])
def test_no_step_waits_for_the_gpu(build_pipeline, photo_share):
    """Batch, losses, gradients and optimizers, between two views of the teacher."""
    pipeline = build_pipeline("rgbad", photo_share=photo_share, reprojected_share=0.5, photo_depth=True)
    muon = Muon([p for p in pipeline.model.network.parameters() if p.ndim > 1])

    def step(number):
        _, losses, _ = pipeline.get_train_loss_dict(number)
        torch.stack(list(losses.values())).sum().backward()
        muon.step()

    for number in range(3):  # views are rendered and reprojected first
        step(number)
    pipeline.datamanager.reprojected.advance = lambda step: None
    with Waits() as waits:
        step(3)
    assert not waits.lines
