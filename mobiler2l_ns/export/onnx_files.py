"""The student for onnxruntime: the three files of the published method, and the whole of it as one graph.

h, w: ray grid; s: upscale factor; K: points a ray; L: frequencies; B: any number of poses::

    c2w33 (1,1,3,3) \\
                      Sampler -> pts (1,1,hw,3K) -> Embedder -> embbrays (1,2L+1,hw,3K)
    c2w13 (1,1,1,3) /
    input (1,3K(2L+1),h,w) -> MobileR2L -> output (1,3,sh,sw) in 0..1

    c2w (B,3,4) -> pipeline -> rgb (B,3,sh,sw) in 0..1

With alpha and depth MobileR2L has the outputs alpha and depth01 (1,1,sh,sw) too, the latter from 0 at near to 1 at far;
pipeline has alpha and depth, z in world units.
"""

import copy
import json
import math
from pathlib import Path
from typing import Dict, Tuple

import torch
from torch import Tensor, nn

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export.onnx_graph import set_metadata, trace
from mobiler2l_ns.export.pose_graph import OUTPUT_NAMES, PoseToImage
from mobiler2l_ns.export.precision import Precision, quantize, with_matrix_body
from mobiler2l_ns.student.network import MobileR2LNetwork, Outputs
from mobiler2l_ns.student.sampler import DepthRange
from mobiler2l_ns.student.viewing_range import viewing_range

SAMPLER, EMBEDDER, NETWORK, PIPELINE = "Sampler.onnx", "Embedder.onnx", "MobileR2L.onnx", "pipeline.onnx"
INTRINSICS = "intrinsics.json"
NETWORK_OUTPUTS = {"rgb": ("output",), "rgba": ("output", "alpha"), "rgbad": ("output", "alpha", "depth01")}
OPSETS = range(11, 21)  # from 20 on GELU is one operator
NUM_CALIBRATION_POSES = 8
MAX_CODES = 1 << 26  # numbers from Embedder to network: 0.27 GB, and twenty times that to verify them in float64


def check_size(model) -> None:
    """Raises UserError where the codes of one picture are more than a host can be asked to pass around."""
    (h, w), (height, width) = model.sampler.grid.tolist(), model.size
    codes = model.network.in_channels * h * w
    if codes > MAX_CODES:
        raise UserError(
            f"files for {width}x{height} pixels would pass {4 * codes / 1e9:.2f} GB of ray codes from Embedder to "
            f"network (at most {4 * MAX_CODES / 1e9:.2f}): train with a smaller --pipeline.datamanager.image-size, or "
            "with super-resolution, to export."
        )


def write_onnx_files(
    model, folder: Path, outputs: Outputs = "rgb", precision: Precision = "fp32", opset: int = OPSETS[-1]
) -> None:
    """Writes Sampler, Embedder, MobileR2L, pipeline and intrinsics.json.

    Args:
        model: A trained MobileR2LModel on the CPU.
        folder: An existing folder.
        outputs: What MobileR2L and pipeline return.
        precision: Of the network in pipeline.onnx.
        opset: Of pipeline.onnx.

    Raises:
        OSError: The folder cannot be written.
    """
    graphs = {
        **trace_front(model),
        NETWORK: trace_network(model, model.network, outputs),
        PIPELINE: trace_pipeline(model, outputs, precision, opset),
    }
    write_graphs(graphs, intrinsics(model), folder)


def trace_front(model) -> Dict[str, object]:
    """ModelProtos of Sampler and Embedder, by file name: opset 11 and static shapes."""
    h, w = model.sampler.grid.tolist()
    points = torch.zeros(1, 1, h * w, 3 * model.sampler.num_points)
    pose = (torch.eye(3)[None, None], torch.zeros(1, 1, 1, 3))
    return {
        SAMPLER: trace(model.sampler, pose, ["c2w33", "c2w13"], "pts"),
        EMBEDDER: trace(model.embedder, (points,), ["rays"], "embbrays"),
    }


