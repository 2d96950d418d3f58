"""int8 for pipeline.onnx: onnxruntime's quantiser on the matrix products of the body, which are most of the work.

With all layers in int8 the network lost 1.6 dB on the demo scene. Three measures keep the loss below 0.1 dB. Only the
body is quantised. Each product returns float32, so only its two factors are rounded. Channels are scaled to similar
magnitudes before, because they share one scale (Xiao et al. 2023, "SmoothQuant").

B: batch; h, w: ray grid; W: width of the network; C: input channels of a convolution.
"""

import copy
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, List, Literal, NamedTuple, Optional, Tuple, cast

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from mobiler2l_ns.export.pose_graph import PoseToImage, fuse_conv_bn
from mobiler2l_ns.student.network import ResidualBlock

if TYPE_CHECKING:
    import onnx

Precision = Literal["fp32", "fp16", "int8"]
INT8_OPSET = 13  # the first one with a scale for each channel
BALANCE = 0.7  # 0: channels are not scaled; 1: all channels have the same magnitude


class BlockScales(NamedTuple):
    """Typical magnitude of each channel before the two convolutions of a residual block."""

    first: Float[Tensor, "C1"]
    second: Float[Tensor, "C2"]


class MatrixBlock(nn.Module):
    """A residual block whose 1x1 convolutions are matrix products of rows of rays.

    The channels before each product are divided by their scales, and the rows of its matrix are multiplied with them.

    Args:
        block: Supplies the weights.
        scales: Of the channels.
    """

    shrink_first: Float[Tensor, "C1"]
    shrink_second: Float[Tensor, "C2"]

    def __init__(self, block: ResidualBlock, scales: BlockScales):
        super().__init__()
        self.first = _scaled_linear(block.conv1, block.norm1, scales.first)
        self.second = _scaled_linear(block.conv2, block.norm2, scales.second)
        self.act = copy.deepcopy(block.act)
        self.register_buffer("shrink_first", 1 / scales.first)
        self.register_buffer("shrink_second", 1 / scales.second)

    def forward(self, x: Float[Tensor, "B hw W"]) -> Float[Tensor, "B hw W"]:
        return x + self.second(self.act(self.first(x * self.shrink_first)) * self.shrink_second)


class MatrixBody(nn.Module):
    """The network's body as matrix products.

    Args:
        blocks: Its residual blocks as matrix products.
        cells: h and w.
    """

    def __init__(self, blocks: List[MatrixBlock], cells: Tuple[int, int]):
        super().__init__()
        self.blocks, self.cells = nn.Sequential(*blocks), cells
        self.width = blocks[0].first.in_features

    def forward(self, x: Float[Tensor, "B W h w"]) -> Float[Tensor, "B W h w"]:
        rows = self.blocks(x.flatten(2).transpose(1, 2))
        return rows.transpose(1, 2).reshape(-1, self.width, *self.cells)


@torch.no_grad()
def with_matrix_body(pipeline: PoseToImage, poses: Float[Tensor, "N 3 4"]) -> PoseToImage:
    """Replaces the body of a pipeline, in place, by matrix products with scaled channels.

    Args:
        pipeline: In float32.
        poses: At which the channels are measured.
    """
    blocks = [cast(ResidualBlock, block) for block in cast(nn.Sequential, pipeline.body)]
    watched = [(_Magnitude(block.conv1), _Magnitude(block.conv2)) for block in blocks]
    for pose in poses:
        pipeline(pose[None])
    scales = [BlockScales(first.finish(), second.finish()) for first, second in watched]
    pipeline.body = MatrixBody([MatrixBlock(block, scale) for block, scale in zip(blocks, scales)], pipeline.cells)
    return pipeline


class _Magnitude:
    """Records the largest magnitude of each input channel of a convolution.

    Args:
        conv: The convolution, until ``finish``.
    """

    def __init__(self, conv: nn.Conv2d):
        self.largest: Optional[Tensor] = None
        self.hook = conv.register_forward_pre_hook(lambda module, inputs: self._watch(inputs[0]))

    def _watch(self, x: Float[Tensor, "B C h w"]) -> None:
        magnitude = x.abs().amax(dim=(0, 2, 3))
        self.largest = magnitude if self.largest is None else torch.maximum(self.largest, magnitude)

    def finish(self) -> Float[Tensor, "C"]:
        """Stops recording and returns the channels' scales."""
        self.hook.remove()
        assert self.largest is not None
        return self.largest.clamp_min(1e-4) ** BALANCE


def quantize(graph: "onnx.ModelProto", poses: Float32[np.ndarray, "N 3 4"]) -> "onnx.ModelProto":
    """The graph of a pipeline with a matrix body, with these matrix products in int8.

    Args:
        graph: In float32.
        poses: Calibration data for the scales of the activations.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Poses(CalibrationDataReader):
        feeds = iter([{"c2w": pose[None]} for pose in poses])

        def get_next(self):
            return next(self.feeds, None)

    products = [node.name for node in graph.graph.node if node.op_type == "MatMul" and node.name.startswith("/body/")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_static(
            graph, path, Poses(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"],
            nodes_to_quantize=products, extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )  # fmt: skip
        return onnx.load(str(path))


def _scaled_linear(conv: nn.Conv2d, norm: nn.Module, scales: Float[Tensor, "C"]) -> nn.Linear:
    """A 1x1 convolution with its batch norm as a linear layer for inputs that were divided by ``scales``."""
    conv = fuse_conv_bn(conv, norm)
    linear = nn.Linear(conv.in_channels, conv.out_channels)
    linear.weight.data, linear.bias.data = conv.weight.data[:, :, 0, 0] * scales, cast(Tensor, conv.bias).data.clone()
    return linear
