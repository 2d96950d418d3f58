"""Files for onnxruntime: the three files of the published method, and the whole student as one graph.

h, w: ray grid; s: upscale factor; K: points of a ray; L: frequencies; B: any number of poses. With a surface code,
embbrays is (1,1,hw,C) for the C channels of input, see student/surface.py::

    c2w33 (1,1,3,3) \\
                      Sampler -> pts (1,1,hw,3K) -> Embedder -> embbrays (1,2L+1,hw,3K)
    c2w13 (1,1,1,3) /
    input (1,3K(2L+1),h,w) -> MobileR2L -> output (1,3,sh,sw) in 0..1

    c2w (B,3,4) -> pipeline -> rgb (B,3,sh,sw) in 0..1

With alpha and depth, MobileR2L also has the outputs alpha and depth01 (1,1,sh,sw). depth01 is 0 at the near plane and 1
at the far plane. pipeline also has alpha and depth, which is z in world units.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Dict, List, Optional, Tuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export.onnx_graph import set_metadata, trace
from mobiler2l_ns.export.pose_graph import OUTPUT_NAMES, PoseToImage
from mobiler2l_ns.export.precision import Precision, quantize, with_matrix_body
from mobiler2l_ns.model import MobileR2LModel
from mobiler2l_ns.student.network import MobileR2LNetwork, Outputs
from mobiler2l_ns.student.sampler import DepthRange
from mobiler2l_ns.student.surface import SurfaceEmbedder
from mobiler2l_ns.student.viewing_range import viewing_range

if TYPE_CHECKING:
    import onnx

SAMPLER, EMBEDDER, NETWORK, PIPELINE = "Sampler.onnx", "Embedder.onnx", "MobileR2L.onnx", "pipeline.onnx"
INTRINSICS = "intrinsics.json"
NETWORK_OUTPUTS = {"rgb": ("output",), "rgba": ("output", "alpha"), "rgbad": ("output", "alpha", "depth01")}
OPSETS = range(11, 21)  # from 20 on GELU is one operator
NUM_CALIBRATION_POSES = 8
MAX_CODES = 1 << 26  # codes of one image: 0.27 GB in float32, and about 5 GB for the verification in float64


@dataclass(frozen=True)
class Intrinsics:
    """Camera and sampling of a student: first under the names of Snap's Lens template, then under plain names.

    Lengths are in world units.
    """

    H: int
    """Rows of the ray grid."""
    W: int
    """Columns of the ray grid."""
    focal: float
    """Focal length in cells of the ray grid."""
    radius: float
    """Distance from the camera to the middle of the depth range: (near + far) / 2 for a bounded scene, the middle of
    1/z for an unbounded one. The template's orbit puts its camera there."""
    near: float
    far: float
    n_sample: int
    """K."""
    multires: int
    """L: octaves of the K points' codes."""
    image_height: int
    image_width: int
    image_focal: float
    """Focal length in pixels."""
    upscale: int
    cam_angle: float
    """Horizontal field of view, radians."""
    output_scale: int
    pose: str
    """Convention of the poses."""
    contraction_centre: Optional[List[float]] = None
    """Centre of the cube outside of which the Sampler contracts points; None for a bounded scene."""
    contraction_radius: Optional[float] = None
    """Half the side of that cube."""
    surface_octaves: Optional[int] = None
    """S: octaves of the surface code; None for a student without one."""

    def to_dict(self) -> Dict[str, object]:
        """The content of intrinsics.json: all values that the student has."""
        return {name: value for name, value in vars(self).items() if value is not None}


def check_size(model: MobileR2LModel) -> None:
    """Raises UserError where one image has more codes than MAX_CODES.

    With a surface code, the codes of the K points stay within the Embedder. It computes them all the same.
    """
    (h, w), (height, width) = model.sampler.grid.tolist(), model.size
    of_points = 3 * model.sampler.num_points * (2 * model.embedder.num_frequencies + 1)
    codes = max(of_points, model.network.in_channels) * h * w
    if codes > MAX_CODES:
        raise UserError(
            f"files for {width}x{height} pixels would hold {4 * codes / 1e9:.2f} GB of ray codes at once (at "
            f"most {4 * MAX_CODES / 1e9:.2f}): train with a smaller --pipeline.datamanager.image-size, or with "
            "super-resolution, to export."
        )


