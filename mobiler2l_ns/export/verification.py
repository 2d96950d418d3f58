"""Are the exported files the student, number by number? Each runs in onnxruntime against torch in float64.

One truth serves all targets: the same poses, points, codes and pictures. u: unit roundoff of float32, 2^-24.
"""

import copy
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Dict, List

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export.onnx_files import EMBEDDER, NETWORK, NETWORK_OUTPUTS, PIPELINE, SAMPLER
from mobiler2l_ns.export.onnx_graph import rename_operators
from mobiler2l_ns.export.pose_graph import OUTPUT_NAMES
from mobiler2l_ns.export.precision import Precision
from mobiler2l_ns.export.snap_files import snap_network_name, with_relu
from mobiler2l_ns.export.snap_operators import check_snap_operators
from mobiler2l_ns.runtime import Renderer
from mobiler2l_ns.student.embedder import to_network_input
from mobiler2l_ns.student.network import Outputs
from mobiler2l_ns.student.sampler import DepthRange

IMAGE_TOLERANCE = 2e-4  # a twentieth of a grey level
_U = 2.0**-24
_THREADS = 2
_TIMED_RUNS = 3


@dataclass
class Truth:
    """What torch computes in float64: arrays (B, ...), otherwise shaped as the files' inputs and outputs."""

    c2w: np.ndarray
    points: np.ndarray
    codes: np.ndarray
    inputs: np.ndarray
    images: np.ndarray
    """(B, C, H, W) of all the network's channels; depth still in 0..1."""
    tolerance: Dict[str, float]
    """The largest difference that float32 rounding explains, for points, codes, images, and from pose to image."""


@torch.no_grad()
def compute_truth(model, poses: Float[Tensor, "B 3 4"]) -> Truth:
    """Runs the student in float64.

    Args:
        model: The MobileR2LModel, on the CPU.
        poses: Camera-to-world poses, none of them trained on.
    """
    sampler, embedder, network = (
        copy.deepcopy(module).double().eval() for module in (model.sampler, model.embedder, model.network)
    )
    h, w = model.sampler.grid.tolist()
    rows: Dict[str, List[Tensor]] = {name: [] for name in ("points", "codes", "inputs", "images")}
    rounding = 0.0
    for c2w in poses.float():
        pose = (c2w[None, None, :, :3].contiguous(), c2w[None, None, None, :, 3].contiguous())
        points = sampler(pose[0].double(), pose[1].double())
        exact = to_network_input(embedder(points), h, w)
        rows["points"].append(points)
        # The Embedder is judged on what it was given: the nearest float32, not the float64 it came from.
        rows["codes"].append(embedder(points.float().double()))
        rows["inputs"].append(exact)
        rows["images"].append(network(exact))
        float32 = model.network(to_network_input(model.embedder(model.sampler(*pose)), h, w))
        rounding = max(rounding, float((float32 - rows["images"][-1]).abs().max()))
    arrays = {name: torch.cat(parts).numpy() for name, parts in rows.items()}
    tolerance = _tolerances(model, poses, arrays["points"], rounding)
    return Truth(poses.float().numpy(), **arrays, tolerance=tolerance)


def verify_onnx(
    model, truth: Truth, folder: Path, outputs: Outputs = "rgb", precision: Precision = "fp32"
) -> Dict[str, dict]:
    """Figures of the onnx target's files by name, and of three in a row under ``chain (nchw)`` and ``chain (hwc)``.

    Each has ``max_abs``, ``mean_abs``, ``psnr`` (against torch), ``tolerance`` (None for fewer bits, which are judged
    by PSNR), ``size_bytes``, ``latency_ms`` (median, two threads) and ``operators``.
    """
    renderer = Renderer(folder, num_threads=_THREADS)
    entries = _verify_three(truth, folder, NETWORK, truth.images, outputs)
    entries[PIPELINE] = verify_graph(model, truth, folder / PIPELINE, precision, outputs)
    for layout in ("nchw", "hwc"):
        rendered = np.stack([renderer.render_chain(c2w, layout).transpose(2, 0, 1) for c2w in truth.c2w])
        entries[f"chain ({layout})"] = {
            **_differences(rendered, truth.images[:, :3]),
            "tolerance": truth.tolerance["chain"],
        }
    return entries


