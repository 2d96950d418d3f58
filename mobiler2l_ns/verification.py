"""Are the files in a folder the student, number by number? Each runs in onnxruntime against torch in float64.

u: unit roundoff of float32, 2^-24.
"""

import copy
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Dict, List, NamedTuple, Tuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mobiler2l_ns.embedder import to_network_input
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.onnx_files import EMBEDDER, NETWORK, SAMPLER, SNAP_NETWORK, rename_operators, with_relu
from mobiler2l_ns.poses import look_at
from mobiler2l_ns.runtime import Renderer

IMAGE_TOLERANCE = 2e-4  # a twentieth of a grey level
SNAP_OPERATORS = frozenset(
    "Conv ConvTranspose Relu GeluSnap Sigmoid Add Mul Sin Cos Concat Transpose Reshape ReduceSum Constant Slice".split()
)
SNAP_FILES = (SAMPLER, EMBEDDER, SNAP_NETWORK)
_U = 2.0**-24
_THREADS = 2
_TIMED_RUNS = 3


class _Truth(NamedTuple):
    """What torch computes in float64, a list entry a pose: arrays shaped as the files' inputs and outputs."""

    poses: List[Tuple[np.ndarray, np.ndarray]]
    points: List[np.ndarray]
    codes: List[np.ndarray]
    inputs: List[np.ndarray]
    images: List[np.ndarray]
    relu_images: List[np.ndarray]
    rounding: List[float]  # how far torch's own float32 picture is from the float64 one


