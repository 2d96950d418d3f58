"""Renders an exported folder with numpy and onnxruntime alone. Copy this file into your own program.

    renderer = Renderer("outputs/lego/onnx")
    image = renderer.render(c2w)  # (H, W, 3) in 0..1

h, w: ray grid; H, W: picture; K: points a ray; L: frequencies.
"""

import json
from pathlib import Path
from typing import Literal, Union

import numpy as np


class Renderer:
    """Camera pose in, picture out.

    Args:
        folder: A folder that ns-export-mobiler2l wrote.
        num_threads: Threads a file may use; 0 lets onnxruntime choose.

    Attributes:
        intrinsics: What intrinsics.json says: picture size, focal length, near, far and so on.

    Raises:
        FileNotFoundError: The folder lacks one of the files.
    """

    def __init__(self, folder: Union[str, Path], num_threads: int = 0):
        self.intrinsics = json.loads(_existing(Path(folder), "intrinsics.json").read_text())
        self.sampler = _session(_existing(Path(folder), "Sampler.onnx"), num_threads)
        self.embedder = _session(_existing(Path(folder), "Embedder.onnx"), num_threads)
        self.network = _session(_existing(Path(folder), "MobileR2L.onnx"), num_threads)

    def render(self, c2w: np.ndarray, layout: Literal["nchw", "hwc"] = "nchw") -> np.ndarray:
        """Renders one view.

        Args:
            c2w: (3, 4) or (4, 4) camera-to-world pose; OpenGL axes (x right, y up, looking down -z), in the world that
                the student was trained in.
            layout: How numbers travel between the files. nchw: as onnxruntime keeps them. hwc: as a host with
                (H, W, C) memory does it, such as Lens Studio; the picture is the same.

        Returns:
            (H, W, 3) float32 in 0..1.

        Raises:
            ValueError: The pose has another shape or is not finite, or the layout is unknown.
        """
        c2w = _checked_pose(c2w)
        (points,) = self.sampler.run(None, {"c2w33": c2w[None, None, :, :3], "c2w13": c2w[None, None, None, :, 3]})
        return self.render_points(points, layout)

    def render_points(self, points: np.ndarray, layout: Literal["nchw", "hwc"] = "nchw") -> np.ndarray:
        """Renders given points (1, 1, h*w, 3K), for cameras that are no centred pinhole: a photo's lens, say."""
        if layout not in ("nchw", "hwc"):
            raise ValueError(f"layout must be nchw or hwc, not {layout!r}")
        connect = _permute if layout == "nchw" else _copy_flat
        (codes,) = self.embedder.run(None, {"rays": points})
        (image,) = self.network.run(None, {"input": connect(codes, self.network.get_inputs()[0].shape)})
        return np.ascontiguousarray(image[0].transpose(1, 2, 0))


def _permute(codes: np.ndarray, shape) -> np.ndarray:
    """Codes (1, 2L+1, h*w, 3K) as the network's input (1, 3K(2L+1), h, w): channel = coordinate * (2L+1) + code."""
    return codes.transpose(0, 3, 1, 2).reshape(shape)


def _copy_flat(codes: np.ndarray, shape) -> np.ndarray:
    """The same on a host that keeps tensors as (H, W, C): its array is copied number by number, nothing is permuted."""
    memory = codes[0].transpose(1, 2, 0).ravel()
    _, channels, h, w = shape
    return np.ascontiguousarray(memory.reshape(h, w, channels).transpose(2, 0, 1))[None]


def _checked_pose(c2w: np.ndarray) -> np.ndarray:
    c2w = np.asarray(c2w, dtype=np.float32)
    if c2w.shape not in ((3, 4), (4, 4)):
        raise ValueError(f"c2w must be a (3, 4) or (4, 4) camera-to-world matrix, not {c2w.shape}")
    if not np.isfinite(c2w).all():
        raise ValueError("c2w holds NaN or infinity: check where the pose comes from")
    return c2w[:3]


def _existing(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{folder} has no {name}: pass a folder that ns-export-mobiler2l wrote")
    return folder / name


def _session(path: Path, num_threads: int):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
