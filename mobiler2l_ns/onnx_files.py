"""The student as ONNX files in a folder. What a renderer must know besides is in intrinsics.json beside them.

h, w: ray grid; s: upscale factor; K: points a ray; L: frequencies::

    c2w33 (1,1,3,3) \\
                      Sampler -> pts (1,1,hw,3K) -> Embedder -> embbrays (1,2L+1,hw,3K)
    c2w13 (1,1,1,3) /
    input (1,3K(2L+1),h,w) -> MobileR2L -> output (1,3,sh,sw) in 0..1

Lens Studio takes MobileR2L_SnapGELU.onnx for the last one: the same weights around its importer's own GELU.
"""

import copy
import io
import json
import math
import warnings
from pathlib import Path
from typing import Dict, Sequence, Tuple

import torch
from torch import Tensor, nn

from mobiler2l_ns.errors import UserError

SAMPLER, EMBEDDER, NETWORK, SNAP_NETWORK = "Sampler.onnx", "Embedder.onnx", "MobileR2L.onnx", "MobileR2L_SnapGELU.onnx"
INTRINSICS = "intrinsics.json"
OPSET = 11
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


def write_onnx_files(model, folder: Path) -> None:
    """Writes the four ONNX files and intrinsics.json.

    Args:
        model: A trained MobileR2LModel on the CPU.
        folder: An existing folder.

    Raises:
        OSError: The folder cannot be written.
    """
    h, w = model.sampler.grid.tolist()
    points = torch.zeros(1, 1, h * w, 3 * model.sampler.num_points)
    codes = torch.zeros(1, model.network.in_channels, h, w)
    pose = (torch.eye(3)[None, None], torch.zeros(1, 1, 1, 3))
    snap = trace(with_relu(model.network), (codes,), ["input"], "output")
    if model.network.config.activation == "gelu":
        rename_operators(snap, "Relu", "GeluSnap")
    graphs = {
        SAMPLER: trace(model.sampler, pose, ["c2w33", "c2w13"], "pts"),
        EMBEDDER: trace(model.embedder, (points,), ["rays"], "embbrays"),
        NETWORK: trace(model.network, (codes,), ["input"], "output"),
        SNAP_NETWORK: snap,
    }
    facts = intrinsics(model)
    for name, graph in graphs.items():
        for key, value in facts.items():
            graph.metadata_props.add(key=key, value=str(value))
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


def with_relu(network: nn.Module) -> nn.Module:
    """A copy of the network with ReLU for GELU."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GELU):
                setattr(module, name, nn.ReLU())
    return network


def trace(module: nn.Module, inputs: Tuple[Tensor, ...], input_names: Sequence[str], output_name: str):
    """The onnx.ModelProto of a module in eval mode: static shapes, batch norm merged into the convolutions."""
    import onnx

    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():  # a picture's activations need not be kept
        # The exporter of opset 11 is the deprecated one; Lens Studio documents no later opset.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, inputs, buffer, input_names=list(input_names), output_names=[output_name],
            opset_version=OPSET, do_constant_folding=True, dynamo=False,
        )  # fmt: skip
    graph = onnx.load_from_string(buffer.getvalue())
    fold_constants(graph)
    return graph


def fold_constants(model) -> None:
    """Replaces, in place, every node that depends on no input by its value.

    The exporter folds a few operators only. What it leaves of the Sampler's pixel grid (Expand, Tile, Split) SnapML
    could not read.
    """
    from onnx import ModelProto, helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    fixed, live, known = [], [], set(constants)
    for node in model.graph.node:
        if known.issuperset(node.input):
            fixed.append(node)
            known.update(node.output)
        else:
            live.append(node)
    used = {name for node in live for name in node.input}
    names = [name for node in fixed for name in node.output if name in used]
    if names:
        outputs = [helper.make_empty_tensor_value_info(name) for name in names]
        part = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
        part.graph.CopyFrom(helper.make_graph(fixed, "constants", [], outputs, list(constants.values())))
        for name, value in zip(names, ReferenceEvaluator(part).run(names, {})):
            constants[name] = numpy_helper.from_array(value, name)
    kept = [tensor for name, tensor in constants.items() if name in used]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(live)
    model.graph.initializer.extend(kept)


def rename_operators(model, old: str, new: str) -> None:
    """Gives every node of type ``old`` the type ``new``, in place."""
    for node in model.graph.node:
        if node.op_type == old:
            node.op_type = new
