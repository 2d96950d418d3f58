"""Unstructured pruning: single weights become zero and stay zero. No runtime is faster for it."""

from typing import List

import torch
from jaxtyping import Float
from torch import Tensor

from mobiler2l_ns.pruning.channels import network_layers
from mobiler2l_ns.student.network import MobileR2LNetwork


def convolution_weights(network: MobileR2LNetwork) -> List[Float[Tensor, "*shape"]]:
    """The weights of all convolutions."""
    return [layer.convolution.weight for layer in network_layers(network)]


@torch.no_grad()
def zero_smallest_weights(network: MobileR2LNetwork, fraction: float) -> None:
    """Sets this fraction of the weights that are not zero to zero: the smallest of all layers together."""
    weights = convolution_weights(network)
    sizes = torch.cat([weight.abs().flatten() for weight in weights])
    sizes = sizes[sizes > 0]
    largest = sizes.kthvalue(max(1, round(fraction * len(sizes)))).values
    for weight in weights:
        weight.mul_(weight.abs() > largest)


class HeldZeros:
    """Keeps the weights of a network that are zero now.

    Args:
        network: The network.
    """

    def __init__(self, network: MobileR2LNetwork):
        self.weights = convolution_weights(network)
        self.masks = [weight.detach() != 0 for weight in self.weights]

    @torch.no_grad()
    def apply(self) -> None:
        """Sets them to zero again, after a step of the optimizer."""
        for weight, mask in zip(self.weights, self.masks):
            weight.mul_(mask)


def nonzero_fraction(network: MobileR2LNetwork) -> float:
    """Fraction of the weights of convolutions that are not zero."""
    weights = convolution_weights(network)
    return sum(int(weight.count_nonzero()) for weight in weights) / sum(weight.numel() for weight in weights)
