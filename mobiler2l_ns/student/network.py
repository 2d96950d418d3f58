"""The light field: residual 1x1 convolutions, then transposed ones for super-resolution. Exported; torch only.

Cao et al., "Real-Time Neural Light Field on Mobile Devices" (CVPR 2023), Sec. 3.1 and Fig. 2. D counts the layers of
head, body and output: D = 60 is a head, 29 blocks of two convolutions and the output layer. W is their width. Without
super-resolution stages this is R2L's residual MLP (Wang et al., ECCV 2022), as a 1x1 convolution is one linear layer
applied to each ray.

B: batch; h, w: ray grid; s: upscale factor.
"""

import math
from dataclasses import dataclass
from typing import List, Literal, Optional, Tuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

# One channel per letter: colours; colours and alpha; colours, alpha and depth.
Outputs = Literal["rgb", "rgba", "rgbad"]


@dataclass
class NetworkConfig:
    """Architecture of the network."""

    depth: int = 60
    """D: number of layers. The head and the output count one each, a residual block two: (D - 2) / 2 blocks."""
    width: int = 256
    """W: channels between the residual blocks."""
    inner_widths: Optional[Tuple[int, ...]] = None
    """Channels inside the residual blocks of the body, one number per block, for a pruned network; 0: without this
    block; None: W in all blocks."""
    sr_widths: Tuple[int, ...] = (64, 64, 16)
    """Channels of each super-resolution stage."""
    sr_strides: Tuple[int, ...] = (2, 2, 2)
    """Upscaling of each stage, 2 or 3: 2 2 2 is x8, 2 2 3 is x12; without stages the student casts a ray per pixel."""
    sr_blocks: int = 2
    """Residual blocks after each upscaling."""
    sr_inner_widths: Optional[Tuple[int, ...]] = None
    """Channels inside these blocks, stage by stage, for a pruned network; 0: without this block; None: those of the
    stage in all its blocks."""
    activation: Literal["gelu", "relu"] = "gelu"
    """gelu has the higher image quality; relu also runs on Android GPUs inside a Lens."""
    batch_norm: bool = False
    """Batch norm after each convolution of a block, as published. Without it, blocks start close to the identity."""
    out_channels: int = 3
    """3: rgb, 4: rgb and alpha, 5: rgb, alpha and depth. The model sets this from its outputs."""

    @property
    def upscale(self) -> int:
        """s: output pixels per ray along each axis."""
        return math.prod(self.sr_strides)

    @property
    def num_blocks(self) -> int:
        """Residual blocks of the body."""
        return (self.depth - 2) // 2

    @property
    def body_inner_widths(self) -> Tuple[int, ...]:
        """Channels inside each residual block of the body."""
        return self.inner_widths or (self.width,) * self.num_blocks

    @property
    def stage_inner_widths(self) -> Tuple[Tuple[int, ...], ...]:
        """Channels inside each residual block of each super-resolution stage."""
        n, inner = self.sr_blocks, self.sr_inner_widths
        if inner is None:
            return tuple((width,) * n for width in self.sr_widths)
        return tuple(inner[n * stage : n * (stage + 1)] for stage in range(len(self.sr_widths)))


class ResidualBlock(nn.Module):
    """x + conv(act(conv(x))), both 1x1.

    Args:
        width: Channels in and out.
        inner_width: Channels between the two convolutions.
        config: Supplies activation and batch_norm.
    """

    def __init__(self, width: int, inner_width: int, config: NetworkConfig):
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner_width, 1)
        self.norm1 = nn.BatchNorm2d(inner_width) if config.batch_norm else nn.Identity()
        self.act = _activation(config)
        self.conv2 = nn.Conv2d(inner_width, width, 1)
        self.norm2 = nn.BatchNorm2d(width) if config.batch_norm else nn.Identity()
        if not config.batch_norm:
            # Without normalisation, the sum of dozens of blocks is large at the start unless each block adds little.
            with torch.no_grad():
                assert self.conv2.bias is not None
                self.conv2.weight.mul_(0.1)
                self.conv2.bias.zero_()

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        return x + self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))