@torch.no_grad()
def verify_snap(model, truth: Truth, folder: Path, scene: str, outputs: Outputs = "rgb") -> Dict[str, dict]:
    """The same for Lens Studio's files, which may hold only operators that SnapML runs.

    Only Lens Studio knows GeluSnap; with ReLU in its place the network's file must be the student with ReLU.
    """
    name = snap_network_name(model, scene)
    for file in (SAMPLER, EMBEDDER, name):
        check_snap_operators(folder / file)
    images = truth.images
    if model.network.config.activation == "gelu":
        network = with_relu(model.network).double().eval()
        images = np.stack([network(torch.from_numpy(codes)[None])[0].numpy() for codes in truth.inputs])
    return _verify_three(truth, folder, name, images, outputs)


def verify_graph(model, truth: Truth, path: Path, precision: Precision, outputs: Outputs = "rgb") -> dict:
    """The same for one file from a pose to pictures."""
    feeds = [{"c2w": c2w[None]} for c2w in truth.c2w]
    tolerance = truth.tolerance["chain"] if precision == "fp32" else None
    return {**_compare(path, feeds, _pictures(model, truth, outputs)), "tolerance": tolerance, "precision": precision}


def print_table(report: Dict[str, object], entries: Dict[str, dict]) -> None:
    """Prints a line a file: size, time and difference from torch.

    Args:
        report: The content of report.json.
        entries: Figures by file.
    """
    from nerfstudio.utils.rich_utils import CONSOLE
    from rich.table import Table

    table = Table(title=f"{report['params'] / 1e6:.2f} M parameters, {report['gmac']:.2f} GMAC a picture")
    for heading in ("file", "kB", "ms (CPU)", "nodes", "max error", "mean error", "allowed", "PSNR to torch"):
        table.add_column(heading, justify="left" if heading == "file" else "right")
    for name, entry in entries.items():
        numbers = [_cell(entry, key, form) for key, form in _COLUMNS]
        nodes = str(sum(entry["operators"].values())) if "operators" in entry else ""
        table.add_row(name, *numbers[:2], nodes, *numbers[2:])
    CONSOLE.print(table)


_COLUMNS = (
    ("size_bytes", lambda size: f"{size / 1e3:.0f}"),
    ("latency_ms", "{:.1f}".format),
    ("max_abs", "{:.1e}".format),
    ("mean_abs", "{:.1e}".format),
    ("tolerance", "{:.1e}".format),
    ("psnr", "{:.1f}".format),
)


def _cell(entry: dict, key: str, form) -> str:
    return "" if entry.get(key) is None else form(entry[key])


def check_parity(entries: Dict[str, dict], folder: Path) -> None:
    """Raises UserError, with file and numbers, where more than rounding was found, or no picture at all.

    Args:
        entries: Figures by file; those without ``max_abs`` were not run.
        folder: Where the export would have gone.
    """
    for name, entry in entries.items():
        difference, tolerance = entry.get("max_abs"), entry.get("tolerance")
        if difference is None:
            continue
        allowed = 1.0 if tolerance is None else tolerance
        if not difference <= allowed:  # also true of NaN
            raise UserError(
                f"{name} differs from the trained student by {difference:.2e} (allowed: {allowed:.2e}), so nothing "
                f"was written to {folder}: export again, and report this if it stays."
            )


def _verify_three(truth: Truth, folder: Path, network: str, images: np.ndarray, outputs: Outputs) -> Dict[str, dict]:
    """Sampler, Embedder, and the file of a network that should return these channels of ``images``."""
    pictures = _by_output(images)[: len(NETWORK_OUTPUTS[outputs])]
    poses = [{"c2w33": c2w[None, None, :, :3], "c2w13": c2w[None, None, None, :, 3]} for c2w in truth.c2w]
    inputs = {
        SAMPLER: (poses, [truth.points], "points"),
        EMBEDDER: ([{"rays": points[None].astype(np.float32)} for points in truth.points], [truth.codes], "codes"),
        network: ([{"input": codes[None].astype(np.float32)} for codes in truth.inputs], pictures, "images"),
    }
    return {
        name: {**_compare(folder / name, feeds, expected), "tolerance": truth.tolerance[kind]}
        for name, (feeds, expected, kind) in inputs.items()
    }


