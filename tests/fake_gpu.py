"""A GPU that computes shapes, types and devices alone, on machines without one.

torch refuses operations whose tensors are on different devices, and those whose result the CPU would have to wait for.
"""

from typing import Any, Dict, Tuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter

OWNERS = "mobiler2l_ns", "nerfstudio.cameras", "torch.nn"


def on_fake_gpu(owner: Any, mode: FakeTensorMode) -> None:
    """Moves everything that an object owns to the GPU, in place: tensors in attributes, lists and dictionaries.

    Args:
        owner: The object. Of the objects that it owns, those of the package, cameras and modules are searched.
        mode: Where the tensors exist.
    """
    _moved(owner, mode, {})


def _moved(owner: Any, mode: FakeTensorMode, done: Dict[int, Tuple[Any, Any]]) -> Any:
    """What takes the place of an object; ``done`` also keeps the objects themselves, or others would get their ids."""
    if id(owner) in done:
        return done[id(owner)][1]
    done[id(owner)] = owner, owner
    if isinstance(owner, torch.Tensor):
        tensor = mode.from_tensor(owner.detach())
        with mode:
            tensor = tensor.to("cuda")
            moved = Parameter(tensor, owner.requires_grad) if isinstance(owner, Parameter) else tensor
        done[id(owner)] = owner, moved
    elif isinstance(owner, torch.device):
        return torch.device("cuda", 0)
    elif isinstance(owner, dict):
        owner.update({key: _moved(value, mode, done) for key, value in [*owner.items()]})
    elif isinstance(owner, list):
        owner[:] = [_moved(value, mode, done) for value in owner]
    elif type(owner) is tuple:
        return tuple(_moved(value, mode, done) for value in owner)
    elif type(owner).__module__.startswith(OWNERS) and hasattr(owner, "__dict__"):
        _moved(vars(owner), mode, done)
    return done[id(owner)][1]
