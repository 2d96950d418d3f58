"""The student for onnxruntime: the three files of the published method, and the whole of it as one graph.

h, w: ray grid; s: upscale factor; K: points a ray; L: frequencies; B: any number of poses::

    c2w33 (1,1,3,3) \\
                      Sampler -> pts (1,1,hw,3K) -> Embedder -> embbrays (1,2L+1,hw,3K)
    c2w13 (1,1,1,3) /
    input (1,3K(2L+1),h,w) -> MobileR2L -> output (1,3,sh,sw) in 0..1

    c2w (B,3,4) -> pipeline -> rgb (B,3,sh,sw) in 0..1
"""

import copy
import json
import math
from pathlib import Path
from typing import Dict

import torch

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.network import MobileR2LNetwork
from mobiler2l_ns.onnx_graph import add_facts, trace
from mobiler2l_ns.pose_graph import OUTPUT_NAMES, Outputs, PoseToImage
from mobiler2l_ns.precision import Precision, quantize, with_matrix_body
from mobiler2l_ns.viewing_range import viewing_range

SAMPLER, EMBEDDER, NETWORK, PIPELINE = "Sampler.onnx", "Embedder.onnx", "MobileR2L.onnx", "pipeline.onnx"
INTRINSICS = "intrinsics.json"
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
        outputs: What pipeline.onnx returns. The other three always have the colours alone.
        precision: Of the network in pipeline.onnx.
        opset: Of pipeline.onnx.

    Raises:
        OSError: The folder cannot be written.
    """
    graphs = {
        **trace_front(model),
        NETWORK: trace_network(model, colours_only(model.network)),
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


def trace_network(model, network: MobileR2LNetwork):
    """The ModelProto of a student's network, or of another one for the same codes: opset 11 and static shapes."""
    codes = torch.zeros(1, model.network.in_channels, *model.sampler.grid.tolist())
    return trace(network, (codes,), ["input"], "output")


def colours_only(network: MobileR2LNetwork) -> MobileR2LNetwork:
    """A copy of the network without the channels for alpha and depth."""
    network = copy.deepcopy(network)
    tail = network.tail[0]
    tail.weight.data, tail.bias.data = tail.weight.data[:3], tail.bias.data[:3]
    return network


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
        add_facts(graph, facts)
        (folder / name).write_bytes(graph.SerializeToString())
    (folder / INTRINSICS).write_text(json.dumps(facts, indent=2) + "\n")


def intrinsics(model) -> Dict[str, object]:
    """Camera and sampling facts, under the names of Snap's Lens template and then under plain ones.

    ``H``, ``W`` and ``focal`` are those of the ray grid. ``radius`` is the distance from the camera to the middle of
    the content, (near + far) / 2: where the template's orbit puts its camera. Lengths are in world units.
    """
    sampler = model.sampler
    h, w = sampler.grid.tolist()
    near, far = float(sampler.near), float(sampler.far)
    height, width = model.size
    return {
        "H": h,
        "W": w,
        "focal": float(sampler.focal),
        "radius": (near + far) / 2,
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
    }
