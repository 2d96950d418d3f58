"""What a training step does on a GPU, as far as a CPU can show it: where it waits, and on which device tensors are."""

import traceback
from collections import Counter

import pytest
import torch
from fake_gpu import on_fake_gpu
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mobiler2l_ns.training.finite_steps import FiniteSteps
from mobiler2l_ns.training.optimizers import Muon

# A GPU has to finish its queue before the CPU knows the result, or the size of the result.
WAITING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2",
    "aten::unique_dim", "aten::repeat_interleave", "aten::bincount",
    "aten::lift_fresh",  # torch.tensor(...) of Python numbers, which is copied to the GPU next
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
        torch.tensor([1.0])
        x.repeat_interleave(torch.tensor([1, 2, 3]))
    assert {"aten::_local_scalar_dense", "aten::nonzero", "aten::index", "aten::lift_fresh"} <= names
    assert "aten::repeat_interleave" in names


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
    pool = pipeline.datamanager.pool
    view, c2w = torch.rand(*pool.images.shape[1:]), pool.c2w[0].clone()
    with Waits() as waits:
        step(3)
        pool.add(view, c2w, (0, 0), step=3)
    assert not waits.lines


def test_the_fake_gpu_refuses_what_it_should():
    with FakeTensorMode():
        x = torch.rand(3, device="cuda")
        with pytest.raises(RuntimeError, match="device"):
            x + torch.rand(3)
        with pytest.raises(DataDependentOutputException):
            float(x.sum())
        with pytest.raises(DynamicOutputShapeException):
            x[x > 0]


@pytest.mark.parametrize("photo_share", [0.3, 1.0], ids=["distillation", "fine-tuning"])
def test_a_step_stays_on_the_gpu(build_pipeline, photo_share, monkeypatch):
    """Batch, bf16 network, losses, metrics, a reprojected view and both optimizers, without the backward pass."""
    pipeline = build_pipeline("rgbad", photo_share=photo_share, reprojected_share=0.5, photo_depth=True)
    data, mode, dtypes = pipeline.datamanager, FakeTensorMode(), []
    pipeline.get_train_loss_dict(0)  # views are rendered first, and what is kept of the lenses is made
    data.reprojected.reprojector.render(data.pose_sampler.sample(1)[0])
    on_fake_gpu(pipeline, mode)
    groups, pipeline.model.renderer.precision = pipeline.get_param_groups(), "auto"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(data.budget, "views_due", lambda *missing: 0)
    monkeypatch.setattr(data.reprojected, "advance", lambda step: None)
    pipeline.model.network.head[0].register_forward_hook(lambda module, given, output: dtypes.append(output.dtype))
    optimizers = {"matrices": Muon(groups["matrices"]), "others": torch.optim.AdamW(groups["others"])}
    with mode:
        _, losses, metrics = pipeline.get_train_loss_dict(1)
        data.reprojected.pool.add(data.reprojected.reprojector.render(data.pool.c2w[0]), data.pool.c2w[0], step=1)
        FiniteSteps(optimizers)
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = torch.zeros_like(p)
            optimizer.step()
    found = [value for value in (*losses.values(), *metrics.values()) if isinstance(value, torch.Tensor)]
    assert len(found) >= 5 and all(value.device.type == "cuda" and value.dtype == torch.float32 for value in found)
    assert dtypes == [torch.bfloat16]