def _pictures(model, truth: Truth, outputs: Outputs) -> List[np.ndarray]:
    """What a graph from pose to pictures must return, one array an output."""
    planes = DepthRange(float(model.sampler.near), float(model.sampler.far), model.sampler.unbounded)
    rgb, alpha, depth = _by_output(truth.images)
    return [rgb, alpha, planes.denormalize(depth)][: len(OUTPUT_NAMES[outputs])]


def _by_output(images: np.ndarray) -> List[np.ndarray]:
    """Colours, alpha and depth of a network's channels (B, C, H, W); those that it lacks are empty."""
    return np.split(images, [3, 4], axis=1)


def _compare(path: Path, feeds: List[dict], expected: List[np.ndarray]) -> dict:
    """Runs a file in onnxruntime, after onnx.checker and shape inference had their say.

    Raises:
        onnx.checker.ValidationError: It is not valid ONNX.
    """
    import onnx
    import onnxruntime

    graph = onnx.load(str(path))
    operators = dict(Counter(node.op_type for node in graph.graph.node))
    rename_operators(graph, "GeluSnap", "Relu")
    onnx.checker.check_model(graph, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _THREADS
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results = [session.run(None, feed) for feed in feeds]
    found = [np.concatenate(parts) for parts in zip(*results)]
    times = []
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        session.run(None, feeds[0])
        times.append(time.perf_counter() - start)
    return {
        **_differences(*(np.concatenate([part.ravel() for part in parts]) for parts in (found, expected))),
        "size_bytes": path.stat().st_size,
        "latency_ms": 1e3 * median(times),
        "operators": operators,
    }


def _differences(found: np.ndarray, expected: np.ndarray) -> dict:
    error = found - expected
    return {
        "max_abs": float(np.abs(error).max()),
        "mean_abs": float(np.abs(error).mean()),
        "psnr": float(-10 * np.log10(np.square(error).mean() + 1e-20)),
    }


def _tolerances(model, poses: Tensor, points: np.ndarray, rounding: float) -> Dict[str, float]:
    """The largest difference from float64 that float32 rounding explains.

    - Points: o + z (x r + y u - b). A term is rounded at most eight times on its way: x, its product, two sums, z
      twice, the product with z and the last sum; each time by u of at most |o| + far |d|, d being the longest ray
      (rows of a rotation have length 1, so by Cauchy-Schwarz the terms add up to no more than |d|).
    - Contracted points: see _contracted_tolerance.
    - Codes: scaling by 2^l is exact and the slope of sin at most 1. What remains is the reduction of the argument, u
      of at most 2^(L-1) |x|, and a few u of the polynomial that follows; doubling an angle turns an error e of
      its sine and cosine into at most 4 e + 3 u: from 2 u to 47 u where that is done twice.
    - Images: 2e-4. In the chain a rounded point moves its fastest code 2^(L-1) times as far; where the scene is so
      large or the weights so steep that torch's own float32 comes near 2e-4 that way, another order of summation
      deserves four times what torch shows.
    """
    origin = float(poses[:, :, 3].abs().max())
    ray = float(model.sampler.directions().norm(dim=-1).max())
    angle = 2 ** (model.embedder.num_frequencies - 1) * float(np.abs(points).max())
    if model.sampler.unbounded:
        placed = _contracted_tolerance(model.sampler, origin, ray, points)
    else:
        placed = 8 * _U * (origin + float(model.sampler.far) * ray)
    return {
        "points": placed,
        "codes": _U * (angle + 48),
        "images": IMAGE_TOLERANCE,
        "chain": max(IMAGE_TOLERANCE, 4 * rounding),
    }


def _contracted_tolerance(sampler, origin: float, ray: float, points: np.ndarray) -> float:
    """The same for contracted points.

    1/z takes four roundings more than z; moving and scaling to the cameras' cube takes two. The contraction hands an
    error on at most 3/2 times, and outside at most 3/m times, as x/m moves by 2/m of it; 1/m is 2 - max |point|. Its
    own arithmetic rounds numbers of at most 2 another eight times.
    """
    depths = sampler.depths.numpy()[:, None]
    reach = 12 * _U * (origin + float(sampler.centre.abs().max()) + depths * ray) / float(sampler.radius) + 2 * _U
    largest = np.abs(points).reshape(-1, sampler.num_points, 3).max(axis=-1)
    slope = np.minimum(1.5, 3 * (2 - largest.min(axis=0)))[:, None]
    return float((reach * slope).max()) + 16 * _U
