"""int8 for pipeline.onnx: the body's matrix products, which are most of the work, by onnxruntime's own quantiser.

A plain int8 network lost 1.6 dB on the demo scene. Three things keep that below 0.1 dB: only the body is quantised;
each product returns float32, so only its two factors are rounded; and channels are brought to similar sizes first, as
one scale serves them all (Xiao et al. 2023, "SmoothQuant").
"""

import copy
import tempfile
from pathlib import Path
from typing import Dict, Literal, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from mobiler2l_ns.export.pose_graph import PoseToImage, fuse_conv_bn
from mobiler2l_ns.student.network import ResidualBlock

Precision = Literal["fp32", "fp16", "int8"]
BALANCE = 0.7  # 0: channels as they are, all differences with the weights; 1: channels equally large


class MatrixBody(nn.Module):
    """The network's body on rows of rays instead of an image: its 1x1 convolutions as matrix products.

    Args:
        body: Residual blocks.
        sizes: (C,) typical size of each channel before both convolutions of each block.
        cells: h and w.
    """

    def __init__(self, body: nn.Sequential, sizes: Dict[Tuple[int, int], Tensor], cells: Tuple[int, int]):
        super().__init__()
        self.blocks = nn.Sequential(*[MatrixBlock(b, sizes[i, 1], sizes[i, 2]) for i, b in enumerate(body)])
        self.cells, self.width = cells, body[0].conv1.in_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, W, h, w) to the same shape."""
        rows = self.blocks(x.flatten(2).transpose(1, 2))
        return rows.transpose(1, 2).reshape(-1, self.width, *self.cells)


class MatrixBlock(nn.Module):
    """x + second(act(first(x))), each factor divided by its channels' sizes and each matrix multiplied with them."""

    def __init__(self, block: ResidualBlock, first_sizes: Tensor, second_sizes: Tensor):
        super().__init__()
        self.first = _scaled_linear(block.conv1, block.norm1, first_sizes)
        self.second = _scaled_linear(block.conv2, block.norm2, second_sizes)
        self.act = copy.deepcopy(block.act)
        self.register_buffer("shrink_first", 1 / first_sizes)
        self.register_buffer("shrink_second", 1 / second_sizes)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.act(self.first(x * self.shrink_first)) * self.shrink_second)


@torch.no_grad()
def with_matrix_body(pipeline: PoseToImage, poses: Tensor) -> PoseToImage:
    """Replaces the body of a pipeline, in place, by matrix products with balanced channels.

    Args:
        pipeline: In float32.
        poses: (N, 3, 4) to measure the channels at.
    """
    largest: Dict[Tuple[int, int], Tensor] = {}
    hooks = []
    for index, block in enumerate(pipeline.body):
        for part, conv in ((1, block.conv1), (2, block.conv2)):

            def watch(module, inputs, key=(index, part)):
                size = inputs[0].abs().amax(dim=(0, 2, 3))
                largest[key] = torch.maximum(largest[key], size) if key in largest else size

            hooks.append(conv.register_forward_pre_hook(watch))
    for pose in poses:
        pipeline(pose[None])
    for hook in hooks:
        hook.remove()
    sizes = {key: size.clamp_min(1e-4) ** BALANCE for key, size in largest.items()}
    pipeline.body = MatrixBody(pipeline.body, sizes, pipeline.cells)
    return pipeline


def quantize(graph, poses: np.ndarray):
    """The int8 ModelProto of a pipeline with a matrix body; scales of activations come from what poses produce.

    Args:
        graph: The float32 ModelProto.
        poses: (N, 3, 4) to calibrate on.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    products = [node.name for node in graph.graph.node if node.op_type == "MatMul" and node.name.startswith("/body/")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_static(
            graph, path, _Poses(poses), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"],
            nodes_to_quantize=products, extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )  # fmt: skip
        return onnx.load(str(path))


class _Poses:
    """onnxruntime's CalibrationDataReader over poses, one at a time."""

    def __init__(self, poses: np.ndarray):
        self._feeds = ({"c2w": pose[None]} for pose in poses)

    def get_next(self):
        """The next feed, or None at the end."""
        return next(self._feeds, None)


def _scaled_linear(conv: nn.Conv2d, norm: nn.Module, sizes: Tensor) -> nn.Linear:
    """A 1x1 convolution, batch norm merged, as a linear layer for inputs that were divided by ``sizes``."""
    conv = fuse_conv_bn(conv, norm)
    linear = nn.Linear(conv.in_channels, conv.out_channels)
    linear.weight.data, linear.bias.data = conv.weight.data[:, :, 0, 0] * sizes, conv.bias.data.clone()
    return linear
