"""The channels of a network that can be removed, and a network without some of them.

A group is a set of channels that convolutions share: some write them, others read them, and all lose one together. The
groups of a network are "width" (W), "stage N" (the channels of a super-resolution stage) and "block N" (the channels
inside a residual block). A block without channels is left out of the network.
"""

import math
from dataclasses import replace
from typing import Dict, List, NamedTuple, Optional, Union, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mobiler2l_ns.student.network import MobileR2LNetwork, NetworkConfig, ResidualBlock

Convolution = Union[nn.Conv2d, nn.ConvTranspose2d]
CODES, OUTPUTS = "codes", "outputs"  # no groups: the network's own input and output


class Layer(NamedTuple):
    """A convolution between two groups."""

    convolution: Convolution
    norm: Optional[nn.BatchNorm2d]
    """The batch norm of its outputs."""
    source: str
    """Group that it reads."""
    target: str
    """Group that it writes."""
    work: int
    """Multiply-accumulate operations a ray, for each pair of an input and an output channel."""

    def by_input(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "inputs _"]:
        """A tensor of the weight's shape, with a row for each input channel."""
        return (values if isinstance(self.convolution, nn.ConvTranspose2d) else values.transpose(0, 1)).flatten(1)

    def by_output(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "outputs _"]:
        """A tensor of the weight's shape, with a row for each output channel."""
        return (values.transpose(0, 1) if isinstance(self.convolution, nn.ConvTranspose2d) else values).flatten(1)


def network_layers(network: MobileR2LNetwork) -> List[Layer]:
    """The convolutions of a network, in the order in which they run."""
    head, tail = cast(nn.Conv2d, network.head[0]), cast(nn.Conv2d, network.tail[0])
    found, outer, pixels, stage = [Layer(head, None, CODES, "width", 1)], "width", 1, 0
    for index, module in enumerate((*network.body, *network.super_resolution)):
        if isinstance(module, ResidualBlock):
            inner = f"block {index}"
            found.append(Layer(module.conv1, _norm(module.norm1), outer, inner, pixels))
            found.append(Layer(module.conv2, _norm(module.norm2), inner, outer, pixels))
        else:
            module, stage = cast(nn.ConvTranspose2d, module), stage + 1
            found.append(Layer(module, None, outer, f"stage {stage}", pixels * module.kernel_size[0] ** 2))
            outer, pixels = f"stage {stage}", pixels * module.stride[0] ** 2
    return [*found, Layer(tail, None, outer, OUTPUTS, pixels)]


def group_sizes(layers: List[Layer]) -> Dict[str, int]:
    """Number of channels of each group, in the order of the layers."""
    return {layer.target: layer.convolution.out_channels for layer in layers if layer.target != OUTPUTS}


def macs_a_ray(layers: List[Layer], sizes: Dict[str, int]) -> int:
    """Multiply-accumulate operations a ray if the groups have these sizes."""
    inputs, outputs = layers[0].convolution.in_channels, layers[-1].convolution.out_channels
    sizes = {**sizes, CODES: inputs, OUTPUTS: outputs}
    return sum(layer.work * sizes[layer.source] * sizes[layer.target] for layer in layers)


def num_parameters(layers: List[Layer], sizes: Dict[str, int]) -> int:
    """Weights and biases of the convolutions if the groups have these sizes."""
    inputs, outputs = layers[0].convolution.in_channels, layers[-1].convolution.out_channels
    sizes = {**sizes, CODES: inputs, OUTPUTS: outputs}
    total = 0
    for layer in layers:
        kernel = math.prod(layer.convolution.kernel_size)
        total += (kernel * sizes[layer.source] + 1) * sizes[layer.target]
    return total


def remove_channels(network: MobileR2LNetwork, kept: Dict[str, Int[Tensor, "_"]]) -> MobileR2LNetwork:
    """A network with some of the channels of another one, and their weights.

    Args:
        network: The larger network; it stays as it is.
        kept: For each group, the numbers of the channels that stay.

    Returns:
        The smaller network, on the same device.
    """
    sizes = {name: len(kept[name]) for name in group_sizes(network_layers(network))}
    weight = network_layers(network)[0].convolution.weight
    smaller = MobileR2LNetwork(network.in_channels, smaller_config(network.config, sizes)).to(weight.device)
    everything = {CODES: torch.arange(network.in_channels), OUTPUTS: torch.arange(network.config.out_channels)}
    kept = {name: numbers.to(weight.device) for name, numbers in {**kept, **everything}.items()}
    layers = [layer for layer in network_layers(network) if len(kept[layer.source]) and len(kept[layer.target])]
    for old, new in zip(layers, network_layers(smaller)):
        _copy(old, new, kept[old.source], kept[old.target])
    return smaller.to(memory_format=torch.channels_last).train(network.training)


def smaller_config(config: NetworkConfig, sizes: Dict[str, int]) -> NetworkConfig:
    """The architecture of a network whose groups have these sizes."""
    blocks = iter(size for name, size in sizes.items() if name.startswith("block"))
    inner, sr_inner = config.body_inner_widths, sum(config.stage_inner_widths, ())
    return replace(
        config,
        width=sizes["width"],
        inner_widths=tuple(next(blocks) if width else 0 for width in inner),
        sr_widths=tuple(size for name, size in sizes.items() if name.startswith("stage")),
        sr_inner_widths=tuple(next(blocks) if width else 0 for width in sr_inner),
    )


@torch.no_grad()
def _copy(old: Layer, new: Layer, inputs: Int[Tensor, "_"], outputs: Int[Tensor, "_"]) -> None:
    rows, columns = (outputs, inputs) if isinstance(old.convolution, nn.Conv2d) else (inputs, outputs)
    new.convolution.weight.copy_(old.convolution.weight[rows][:, columns])
    assert new.convolution.bias is not None and old.convolution.bias is not None
    new.convolution.bias.copy_(old.convolution.bias[outputs])
    if old.norm is not None and new.norm is not None:
        state = {name: value[outputs] if value.ndim else value for name, value in old.norm.state_dict().items()}
        new.norm.load_state_dict(state)


def _norm(module: nn.Module) -> Optional[nn.BatchNorm2d]:
    return module if isinstance(module, nn.BatchNorm2d) else None