def trace_network(model, network: MobileR2LNetwork, outputs: Outputs = "rgb"):
    """The ModelProto of a student's network, or of another one for the same codes: opset 11 and static shapes."""
    codes = torch.zeros(1, model.network.in_channels, *model.sampler.grid.tolist())
    return trace(SeparateHeads(network, outputs).eval(), (codes,), ["input"], NETWORK_OUTPUTS[outputs])


class SeparateHeads(nn.Module):
    """A network whose last layer is a layer for the colours, one for alpha and one for depth, as far as asked for.

    A host gets a picture from each output, and none of them has to be cut from another: SnapML's NPU cannot slice.

    Args:
        network: Copied.
        outputs: Which channels come out.
    """

    def __init__(self, network: MobileR2LNetwork, outputs: Outputs):
        super().__init__()
        self.network = copy.deepcopy(network)
        tail, self.network.tail = self.network.tail[0], nn.Identity()
        self.heads = nn.ModuleList()
        for channels in (slice(0, 3), slice(3, 4), slice(4, 5))[: len(NETWORK_OUTPUTS[outputs])]:
            head = copy.deepcopy(tail)
            head.weight.data, head.bias.data = tail.weight.data[channels], tail.bias.data[channels]
            self.heads.append(nn.Sequential(head, nn.Sigmoid()))

    def forward(self, codes: Tensor) -> Tuple[Tensor, ...]:
        features = self.network(codes)
        return tuple(head(features) for head in self.heads)


def trace_pipeline(model, outputs: Outputs, precision: Precision, opset: int, any_batch: bool = True):
    """The ModelProto from poses to pictures."""
    dtype = torch.float16 if precision == "fp16" else torch.float32
    module = PoseToImage(model.sampler, model.embedder, model.network, outputs, dtype).eval()
    poses = viewing_range(model).sample(NUM_CALIBRATION_POSES)
    if precision == "int8":
        module = with_matrix_body(module, poses)
    graph = trace(module, (poses[:1],), ["c2w"], OUTPUT_NAMES[outputs], opset, any_batch)
    return quantize(graph, poses.numpy()) if precision == "int8" else graph


def write_graphs(graphs: Dict[str, object], facts: Dict[str, object], folder: Path) -> None:
    """Writes ModelProtos, with the camera's facts in their metadata and beside them."""
    for name, graph in graphs.items():
        set_metadata(graph, facts)
        (folder / name).write_bytes(graph.SerializeToString())
    (folder / INTRINSICS).write_text(json.dumps(facts, indent=2) + "\n")


def intrinsics(model) -> Dict[str, object]:
    """Camera and sampling facts, under the names of Snap's Lens template and then under plain ones.

    ``H``, ``W`` and ``focal`` are those of the ray grid. ``radius`` is the distance from the camera to the middle of
    the content, (near + far) / 2: where the template's orbit puts its camera. Lengths are in world units. An unbounded
    student's middle is that of 1/z, and its facts name the cube outside of which its Sampler contracts points.
    """
    sampler = model.sampler
    h, w = sampler.grid.tolist()
    near, far = float(sampler.near), float(sampler.far)
    height, width = model.size
    contraction = {}
    if sampler.unbounded:
        contraction = {"contraction_centre": sampler.centre.tolist(), "contraction_radius": float(sampler.radius)}
    return {
        "H": h,
        "W": w,
        "focal": float(sampler.focal),
        "radius": DepthRange(near, far, sampler.unbounded).denormalize(0.5),
        "near": near,
        "far": far,
        "n_sample": sampler.num_points,
        "multires": model.embedder.num_frequencies,
        "image_height": height,
        "image_width": width,
        "image_focal": model.focal,
        "upscale": model.upscale,
        "cam_angle": 2 * math.atan(width / 2 / model.focal),  # horizontal field of view, radians
        "output_scale": 255,
        "pose": "camera-to-world, OpenGL axes (x right, y up, looking down -z), in the run's own normalised world",
        **contraction,
    }