class MobileR2LNetwork(nn.Module):
    """Codes of a grid of rays to an image in 0..1.

    Args:
        in_channels: C, channels of the embedder's codes.
        config: The network's architecture.

    Raises:
        ValueError: The architecture cannot be built.
    """

    def __init__(self, in_channels: int, config: NetworkConfig):
        super().__init__()
        check_network(config)
        self.in_channels, self.config = in_channels, config
        self.head = nn.Sequential(nn.Conv2d(in_channels, config.width, 1), _activation(config))
        self.body = nn.Sequential(*_blocks(config.width, config.body_inner_widths, config))
        stages, width = [], config.width
        for stage_width, stride, inner in zip(config.sr_widths, config.sr_strides, config.stage_inner_widths):
            # Kernel and padding make each stage exactly `stride` times larger.
            kernel, padding = (4, 1) if stride == 2 else (3, 0)
            stages.append(nn.ConvTranspose2d(width, stage_width, kernel, stride, padding))
            stages += _blocks(stage_width, inner, config)
            width = stage_width
        self.super_resolution = nn.Sequential(*stages)
        self.tail = nn.Sequential(nn.Conv2d(width, config.out_channels, 1), nn.Sigmoid())

    def forward(
        self, codes: Float[Tensor, "B {self.in_channels} h w"]
    ) -> Float[Tensor, "B {self.config.out_channels} {self.config.upscale}*h {self.config.upscale}*w"]:
        x = self.head(codes)
        x = self.body(x) + x
        return self.tail(self.super_resolution(x))


def check_network(config: NetworkConfig) -> None:
    """Raises ValueError, with the field's name, for an architecture that cannot be built."""
    if config.depth < 4 or config.depth % 2:
        raise ValueError(f"network.depth must be even and at least 4, not {config.depth}")
    if config.inner_widths is not None and len(config.inner_widths) != config.num_blocks:
        raise ValueError(
            f"network.inner_widths needs {config.num_blocks} numbers, one per block, not {len(config.inner_widths)}"
        )
    num_sr_blocks = len(config.sr_widths) * config.sr_blocks
    if config.sr_inner_widths is not None and len(config.sr_inner_widths) != num_sr_blocks:
        raise ValueError(
            f"network.sr_inner_widths needs {num_sr_blocks} numbers, one per block, not {len(config.sr_inner_widths)}"
        )
    if min((*(config.inner_widths or ()), *(config.sr_inner_widths or ()), 0)) < 0:
        raise ValueError("network.inner_widths and network.sr_inner_widths must not be negative")
    if len(config.sr_widths) != len(config.sr_strides):
        raise ValueError("network.sr_widths and network.sr_strides must have one number per stage")
    if any(stride not in (2, 3) for stride in config.sr_strides):
        raise ValueError(f"network.sr_strides may contain 2 and 3 only, not {config.sr_strides}")


def count_parameters(module: nn.Module) -> int:
    """Number of trainable parameters; buffers are not counted."""
    return sum(p.numel() for p in module.parameters())


def count_macs(module: nn.Module, h: int, w: int) -> int:
    """Multiply-accumulate operations of one h x w pass, of convolutions with trained weights only.

    A transposed convolution counts once per input pixel.

    Args:
        module: A network or an embedder, whose convolutions are listed in the order in which they run.
        h: Rows of the ray grid.
        w: Columns of the ray grid.
    """
    macs, pixels = 0, h * w
    for layer in module.modules():
        if isinstance(layer, nn.ConvTranspose2d):
            macs += layer.weight.numel() * pixels
            pixels *= layer.stride[0] ** 2
        elif isinstance(layer, nn.Conv2d):
            macs += layer.weight.numel() * pixels
    return macs


def _blocks(width: int, inner_widths: Tuple[int, ...], config: NetworkConfig) -> List[ResidualBlock]:
    return [ResidualBlock(width, inner, config) for inner in inner_widths if inner > 0]


def _activation(config: NetworkConfig) -> nn.Module:
    return nn.GELU() if config.activation == "gelu" else nn.ReLU()
