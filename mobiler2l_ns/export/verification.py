"""Verification: each exported file runs in onnxruntime and is compared with torch in float64.

B: poses; H, W: image; C: channels of the network.
"""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Dict, List, NamedTuple, Optional, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export.onnx_files import EMBEDDER, NETWORK, NETWORK_OUTPUTS, PIPELINE, SAMPLER
from mobiler2l_ns.export.onnx_graph import rename_operators
from mobiler2l_ns.export.pose_graph import OUTPUT_NAMES
from mobiler2l_ns.export.precision import Precision
from mobiler2l_ns.export.snap_files import snap_network_name, with_relu
from mobiler2l_ns.export.snap_operators import check_snap_operators
from mobiler2l_ns.export.truth import Truth
from mobiler2l_ns.model import MobileR2LModel
from mobiler2l_ns.runtime import Renderer
from mobiler2l_ns.student.network import Outputs
from mobiler2l_ns.student.sampler import DepthRange

_THREADS = 2
_TIMED_RUNS = 3


@dataclass
class FileFigures:
    """Figures of one exported file; None: not measured."""

    max_abs: Optional[float] = None
    """Largest absolute difference from torch."""
    mean_abs: Optional[float] = None
    """Mean absolute difference from torch."""
    psnr: Optional[float] = None
    """PSNR against torch, dB."""
    tolerance: Optional[float] = None
    """Largest allowed difference; None for fp16 and int8, which are judged by PSNR."""
    size_bytes: Optional[int] = None
    latency_ms: Optional[float] = None
    """Median time of a run on the CPU with two threads."""
    operators: Optional[Dict[str, int]] = None
    """Number of nodes by operator."""


class FileCase(NamedTuple):
    """Inputs of a file, the outputs that it must have for them, and by how much these may differ."""

    feeds: Sequence[Dict[str, np.ndarray]]
    expected: Sequence[np.ndarray]
    """One array for each output, with all feeds along the first axis."""
    tolerance: Optional[float]
    depths: Optional[DepthRange] = None
    """To normalise the third output, which is z in world units; ``expected`` has it normalised."""


def verify_onnx(
    model: MobileR2LModel, truth: Truth, folder: Path, outputs: Outputs = "rgb", precision: Precision = "fp32"
) -> Dict[str, FileFigures]:
    """Figures of the target onnx: of its files, and of three files in a row as ``chain (nchw)`` and ``chain (hwc)``.

    Args:
        model: The student.
        truth: What torch computes.
        folder: Has the files.
        outputs: Outputs of MobileR2L.onnx and pipeline.onnx.
        precision: Of pipeline.onnx.

    Returns:
        Figures by file name.
    """
    renderer = Renderer(folder, num_threads=_THREADS)
    figures = _verify_three(truth, folder, NETWORK, truth.images, outputs)
    figures[PIPELINE] = verify_graph(model, truth, folder / PIPELINE, precision, outputs)
    for layout in ("nchw", "hwc"):
        rendered = np.stack([renderer.render_chain(c2w, layout).transpose(2, 0, 1) for c2w in truth.c2w])
        figures[f"chain ({layout})"] = _differences(rendered, truth.images[:, :3], truth.tolerance.chain)
    return figures


@torch.no_grad()
def verify_snap(
    model: MobileR2LModel, truth: Truth, folder: Path, scene: str, outputs: Outputs = "rgb"
) -> Dict[str, FileFigures]:
    """Figures of the target snap by file name.

    GeluSnap runs in Lens Studio only. The network's file is therefore run with ReLU in its place, and compared with
    the student with ReLU.

    Args:
        model: The student.
        truth: What torch computes.
        folder: Has the files.
        scene: Name of the scene.
        outputs: Outputs of the network's file.

    Raises:
        UserError: A file has an operator that SnapML does not run.
    """
    name = snap_network_name(model, scene)
    for file in (SAMPLER, EMBEDDER, name):
        check_snap_operators(folder / file)
    images = truth.images
    if model.network.config.activation == "gelu":
        network = with_relu(model.network).double().eval()
        images = np.stack([network(torch.from_numpy(codes)[None])[0].numpy() for codes in truth.inputs])
    return _verify_three(truth, folder, name, images, outputs)


