"""The random numbers of a run: their seed, and their state in a checkpoint."""

import random
from typing import Any, Dict

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seeds all random numbers, as ns-train does."""
    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(seed)


def random_state(device) -> Dict[str, Any]:
    """The state of all random numbers of this process, as tensors and plain numbers.

    Args:
        device: The device of the training.
    """
    version, numbers, gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)
    generator: Any = legacy["state"]
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [torch.from_numpy(generator["key"].astype(np.int64)), int(generator["pos"])],
        "numpy_gauss": [int(legacy["has_gauss"]), float(legacy["gauss"])],
        "python": [version, torch.tensor(numbers), gauss],
    }
    if torch.device(device).type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Dict[str, Any], device) -> None:
    """Puts all random numbers back into a saved state.

    Args:
        state: What ``random_state`` returned, here or in another process.
        device: The device of the training.
    """
    torch.set_rng_state(state["torch"])
    key, position = state["numpy"]
    np.random.set_state(("MT19937", key.numpy().astype(np.uint32), position, *state["numpy_gauss"]))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    if torch.device(device).type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
