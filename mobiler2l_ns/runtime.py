"""Renders an exported folder with numpy and onnxruntime alone. Copy this file into your own program.

    renderer = Renderer("exports/lego")
    image = renderer.render(c2w)  # (H, W, 3) in 0..1

h, w: ray grid; H, W: picture; K: points a ray; L: frequencies; B: poses.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Dict, Literal, Union

import numpy as np


class Renderer:
    """Camera pose in, picture out.

    Args:
        folder: A folder that ns-export-mobiler2l wrote, or the onnx folder in it.
        num_threads: Threads of the network; 0 lets onnxruntime choose. Sampler and Embedder are too small for more
            than one.

    Attributes:
        intrinsics: What intrinsics.json says: picture size, focal length, near, far and so on.

    Raises:
        FileNotFoundError: The folder lacks one of the files.
    """

    def __init__(self, folder: Union[str, Path], num_threads: int = 0):
        self.folder = Path(folder) / "onnx" if (Path(folder) / "onnx").is_dir() else Path(folder)
        for name in ("intrinsics.json", "pipeline.onnx", "Sampler.onnx", "Embedder.onnx", "MobileR2L.onnx"):
            if not (self.folder / name).is_file():
                raise FileNotFoundError(f"{folder} has no {name}: pass a folder that ns-export-mobiler2l wrote")
        self.intrinsics = json.loads((self.folder / "intrinsics.json").read_text())
        threads = {"Sampler.onnx": 1, "Embedder.onnx": 1}
        self.session = lru_cache(None)(lambda name: _session(self.folder / name, threads.get(name, num_threads)))

    def render(self, c2w: np.ndarray) -> np.ndarray:
        """Renders one view, or several, through pipeline.onnx.

        Args:
            c2w: (3, 4) or (4, 4) camera-to-world pose, or (B, 3, 4) or (B, 4, 4) of them; OpenGL axes (x right, y up,
                looking down -z), in the world that the student was trained in.

        Returns:
            (H, W, 3) float32 in 0..1; (B, H, W, 3) for several poses.

        Raises:
            ValueError: The pose has another shape or is not finite.
        """
        return self.render_all(c2w)["rgb"]

    def render_all(self, c2w: np.ndarray) -> Dict[str, np.ndarray]:
        """The same with everything that the export holds: ``rgb``, and perhaps ``alpha`` and ``depth``, (H, W, 1)."""
        c2w = _checked_pose(c2w)
        session = self.session("pipeline.onnx")
        pictures = session.run(None, {"c2w": c2w.reshape(-1, 3, 4)})
        pictures = [np.ascontiguousarray(picture.transpose(0, 2, 3, 1)) for picture in pictures]
        names = [output.name for output in session.get_outputs()]
        return {name: picture if c2w.ndim == 3 else picture[0] for name, picture in zip(names, pictures)}

    def render_chain(self, c2w: np.ndarray, layout: Literal["nchw", "hwc"] = "nchw") -> np.ndarray:
        """Renders one view (3, 4) or (4, 4) through Sampler, Embedder and MobileR2L, as a host of three files does.

        Args:
            c2w: As for ``render``.
            layout: How numbers travel between the files. nchw: as onnxruntime keeps them. hwc: as a host with
                (H, W, C) memory does it, such as Lens Studio; the picture is the same.

        Raises:
            ValueError: As for ``render``, or the layout is unknown.
        """
        c2w = _checked_pose(c2w).reshape(3, 4)
        pose = {"c2w33": c2w[None, None, :, :3], "c2w13": c2w[None, None, None, :, 3]}
        (points,) = self.session("Sampler.onnx").run(None, pose)
        return self.render_points(points, layout)

    def render_points(self, points: np.ndarray, layout: Literal["nchw", "hwc"] = "nchw") -> np.ndarray:
        """Renders given points (1, 1, h*w, 3K), for cameras that are no centred pinhole: a photo's lens, say."""
        if layout not in ("nchw", "hwc"):
            raise ValueError(f"layout must be nchw or hwc, not {layout!r}")
        connect = _permute if layout == "nchw" else _copy_flat
        network = self.session("MobileR2L.onnx")
        (codes,) = self.session("Embedder.onnx").run(None, {"rays": points})
        (image,) = network.run(["output"], {"input": connect(codes, network.get_inputs()[0].shape)})
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
    if c2w.ndim not in (2, 3) or c2w.shape[-2:] not in ((3, 4), (4, 4)):
        raise ValueError(f"c2w must be one (3, 4) or (4, 4) camera-to-world matrix, or a batch, not {c2w.shape}")
    if not np.isfinite(c2w).all():
        raise ValueError("c2w holds NaN or infinity: check where the pose comes from")
    return c2w[..., :3, :]


def _session(path: Path, num_threads: int):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