def write_onnx_files(
    model: MobileR2LModel,
    folder: Path,
    outputs: Outputs = "rgb",
    precision: Precision = "fp32",
    opset: int = OPSETS[-1],
) -> None:
    """Writes Sampler, Embedder, MobileR2L, pipeline and intrinsics.json.

    Args:
        model: A trained student on the CPU.
        folder: An existing folder.
        outputs: Outputs of MobileR2L and pipeline.
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


def trace_front(model: MobileR2LModel) -> Dict[str, "onnx.ModelProto"]:
    """Graphs of Sampler and Embedder by file name: opset 11 and fixed shapes."""
    h, w = model.sampler.grid.tolist()
    points = torch.zeros(1, 1, h * w, 3 * model.sampler.num_points)
    pose = (torch.eye(3)[None, None], torch.zeros(1, 1, 1, 3))
    return {
        SAMPLER: trace(model.sampler, pose, ["c2w33", "c2w13"], "pts"),
        EMBEDDER: trace(model.embedder, (points,), ["rays"], "embbrays"),
    }


def trace_network(model: MobileR2LModel, network: MobileR2LNetwork, outputs: Outputs = "rgb") -> "onnx.ModelProto":
    """The graph of a student's network, or of another network with the same input: opset 11 and fixed shapes."""
    codes = torch.zeros(1, model.network.in_channels, *model.sampler.grid.tolist())
    return trace(SeparateHeads(network, outputs).eval(), (codes,), ["input"], NETWORK_OUTPUTS[outputs])


class SeparateHeads(nn.Module):
    """A network with a last layer each for colours, alpha and depth.

    Each output of the file is then an image of its own. SnapML's NPU could not slice them out of one output.

    Args:
        network: Its layers are used, not copied.
        outputs: Outputs of the module.
    """

    def __init__(self, network: MobileR2LNetwork, outputs: Outputs):
        super().__init__()
        self.network, self.heads = network, nn.ModuleList()
        weight, bias = network.tail[0].state_dict().values()
        for channels in (slice(0, 3), slice(3, 4), slice(4, 5))[: len(NETWORK_OUTPUTS[outputs])]:
            head = nn.Conv2d(weight.shape[1], len(weight[channels]), 1)
            head.load_state_dict({"weight": weight[channels], "bias": bias[channels]})
            self.heads.append(nn.Sequential(head, nn.Sigmoid()))

    def forward(self, codes: Float[Tensor, "B C h w"]) -> Tuple[Float[Tensor, "B _ H W"], ...]:
        x = self.network.head(codes)
        features = self.network.super_resolution(self.network.body(x) + x)
        return tuple(head(features) for head in self.heads)


def trace_pipeline(
    model: MobileR2LModel, outputs: Outputs, precision: Precision, opset: int, any_batch: bool = True
) -> "onnx.ModelProto":
    """The graph from poses to images.

    Args:
        model: A trained student on the CPU.
        outputs: Outputs of the graph.
        precision: Of the network.
        opset: 11 to 20.
        any_batch: Take any number of poses; False: one pose.
    """
    dtype = torch.float16 if precision == "fp16" else torch.float32
    module = PoseToImage(model.sampler, model.embedder, model.network, outputs, dtype).eval()
    poses = viewing_range(model).sample(NUM_CALIBRATION_POSES)
    if precision == "int8":
        module = with_matrix_body(module, poses)
    graph = trace(module, (poses[:1],), ["c2w"], OUTPUT_NAMES[outputs], opset, any_batch)
    return quantize(graph, poses.numpy()) if precision == "int8" else graph


def write_graphs(graphs: Dict[str, "onnx.ModelProto"], camera: Intrinsics, folder: Path) -> None:
    """Writes graphs by file name. The camera is written into their metadata and into intrinsics.json."""
    for name, graph in graphs.items():
        set_metadata(graph, camera.to_dict())
        (folder / name).write_bytes(graph.SerializeToString())
    (folder / INTRINSICS).write_text(json.dumps(camera.to_dict(), indent=2) + "\n")


def intrinsics(model: MobileR2LModel) -> Intrinsics:
    """Camera and sampling of a student."""
    sampler, embedder = model.sampler, model.embedder
    h, w = sampler.grid.tolist()
    height, width = model.size
    near, far = float(sampler.near), float(sampler.far)
    return Intrinsics(
        H=h,
        W=w,
        focal=float(sampler.focal),
        radius=float(DepthRange(near, far, sampler.unbounded).denormalize(0.5)),
        near=near,
        far=far,
        n_sample=sampler.num_points,
        multires=embedder.num_frequencies,
        image_height=height,
        image_width=width,
        image_focal=model.focal,
        upscale=model.upscale,
        cam_angle=2 * math.atan(width / 2 / model.focal),
        output_scale=255,
        pose="camera-to-world, OpenGL axes (x right, y up, looking down -z), in the run's own normalised world",
        contraction_centre=sampler.centre.tolist() if sampler.unbounded else None,
        contraction_radius=float(sampler.radius) if sampler.unbounded else None,
        surface_octaves=embedder.surface_octaves if isinstance(embedder, SurfaceEmbedder) else None,
    )
