"""The whole student as one graph, from camera poses to pictures: exported as pipeline.onnx; torch only.

It computes what Sampler, Embedder and network compute one after the other, but nothing is permuted between them, and
the transposed convolutions are ordinary ones at low resolution whose channels are laid out as pixels at the end (Shi
et al. 2016, "sub-pixel convolution"): onnxruntime runs those faster, on CPUs and in browsers alike.

B: poses; h, w: ray grid; s: upscale factor; K: points a ray; L: frequencies.
"""

import copy
from typing import List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobiler2l_ns.student.network import MobileR2LNetwork, Outputs, ResidualBlock

OUTPUT_NAMES = {"rgb": ("rgb",), "rgba": ("rgb", "alpha"), "rgbad": ("rgb", "alpha", "depth")}


class PoseToImage(nn.Module):
    """Camera-to-world poses to pictures.

    Args:
        sampler: The student's, with its camera set.
        embedder: The student's.
        network: The student's, in eval mode; it is copied.
        outputs: Which of the network's channels come out.
        dtype: Of the network's arithmetic; points and codes need float32.
    """

    def __init__(
        self,
        sampler: nn.Module,
        embedder: nn.Module,
        network: MobileR2LNetwork,
        outputs: Outputs = "rgb",
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.sampler, self.embedder, self.outputs, self.dtype = sampler, embedder, outputs, dtype
        network = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
        network.head[0].weight.data = code_major(network.head[0].weight.data, embedder.num_codes)
        self.head, self.body = network.head.to(dtype), network.body.to(dtype)
        self.cells = tuple(sampler.grid.tolist())
        self.super_resolution = SuperResolution(network, len(outputs), self.cells).to(dtype)

    def forward(self, c2w: Tensor) -> Tuple[Tensor, ...]:
        """Renders poses.

        Args:
            c2w: (B, 3, 4), OpenGL axes.

        Returns:
            ``rgb`` (B, 3, s*h, s*w) in 0..1, and as asked ``alpha`` (B, 1, s*h, s*w) in 0..1 and ``depth`` of the same
            shape, z in world units.
        """
        rays_d = c2w[:, :, :3] @ self.sampler.directions().T  # (B, 3, h*w)
        rays_o = c2w[:, :, 3:]
        points = torch.cat([self.sampler.contract(rays_o + z * rays_d, axis=1) for z in self.sampler.depths], dim=1)
        codes = self.embedder(points.reshape(-1, 3 * self.sampler.num_points, *self.cells)).to(self.dtype)
        features = self.head(codes)
        image = self.super_resolution(self.body(features) + features).float()
        channels = [image[:, :3], image[:, 3:4], image[:, 4:5]][: len(OUTPUT_NAMES[self.outputs])]
        if self.outputs == "rgbad":
            channels[2] = self.sampler.range.denormalize(channels[2])
        return tuple(channels)


class SuperResolution(nn.Module):
    """The network's super-resolution and tail, with the pixels of a cell as channels.

    After the last upscaling everything is 1x1: it runs on the channels of all pixels of a cell side by side, in groups,
    and only the colours are laid out.

    Args:
        network: Taken apart.
        num_channels: How many of the tail's channels are kept: 3 to 5.
        cells: h and w.
    """

    def __init__(self, network: MobileR2LNetwork, num_channels: int, cells: Tuple[int, int]):
        super().__init__()
        tail = network.tail[0]
        layers: List[nn.Module] = list(network.super_resolution)
        starts = [index for index, layer in enumerate(layers) if isinstance(layer, nn.ConvTranspose2d)]
        first, last = layers[: starts[-1]] if starts else [], layers[starts[-1] :] if starts else []
        self.first = nn.Sequential(*[UpConv(m) if isinstance(m, nn.ConvTranspose2d) else m for m in first])
        self.stride = last[0].stride[0] if last else 1
        self.margin = margin_of(last[0]) if last else 0
        pixels = self.stride**2
        self.last = nn.Sequential(
            *([to_subpixel_conv(last[0], pixel_major=True)] if last else []),
            *[grouped_block(block, pixels) for block in last[1:]],
            grouped(tail, pixels, num_channels),
            nn.Sigmoid(),
        )
        self.num_channels = num_channels
        scale = network.config.upscale // self.stride
        self.corners = tuple(scale * side + self.margin for side in cells)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, W, h, w) to (B, num_channels, s*h, s*w) in 0..1."""
        x = self.last(self.first(x))
        if self.stride == 1:
            return x
        pixels, channels = self.stride**2, self.num_channels
        x = x.reshape(-1, pixels, channels, *self.corners).transpose(1, 2)
        return pixel_shuffle_crop(x.reshape(-1, channels * pixels, *self.corners), self.stride, self.margin)


class UpConv(nn.Module):
    """A transposed convolution as an ordinary one and a rearrangement.

    Args:
        layer: Kernel 4, stride 2, padding 1; or kernel 3, stride 3, no padding.
    """

    def __init__(self, layer: nn.ConvTranspose2d):
        super().__init__()
        self.conv, self.stride, self.margin = to_subpixel_conv(layer), layer.stride[0], margin_of(layer)

    def forward(self, x: Tensor) -> Tensor:
        return pixel_shuffle_crop(self.conv(x), self.stride, self.margin)


def margin_of(layer: nn.ConvTranspose2d) -> int:
    """Pixels that to_subpixel_conv computes too many at each border."""
    return 1 if layer.kernel_size[0] > layer.stride[0] else 0


def pixel_shuffle_crop(x: Tensor, stride: int, margin: int) -> Tensor:
    """(B, C*stride^2, h, w) as (B, C, stride*h, stride*w), without the margin."""
    x = F.pixel_shuffle(x, stride)
    return x[..., margin:-margin, margin:-margin] if margin else x


def to_subpixel_conv(layer: nn.ConvTranspose2d, pixel_major: bool = False) -> nn.Conv2d:
    """A convolution whose channels are the pixels that a transposed one puts around each cell, or each corner.

    With stride 3 and kernel 3 a cell makes 3x3 pixels on its own. With stride 2 and kernel 4 the 2x2 pixels around a
    corner depend on the 2x2 cells around it: pixel p of corner c is output 2c + p - 1, to which input c - 1 + d gives
    kernel entry p + 2 - 2d. The outermost pixels, one at each border, belong to nobody.

    Args:
        layer: The transposed convolution.
        pixel_major: Channel = pixel * C + c; else c * stride^2 + pixel.
    """
    stride, (inputs, outputs) = layer.stride[0], layer.weight.shape[:2]
    weight = layer.weight.data.transpose(0, 1)  # (C, inputs, kernel, kernel)
    if margin_of(layer):
        entry = torch.tensor([[p + 2 - 2 * d for d in range(2)] for p in range(2)])
        weight = weight[:, :, entry][:, :, :, :, entry].permute(0, 2, 4, 1, 3, 5)  # (C, p, q, inputs, d, e)
    else:
        weight = weight.permute(0, 2, 3, 1)
    size = 2 if margin_of(layer) else 1
    weight = weight.reshape(outputs, stride**2, inputs, size, size)
    bias = layer.bias.data[:, None].expand(-1, stride**2)
    if pixel_major:
        weight, bias = weight.transpose(0, 1), bias.T
    conv = nn.Conv2d(inputs, outputs * stride**2, size, padding=margin_of(layer))
    conv.weight.data, conv.bias.data = weight.reshape(conv.weight.shape).clone(), bias.reshape(-1).clone()
    return conv


def grouped(layer: nn.Conv2d, groups: int, num_channels: int) -> nn.Conv2d:
    """The first channels of a 1x1 convolution, on ``groups`` pixels side by side."""
    conv = nn.Conv2d(layer.in_channels * groups, num_channels * groups, 1, groups=groups)
    conv.weight.data = layer.weight.data[:num_channels].repeat(groups, 1, 1, 1)
    conv.bias.data = layer.bias.data[:num_channels].repeat(groups)
    return conv


def grouped_block(block: ResidualBlock, groups: int) -> ResidualBlock:
    """A residual block on ``groups`` pixels side by side."""
    block = copy.deepcopy(block)
    for index in (1, 2):
        conv = fuse_conv_bn(getattr(block, f"conv{index}"), getattr(block, f"norm{index}"))
        setattr(block, f"conv{index}", grouped(conv, groups, conv.out_channels))
        setattr(block, f"norm{index}", nn.Identity())
    return block


def fuse_conv_bn(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """A convolution and the batch norm after it, if there is one, as one convolution."""
    return nn.utils.fusion.fuse_conv_bn_eval(conv, norm) if isinstance(norm, nn.BatchNorm2d) else conv


def code_major(weight: Tensor, num_codes: int) -> Tensor:
    """The head's weight for input channels code * 3K + coordinate, from coordinate * (2L+1) + code."""
    width, channels = weight.shape[:2]
    return weight.view(width, channels // num_codes, num_codes, 1, 1).transpose(1, 2).reshape(weight.shape).clone()
