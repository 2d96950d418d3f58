"""How much the loss depends on each channel, in three ways."""

from typing import Dict, Iterable, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mobiler2l_ns.pruning.channels import OUTPUTS, group_sizes, network_layers
from mobiler2l_ns.student.network import MobileR2LNetwork

Criterion = Literal["taylor", "magnitude", "bn"]


class TaylorScores:
    """The change of the loss if a channel were zero, to first order, squared and summed over batches.

    Molchanov et al., "Importance Estimation for Neural Network Pruning" (CVPR 2019), Eq. 8, for a gate at each channel:
    the sum of gradient times weight over all weights that read the channel.

    Args:
        network: The network; its weights have gradients of a batch whenever ``add`` is called.
    """

    def __init__(self, network: MobileR2LNetwork):
        self.layers = network_layers(network)
        weight = self.layers[0].convolution.weight
        self.scores = {name: weight.new_zeros(size) for name, size in group_sizes(self.layers).items()}

    @torch.no_grad()
    def add(self) -> None:
        """Adds a batch, and removes its gradients."""
        changes = {name: torch.zeros_like(score) for name, score in self.scores.items()}
        for layer in self.layers:
            weight = layer.convolution.weight
            if layer.source in changes and weight.grad is not None:
                changes[layer.source] += layer.by_input(weight * weight.grad).sum(1)
            weight.grad = None
        for name, change in changes.items():
            self.scores[name] += change.square()


def magnitude_scores(network: MobileR2LNetwork) -> Dict[str, Float[Tensor, "channels"]]:
    """L1 norms of the weights that write each channel (Li et al., ICLR 2017), relative to the group's mean."""
    layers = network_layers(network)
    norms = ((layer.target, layer.by_output(layer.convolution.weight.detach()).abs().sum(1)) for layer in layers)
    return {name: score / score.mean() for name, score in _sums(norms).items()}


def batch_norm_scores(network: MobileR2LNetwork) -> Dict[str, Float[Tensor, "channels"]]:
    """Scales of each channel's batch norms (Liu et al., "Network Slimming", ICCV 2017); none without batch norm."""
    layers = network_layers(network)
    return _sums((layer.target, layer.norm.weight.detach().abs()) for layer in layers if layer.norm is not None)


def _sums(values: Iterable) -> Dict[str, Float[Tensor, "channels"]]:
    """Sums of tensors by name."""
    found: Dict[str, Tensor] = {}
    for name, value in values:
        if name != OUTPUTS:
            found[name] = found[name] + value if name in found else value
    return found