def verify_graph(
    model: MobileR2LModel, truth: Truth, path: Path, precision: Precision, outputs: Outputs = "rgb"
) -> FileFigures:
    """Figures of one file that renders images from poses.

    Depth is compared as the network computes it, normalised to 0..1. In world units its error would depend on the
    scene: near the far plane of an unbounded scene, a rounding error is multiplied by far^2 / near.

    Args:
        model: The student.
        truth: What torch computes.
        path: The file.
        precision: Of the file.
        outputs: Outputs of the file.
    """
    expected = _split_outputs(truth.images)[: len(OUTPUT_NAMES[outputs])]
    feeds = [{"c2w": c2w[None]} for c2w in truth.c2w]
    tolerance = truth.tolerance.chain if precision == "fp32" else None
    depths = DepthRange(float(model.sampler.near), float(model.sampler.far), model.sampler.unbounded)
    return _verify_file(path, FileCase(feeds, expected, tolerance, depths if outputs == "rgbad" else None))


def check_parity(figures: Dict[str, FileFigures], folder: Path) -> None:
    """Checks every file against its tolerance.

    Args:
        figures: Figures by file; files without ``max_abs`` were not run.
        folder: The folder that the export would have been written to.

    Raises:
        UserError: A file differs from torch by more than its tolerance, or by more than 1 or NaN if it has none.
    """
    for name, file in figures.items():
        if file.max_abs is None:
            continue
        allowed = 1.0 if file.tolerance is None else file.tolerance
        if not file.max_abs <= allowed:  # also true of NaN
            raise UserError(
                f"{name} differs from the trained student by {file.max_abs:.2e} (allowed: {allowed:.2e}), so nothing "
                f"was written to {folder}: export again, and report this if it stays."
            )


def _verify_three(
    truth: Truth, folder: Path, network: str, images: Float64[np.ndarray, "B C H W"], outputs: Outputs
) -> Dict[str, FileFigures]:
    """Figures of Sampler, Embedder, and the file ``network``, which must return the first channels of ``images``."""
    tolerance = truth.tolerance
    poses = [{"c2w33": c2w[None, None, :, :3], "c2w13": c2w[None, None, None, :, 3]} for c2w in truth.c2w]
    points = [{"rays": points[None].astype(np.float32)} for points in truth.points]
    codes = [{"input": codes[None].astype(np.float32)} for codes in truth.inputs]
    channels = _split_outputs(images)[: len(NETWORK_OUTPUTS[outputs])]
    cases = {
        SAMPLER: FileCase(poses, [truth.points], tolerance.points),
        EMBEDDER: FileCase(points, [truth.codes], tolerance.codes),
        network: FileCase(codes, channels, tolerance.images),
    }
    return {name: _verify_file(folder / name, case) for name, case in cases.items()}


def _split_outputs(images: Float64[np.ndarray, "B C H W"]) -> List[np.ndarray]:
    """Colours, alpha and depth of the network's channels; those that the network lacks are empty."""
    return np.split(images, [3, 4], axis=1)


def _verify_file(path: Path, case: FileCase) -> FileFigures:
    """Checks a file with onnx.checker and shape inference, runs it, and measures.

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
    results = [session.run(None, feed) for feed in case.feeds]
    found = [np.concatenate(parts) for parts in zip(*results)]
    if case.depths is not None:
        found[2] = case.depths.normalize(torch.from_numpy(found[2].astype(np.float64))).numpy()
    times = []
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        session.run(None, case.feeds[0])
        times.append(time.perf_counter() - start)
    flat_found, flat_expected = (np.concatenate([part.ravel() for part in parts]) for parts in (found, case.expected))
    figures = _differences(flat_found, flat_expected, case.tolerance)
    figures.size_bytes, figures.latency_ms, figures.operators = path.stat().st_size, 1e3 * median(times), operators
    return figures


def _differences(
    found: Float[np.ndarray, "*shape"], expected: Float[np.ndarray, "*shape"], tolerance: Optional[float]
) -> FileFigures:
    error = found - expected
    return FileFigures(
        max_abs=float(np.abs(error).max()),
        mean_abs=float(np.abs(error).mean()),
        psnr=float(-10 * np.log10(np.square(error).mean() + 1e-20)),
        tolerance=tolerance,
    )