def random_poses(near: float, far: float, count: int, seed: int = 0) -> Float[Tensor, "count 3 4"]:
    """Poses at (near + far) / 2 from the origin that look near it; the same ones for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    radius = (near + far) / 2
    direction, target = torch.randn(2, count, 3, generator=generator)
    direction[:, 2] *= 0.5  # away from the poles, where "up" means nothing
    position = radius * torch.nn.functional.normalize(direction, dim=-1)
    return look_at(position, 0.05 * radius * target, torch.tensor([0.0, 0.0, 1.0]))


@torch.no_grad()
def verify(model, folder: Path, poses: Float[Tensor, "B 3 4"]) -> Dict[str, dict]:
    """Runs every file of a folder against the student it was written from.

    Args:
        model: The MobileR2LModel, on the CPU.
        folder: Where write_onnx_files wrote.
        poses: Camera-to-world poses, none of them trained on.

    Returns:
        ``files``: for each file ``max_abs``, ``mean_abs``, ``tolerance``, ``size_bytes``, ``latency_ms`` (median, two
        threads) and ``operators``. ``chain``: for the layouts ``nchw`` and ``hwc``, the largest difference between the
        picture of all three files and torch's, and ``tolerance``.

    Raises:
        UserError: A file uses what SnapML cannot run, or the Snap file has other weights.
        onnx.checker.ValidationError: A file is not valid ONNX.
    """
    import onnx

    for name in SNAP_FILES:
        check_snap_operators(folder / name)
    graphs = {name: onnx.load(str(folder / name)) for name in (*SNAP_FILES, NETWORK)}
    _check_same_weights(graphs[NETWORK], graphs[SNAP_NETWORK], folder / SNAP_NETWORK)
    operators = {name: dict(Counter(node.op_type for node in graph.graph.node)) for name, graph in graphs.items()}
    # Only Lens Studio knows GeluSnap; with ReLU in its place the file must be the student with ReLU.
    rename_operators(graphs[SNAP_NETWORK], "GeluSnap", "Relu")
    truth = _truth(model, poses)
    tolerance = _tolerances(model, truth)
    files = {}
    for name, (inputs, expected) in _inputs_and_outputs(truth).items():
        onnx.checker.check_model(graphs[name])
        files[name] = {
            **_compare(graphs[name].SerializeToString(), inputs, expected),
            "tolerance": tolerance[name],
            "size_bytes": (folder / name).stat().st_size,
            "operators": operators[name],
        }
    return {"files": files, "chain": {**_compare_chain(folder, poses, truth.images), "tolerance": tolerance["chain"]}}


def check_parity(report: Dict[str, dict], folder: Path) -> None:
    """Raises UserError, with file and numbers, where verify found more than rounding."""
    worst = {name: (entry["max_abs"], entry["tolerance"]) for name, entry in report["files"].items()}
    for layout in ("nchw", "hwc"):
        worst[f"the three files in a row ({layout})"] = (report["chain"][layout], report["chain"]["tolerance"])
    for name, (difference, tolerance) in worst.items():
        if not difference <= tolerance:  # also true of NaN
            raise UserError(
                f"{name} differs from the trained student by {difference:.2e} (allowed: {tolerance:.2e}), so nothing "
                f"was written to {folder}: export again, and report this if it stays."
            )


def check_snap_operators(path: Path) -> None:
    """Raises UserError unless SnapML can run a file.

    Refused: operators outside SNAP_OPERATORS, tensors of more than four dimensions, and products or sums that
    broadcast over channels and over height or width at once.
    """
    import onnx

    model = onnx.load(str(path))
    graph = model.graph
    foreign = sorted({node.op_type for node in graph.node} - SNAP_OPERATORS)
    if foreign:
        raise UserError(f"{path} uses {', '.join(foreign)}, which SnapML does not run: export it again without.")
    rename_operators(model, "GeluSnap", "Relu")  # shapes are inferred for standard operators only
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    for node in graph.node:
        if any(len(shapes[name]) > 4 for name in (*node.input, *node.output)):
            raise UserError(f"{path}: {node.name} has more than four dimensions, which SnapML does not run.")
        if node.op_type in ("Add", "Mul") and any(
            _broadcasts_twice(shapes[name], shapes[node.output[0]]) for name in node.input
        ):
            raise UserError(f"{path}: {node.name} broadcasts over channels and pixels at once; SnapML does not.")


def print_table(report: Dict[str, dict]) -> None:
    """Prints a line a file: size, time and difference from torch.

    Args:
        report: The content of report.json.
    """
    from nerfstudio.utils.rich_utils import CONSOLE
    from rich.table import Table

    parity = report["parity"]
    table = Table(title=f"{report['params'] / 1e6:.2f} M parameters, {report['gmac']:.2f} GMAC a picture")
    for heading in ("file", "kB", "ms (CPU)", "max difference", "allowed"):
        table.add_column(heading, justify="left" if heading == "file" else "right")
    for name, size in report["size_bytes"].items():
        numbers = (f"{parity['max_abs'][name]:.1e}", f"{parity['tolerance'][name]:.1e}")
        table.add_row(name, f"{size / 1e3:.0f}", f"{report['latency_ms'][name]:.1f}", *numbers)
    for layout, difference in parity["chain"].items():
        table.add_row(f"all three, {layout}", "", "", f"{difference:.1e}", f"{parity['tolerance']['chain']:.1e}")
    CONSOLE.print(table)


def _truth(model, poses: Tensor) -> _Truth:
    sampler, embedder, network, relu_network = (
        copy.deepcopy(module).double().eval()
        for module in (model.sampler, model.embedder, model.network, with_relu(model.network))
    )
    h, w = model.sampler.grid.tolist()
    truth = _Truth([], [], [], [], [], [], [])
    for c2w in poses.float():
        pose = (c2w[None, None, :, :3].contiguous(), c2w[None, None, None, :, 3].contiguous())
        points = sampler(pose[0].double(), pose[1].double())
        # The Embedder is judged on what it was given: the nearest float32, not the float64 it came from.
        codes = embedder(points.float().double())
        exact = to_network_input(embedder(points), h, w)
        truth.poses.append((pose[0].numpy(), pose[1].numpy()))
        truth.points.append(points.numpy())
        truth.codes.append(codes.numpy())
        truth.inputs.append(_float32(exact.numpy()))
        truth.images.append(network(exact).numpy())
        truth.relu_images.append(relu_network(exact).numpy())
        float32_image = model.network(to_network_input(model.embedder(model.sampler(*pose)), h, w)).numpy()
        truth.rounding.append(float(np.abs(float32_image - truth.images[-1]).max()))
    return truth


def _inputs_and_outputs(truth: _Truth) -> Dict[str, Tuple[List[dict], List[np.ndarray]]]:
    return {
        SAMPLER: ([{"c2w33": c2w33, "c2w13": c2w13} for c2w33, c2w13 in truth.poses], truth.points),
        EMBEDDER: ([{"rays": _float32(points)} for points in truth.points], truth.codes),
        NETWORK: ([{"input": codes} for codes in truth.inputs], truth.images),
        SNAP_NETWORK: ([{"input": codes} for codes in truth.inputs], truth.relu_images),
    }


def _tolerances(model, truth: _Truth) -> Dict[str, float]:
    """The largest difference from float64 that float32 rounding explains, for each file and for the chain.

    - Points: o + z (x r + y u - b). A term is rounded at most eight times on its way: x, its product, two sums, z
      twice, the product with z and the last sum; each time by u of at most |o| + far |d|, d being the longest ray
      (rows of a rotation have length 1, so by Cauchy-Schwarz the terms add up to no more than |d|).
    - Codes: scaling by 2^l is exact and the slope of sin at most 1. What remains is the reduction of the argument, u
      of at most 2^(L-1) |x|, and a few u of the polynomial that follows.
    - Images: 2e-4. In the chain a rounded point moves its fastest code 2^(L-1) times as far; where the scene is so
      large or the weights so steep that torch's own float32 comes near 2e-4 that way, another order of summation
      deserves four times what torch shows.
    """
    origin = max(float(np.abs(c2w13).max()) for _, c2w13 in truth.poses)
    ray = float(model.sampler.directions().norm(dim=-1).max())
    angle = 2 ** (model.embedder.num_frequencies - 1) * max(float(np.abs(points).max()) for points in truth.points)
    return {
        SAMPLER: 8 * _U * (origin + float(model.sampler.far) * ray),
        EMBEDDER: _U * (angle + 4),
        NETWORK: IMAGE_TOLERANCE,
        SNAP_NETWORK: IMAGE_TOLERANCE,
        "chain": max(IMAGE_TOLERANCE, 4 * max(truth.rounding)),
    }


def _compare(model: bytes, inputs: List[dict], expected: List[np.ndarray]) -> Dict[str, float]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _THREADS
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    differences = [np.abs(session.run(None, feed)[0] - truth) for feed, truth in zip(inputs, expected)]
    times = []
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        session.run(None, inputs[0])
        times.append(time.perf_counter() - start)
    return {
        "max_abs": float(np.max(differences)),
        "mean_abs": float(np.mean(differences)),
        "latency_ms": 1e3 * median(times),
    }


def _compare_chain(folder: Path, poses: Tensor, images: List[np.ndarray]) -> Dict[str, float]:
    renderer = Renderer(folder, num_threads=_THREADS)
    chain = {}
    for layout in ("nchw", "hwc"):
        rendered = [renderer.render(c2w.numpy(), layout).transpose(2, 0, 1)[None] for c2w in poses]
        chain[layout] = float(np.max([np.abs(ours - truth) for ours, truth in zip(rendered, images)]))
    return chain


def _check_same_weights(standard, snap, path: Path) -> None:
    ours, theirs = _convolution_weights(standard), _convolution_weights(snap)
    if len(ours) != len(theirs) or any(a.tobytes() != b.tobytes() for a, b in zip(ours, theirs)):
        raise UserError(f"{path} has other weights than {NETWORK}: export both again.")


def _convolution_weights(model) -> List[np.ndarray]:
    # In the order of the nodes: the exporter's names count nodes, and GELU has more of them than ReLU.
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    return [numpy_helper.to_array(tensors[name]) for node in convolutions for name in node.input[1:]]


def _broadcasts_twice(shape: Tuple[int, ...], output: Tuple[int, ...]) -> bool:
    padded = (1,) * (len(output) - len(shape)) + shape
    stretched = {axis for axis, (a, b) in enumerate(zip(padded, output), start=4 - len(output)) if a != b}
    return 1 in stretched and bool(stretched & {2, 3})


def _float32(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float32)
