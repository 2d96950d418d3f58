"""The whole student as one graph from camera poses to images: exported as pipeline.onnx; torch only.

The graph computes the same as Sampler, Embedder and network in a row. Nothing is permuted between them, and each
transposed convolution is an ordinary convolution at low resolution whose output channels are laid out as pixels (Shi et
al. 2016, "sub-pixel convolution"). onnxruntime runs this faster, on CPUs and in browsers.

B: poses; h, w: ray grid; s: upscale factor; K: points of a ray; L: frequencies; W: width of the network; C: channels.
"""

import copy
from typing import List, Tuple, Union, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mobiler2l_ns.student.embedder import Embedder
from mobiler2l_ns.student.network import MobileR2LNetwork, Outputs, ResidualBlock
from mobiler2l_ns.student.sampler import Sampler
from mobiler2l_ns.student.surface import SurfaceEmbedder

OUTPUT_NAMES = {"rgb": ("rgb",), "rgba": ("rgb", "alpha"), "rgbad": ("rgb", "alpha", "depth")}


class PoseToImage(nn.Module):
    """Renders images from camera-to-world poses.

    Args:
        sampler: The student's sampler, with its camera set.
        embedder: The student's embedder.
        network: The student's network in eval mode; it is copied.
        outputs: Outputs of the graph.
        dtype: Number format of the network. Points, predicted surface and codes are float32.
    """

    body: nn.Module

    def __init__(
        self,
        sampler: Sampler,
        embedder: Union[Embedder, SurfaceEmbedder],
        network: MobileR2LNetwork,
        outputs: Outputs = "rgb",
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.sampler, self.embedder, self.outputs, self.dtype = sampler, embedder, outputs, dtype
        network = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
        first = cast(nn.Conv2d, network.head[0])
        # onnxruntime lays channels out in blocks, in all layers or in none, if their number is a multiple of four.
        self.padding = -first.in_channels % 4
        first.weight.data = F.pad(code_major(first.weight.data, embedder.num_codes), (0, 0, 0, 0, 0, self.padding))
        self.head, self.body = network.head.to(dtype), network.body.to(dtype)
        h, w = sampler.grid.tolist()
        self.cells = (h, w)
        self.super_resolution = SuperResolution(network, len(outputs), self.cells).to(dtype)

    def forward(self, c2w: Float[Tensor, "B 3 4"]) -> Tuple[Float[Tensor, "B _ H W"], ...]:
        """Renders poses.

        Args:
            c2w: Camera-to-world poses, OpenGL axes.

        Returns:
            ``rgb`` (B, 3, s*h, s*w) in 0..1; with these outputs ``alpha`` (B, 1, s*h, s*w) in 0..1 and ``depth`` of the
            same shape, z in world units.
        """
        rays_d = c2w[:, :, :3] @ self.sampler.directions().T  # (B, 3, h*w)
        rays_o = c2w[:, :, 3:]
        points = torch.cat([self.sampler.contract(rays_o + z * rays_d, axis=1) for z in self.sampler.depths], dim=1)
        points = points.reshape(-1, 3 * self.sampler.num_points, *self.cells)
        codes = self.embedder.encode(points)
        if self.padding:  # by numbers whose weights are zero
            codes = torch.cat([codes, points[:, : self.padding]], dim=1)
        features = self.head(codes.to(self.dtype))
        image = self.super_resolution(self.body(features) + features).float()
        channels = [image[:, :3], image[:, 3:4], image[:, 4:5]][: len(OUTPUT_NAMES[self.outputs])]
        if self.outputs == "rgbad":
            channels[2] = cast(Tensor, self.sampler.range.denormalize(channels[2]))
        return tuple(channels)


class SuperResolution(nn.Module):
    """The network's super-resolution and tail, with the pixels of a cell as channels.

    All layers after the last upscaling are 1x1. They run as grouped convolutions on all pixels of a cell, and only
    their result is laid out as pixels.

    Args:
        network: Its layers are used, not copied.
        num_channels: How many of the tail's channels are kept: 3 to 5.
        cells: h and w.
    """

    def __init__(self, network: MobileR2LNetwork, num_channels: int, cells: Tuple[int, int]):
        super().__init__()
        layers = list(network.super_resolution)
        stages = [index for index, layer in enumerate(layers) if isinstance(layer, nn.ConvTranspose2d)]
        last = stages[-1] if stages else 0
        self.first = nn.Sequential(*[UpConv(m) if isinstance(m, nn.ConvTranspose2d) else m for m in layers[:last]])
        upscaling = cast(List[nn.ConvTranspose2d], layers[last : last + 1])  # one layer, or none without stages
        self.stride = upscaling[0].stride[0] if upscaling else 1
        self.margin = margin_of(upscaling[0]) if upscaling else 0
        pixels = self.stride**2
        self.last = nn.Sequential(
            *[to_subpixel_conv(layer, pixel_major=True) for layer in upscaling],
            *[grouped_block(block, pixels) for block in cast(List[ResidualBlock], layers[last + 1 :])],
            grouped(cast(nn.Conv2d, network.tail[0]), pixels, num_channels),
            nn.Sigmoid(),
        )
        self.num_channels = num_channels
        scale = network.config.upscale // self.stride
        self.corners = (scale * cells[0] + self.margin, scale * cells[1] + self.margin)

    def forward(self, x: Float[Tensor, "B W h w"]) -> Float[Tensor, "B C sh sw"]:
        """Features to ``num_channels`` channels in 0..1, at s times the resolution."""
        x = self.last(self.first(x))
        if self.stride == 1:
            return x
        pixels, channels = self.stride**2, self.num_channels
        x = x.reshape(-1, pixels, channels, *self.corners).transpose(1, 2)
        return pixel_shuffle_crop(x.reshape(-1, channels * pixels, *self.corners), self.stride, self.margin)


class UpConv(nn.Module):
    """A transposed convolution as an ordinary convolution and a pixel shuffle.

    Args:
        layer: Kernel 4, stride 2, padding 1; or kernel 3, stride 3, no padding.
    """

    def __init__(self, layer: nn.ConvTranspose2d):
        super().__init__()
        self.conv, self.stride, self.margin = to_subpixel_conv(layer), layer.stride[0], margin_of(layer)

    def forward(self, x: Float[Tensor, "B C1 h w"]) -> Float[Tensor, "B C2 H W"]:
        return pixel_shuffle_crop(self.conv(x), self.stride, self.margin)


def margin_of(layer: nn.ConvTranspose2d) -> int:
    """Number of surplus pixels that to_subpixel_conv computes at each border."""
    return 1 if layer.kernel_size[0] > layer.stride[0] else 0


def pixel_shuffle_crop(x: Float[Tensor, "B C1 h w"], stride: int, margin: int) -> Float[Tensor, "B C2 H W"]:
    """C1 = C2*stride^2 channels as stride x stride pixels, without the margin at the borders."""
    x = F.pixel_shuffle(x, stride)
    return x[..., margin:-margin, margin:-margin] if margin else x


def to_subpixel_conv(layer: nn.ConvTranspose2d, pixel_major: bool = False) -> nn.Conv2d:
    """A convolution whose output channels are the output pixels of a transposed convolution.

    With stride 3 and kernel 3, the 3x3 pixels of a cell depend on this cell alone. With stride 2 and kernel 4, the 2x2
    pixels around a corner of cells depend on the 2x2 cells around it: pixel p of corner c is output 2c + p - 1, and
    input c - 1 + d contributes to it with kernel entry p + 2 - 2d. One pixel at each border is surplus.

    Args:
        layer: Kernel 4, stride 2, padding 1; or kernel 3, stride 3, no padding.
        pixel_major: True: channel = pixel * C + c; False: channel = c * stride^2 + pixel.
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
    bias = cast(Tensor, layer.bias).data[:, None].expand(-1, stride**2)
    if pixel_major:
        weight, bias = weight.transpose(0, 1), bias.T
    conv = nn.Conv2d(inputs, outputs * stride**2, size, padding=margin_of(layer))
    conv.load_state_dict({"weight": weight.reshape(conv.weight.shape), "bias": bias.reshape(-1)})
    return conv


def grouped(layer: nn.Conv2d, groups: int, num_channels: int) -> nn.Conv2d:
    """A convolution that applies the first output channels of a 1x1 convolution to ``groups`` pixels."""
    conv = nn.Conv2d(layer.in_channels * groups, num_channels * groups, 1, groups=groups)
    weight, bias = layer.weight.data[:num_channels], cast(Tensor, layer.bias).data[:num_channels]
    conv.load_state_dict({"weight": weight.repeat(groups, 1, 1, 1), "bias": bias.repeat(groups)})
    return conv


def grouped_block(block: ResidualBlock, groups: int) -> ResidualBlock:
    """A residual block that runs on ``groups`` pixels, with their channels one after the other."""
    block = copy.deepcopy(block)
    first, second = fuse_conv_bn(block.conv1, block.norm1), fuse_conv_bn(block.conv2, block.norm2)
    block.conv1, block.norm1 = grouped(first, groups, first.out_channels), nn.Identity()
    block.conv2, block.norm2 = grouped(second, groups, second.out_channels), nn.Identity()
    return block


def fuse_conv_bn(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """One convolution for a convolution and the batch norm after it; without batch norm, the convolution itself."""
    return nn.utils.fusion.fuse_conv_bn_eval(conv, norm) if isinstance(norm, nn.BatchNorm2d) else conv


def code_major(weight: Float[Tensor, "W C 1 1"], num_codes: int) -> Float[Tensor, "W C 1 1"]:
    """The head's weight for input channels code * 3K + coordinate instead of coordinate * (2L+1) + code."""
    width, channels = weight.shape[:2]
    return weight.view(width, channels // num_codes, num_codes, 1, 1).transpose(1, 2).reshape(weight.shape).clone()
