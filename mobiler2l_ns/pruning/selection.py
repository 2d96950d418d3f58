"""Which channels go: those that cost the least importance for the work that they take."""

from typing import Callable, Dict, List

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.pruning.channels import Layer, group_sizes, macs_a_ray


def choose_channels(
    layers: List[Layer],
    scores: Dict[str, Float[Tensor, "_"]],
    is_small: Callable[[Dict[str, int]], bool],
    multiple: int,
) -> Dict[str, Int[Tensor, "_"]]:
    """The channels to keep, from a greedy choice over all groups.

    Each turn removes a few channels of the group in which the importance lost, divided by the work saved, is smallest.

    Args:
        layers: Those of the network.
        scores: Importance of the channels of each group that may lose some.
        is_small: Whether a network whose groups have these sizes is small enough.
        multiple: The sizes of groups become multiples of this number, which suits vector units.

    Returns:
        For each group, the numbers of the channels that stay, ascending.

    Raises:
        UserError: No network is small enough.
    """
    sizes = group_sizes(layers)
    ranked = {name: score.sort().values for name, score in scores.items()}
    kept = dict(sizes)
    while not is_small(kept):
        work, candidates = macs_a_ray(layers, kept), []
        for name, values in ranked.items():
            after = (kept[name] - 1) // multiple * multiple
            if after >= (0 if name.startswith("block") else multiple):
                lost = values[sizes[name] - kept[name] : sizes[name] - after].sum()
                candidates.append((float(lost) / (work - macs_a_ray(layers, {**kept, name: after})), name, after))
        if not candidates:
            raise UserError(
                f"no network with multiples of {multiple} channels is as small as that: pass a smaller --fraction, a "
                "larger target or a smaller --multiple."
            )
        _, name, after = min(candidates)
        kept[name] = after
    return {name: _largest(scores, name, sizes[name], kept[name]) for name in sizes}


def _largest(scores: Dict[str, Tensor], name: str, size: int, count: int) -> Int[Tensor, "count"]:
    if name not in scores:
        return torch.arange(size)
    return scores[name].topk(count).indices.sort().values
