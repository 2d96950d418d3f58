"""Renders an exported student with numpy and onnxruntime alone. The file can be copied into another program.

    renderer = Renderer("exports/lego")
    image = renderer.render(c2w)  # (H, W, 3) in 0..1

h, w: ray grid; H, W: image; K: points of a ray; L: frequencies; B: poses.
"""

import json
from pathlib import Path
from typing import Any, Dict, Literal, Sequence, Union

import numpy as np

SAMPLER, EMBEDDER, NETWORK, PIPELINE = "Sampler.onnx", "Embedder.onnx", "MobileR2L.onnx", "pipeline.onnx"


class Renderer:
    """Renders images from camera poses.

    A file is loaded when a method first needs it: ``render`` and ``render_all`` need pipeline.onnx, ``render_chain``
    needs Sampler.onnx, Embedder.onnx and MobileR2L.onnx. Without the file they raise FileNotFoundError.

    Args:
        folder: A folder that ns-export-mobiler2l wrote, or the folder onnx in it.
        num_threads: Threads of the network; 0 lets onnxruntime choose. Sampler and Embedder run in one thread.

    Attributes:
        intrinsics: Content of intrinsics.json: image size, focal length, near, far and so on.

    Raises:
        FileNotFoundError: The folder has no intrinsics.json.
    """

    def __init__(self, folder: Union[str, Path], num_threads: int = 0):
        self.folder = Path(folder) / "onnx" if (Path(folder) / "onnx").is_dir() else Path(folder)
        self.num_threads = num_threads
        self.intrinsics: Dict[str, Any] = json.loads(self._find("intrinsics.json").read_text())
        self._sessions: Dict[str, Any] = {}

    def render(self, c2w: np.ndarray) -> np.ndarray:
        """Renders one view or several views with pipeline.onnx.

        Args:
            c2w: Camera-to-world pose (3, 4) or (4, 4), or poses (B, 3, 4) or (B, 4, 4); OpenGL axes (x right, y up,
                looking down -z), in the world that the student was trained in.

        Returns:
            (H, W, 3) float32 in 0..1; (B, H, W, 3) for several poses.

        Raises:
            ValueError: The pose has another shape or is not finite.
            FileNotFoundError: The folder has no pipeline.onnx.
        """
        return self.render_all(c2w)["rgb"]

    def render_all(self, c2w: np.ndarray) -> Dict[str, np.ndarray]:
        """Renders all outputs of pipeline.onnx: ``rgb``, and ``alpha`` and ``depth`` (H, W, 1) if it has them.

        Arguments and errors are those of ``render``. ``depth`` is z in world units.
        """
        c2w = _checked_pose(c2w)
        session = self.session(PIPELINE)
        images = session.run(None, {"c2w": c2w.reshape(-1, 3, 4)})
        images = [np.ascontiguousarray(image.transpose(0, 2, 3, 1)) for image in images]
        names = [output.name for output in session.get_outputs()]
        return {name: image if c2w.ndim == 3 else image[0] for name, image in zip(names, images)}

    def render_chain(self, c2w: np.ndarray, layout: Literal["nchw", "hwc"] = "nchw") -> np.ndarray:
        """Renders one view with Sampler, Embedder and MobileR2L, as a host of the three files does.

        Args:
            c2w: Camera-to-world pose (3, 4) or (4, 4), as for ``render``.
            layout: Memory layout of the host between the files: nchw as in onnxruntime, or hwc as in Lens Studio. The
                image is the same.

        Returns:
            (H, W, 3) float32 in 0..1.

        Raises:
            ValueError: The pose has another shape or is not finite, or the layout is unknown.
            FileNotFoundError: The folder lacks one of the three files.
        """
        c2w = _checked_pose(c2w).reshape(3, 4)
        pose = {"c2w33": c2w[None, None, :, :3], "c2w13": c2w[None, None, None, :, 3]}
        (points,) = self.session(SAMPLER).run(None, pose)
        return self.render_points(points, layout)

    def render_points(self, points: np.ndarray, layout: Literal["nchw", "hwc"] = "nchw") -> np.ndarray:
        """Renders given points with Embedder and MobileR2L, for cameras that are not centred pinholes.

        Args:
            points: (1, 1, h*w, 3K) float32, as Sampler.onnx returns them.
            layout: As for ``render_chain``.

        Returns:
            (H, W, 3) float32 in 0..1.

        Raises:
            ValueError: The layout is unknown.
            FileNotFoundError: The folder lacks one of the two files.
        """
        if layout not in ("nchw", "hwc"):
            raise ValueError(f"layout must be nchw or hwc, not {layout!r}")
        connect = _permute if layout == "nchw" else _copy_flat
        embedder, network = self.session(EMBEDDER), self.session(NETWORK)
        (codes,) = embedder.run(None, {"rays": points})
        (image,) = network.run(["output"], {"input": connect(codes, network.get_inputs()[0].shape)})
        return np.ascontiguousarray(image[0].transpose(1, 2, 0))

    def session(self, name: str) -> Any:
        """The onnxruntime.InferenceSession of a file in the folder.

        Raises:
            FileNotFoundError: The folder has no such file.
        """
        if name not in self._sessions:
            num_threads = 1 if name in (SAMPLER, EMBEDDER) else self.num_threads
            self._sessions[name] = _load_session(self._find(name), num_threads)
        return self._sessions[name]

    def _find(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{self.folder} has no {name}: pass a folder that ns-export-mobiler2l wrote")
        return path


def _permute(codes: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Codes (1, 2L+1, h*w, 3K) as the network's input (1, 3K(2L+1), h, w): channel = coordinate * (2L+1) + code.

    With a surface code: (1, 1, h*w, C) as (1, C, h, w).
    """
    return codes.transpose(0, 3, 1, 2).reshape(shape)


def _copy_flat(codes: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The same input on a host that stores tensors as (H, W, C): the array is copied as it is, without permutation."""
    memory = codes[0].transpose(1, 2, 0).ravel()
    _, channels, h, w = shape
    return np.ascontiguousarray(memory.reshape(h, w, channels).transpose(2, 0, 1))[None]


def _checked_pose(c2w: np.ndarray) -> np.ndarray:
    c2w = np.asarray(c2w, dtype=np.float32)
    if c2w.ndim not in (2, 3) or c2w.shape[-2:] not in ((3, 4), (4, 4)):
        raise ValueError(f"c2w must be one (3, 4) or (4, 4) camera-to-world matrix, or a batch, not {c2w.shape}")
    if not np.isfinite(c2w).all():
        raise ValueError("c2w has a NaN or infinite number: check the source of the pose")
    return c2w[..., :3, :]


def _load_session(path: Path, num_threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
