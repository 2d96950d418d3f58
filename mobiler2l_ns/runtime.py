"""Renders an exported student with numpy and onnxruntime alone. The file can be copied into another program.

    renderer = Renderer("exports/lego")
    image = renderer.render(c2w)  # (H, W, 3) in 0..1

Exports may come from strangers. All files are therefore checked before they are used.

h, w: ray grid; H, W: image; K: points of a ray; L: frequencies; S: octaves of the surface code; B: poses.
"""

import json
from pathlib import Path
from typing import Any, Dict, Literal, Optional, Sequence, Tuple, Union

import numpy as np

SAMPLER, EMBEDDER, NETWORK, PIPELINE = "Sampler.onnx", "Embedder.onnx", "MobileR2L.onnx", "pipeline.onnx"
INTRINSICS = "intrinsics.json"
_CURE = "export the student again with ns-export-mobiler2l"

# What intrinsics.json must hold. Unbounded students have a contraction, some students have a surface code.
_COUNTS = ("H", "W", "image_height", "image_width", "n_sample", "multires", "upscale", "surface_octaves")
_POSITIVE = ("focal", "radius", "near", "far", "image_focal", "cam_angle", "output_scale", "contraction_radius")
_OPTIONAL = ("surface_octaves", "contraction_centre", "contraction_radius")
_LARGEST_COUNT = 16384
_LARGEST_NUMBER = 3e38  # of float32

_Shapes = Dict[str, Tuple[Optional[int], ...]]  # by name; None: any


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
        ValueError: intrinsics.json is damaged. With any method: a file does not fit intrinsics.json.
    """

    def __init__(self, folder: Union[str, Path], num_threads: int = 0):
        self.folder = Path(folder) / "onnx" if (Path(folder) / "onnx").is_dir() else Path(folder)
        self.num_threads = num_threads
        self.intrinsics: Dict[str, Any] = _read_intrinsics(self._find(INTRINSICS))
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
            ValueError: It is damaged, keeps data outside of itself, or does not fit intrinsics.json.
        """
        if name not in self._sessions:
            path, num_threads = self._find(name), 1 if name in (SAMPLER, EMBEDDER) else self.num_threads
            session = _load_session(path, num_threads)
            if fault := _fault_of_session(session, name, self.intrinsics):
                raise ValueError(f"{path} does not fit {INTRINSICS} ({fault}): {_CURE}")
            self._sessions[name] = session
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

    # A tensor whose numbers are in another file names it under this key, and older versions of onnxruntime read any
    # file of the machine. An exported file holds all its numbers, and the word nowhere.
    if b"location" in path.read_bytes():
        raise ValueError(f"{path} takes numbers from another file, which no exported file does: {_CURE}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no class in common
        raise ValueError(f"{path} cannot be loaded ({_first_line(error)}): {_CURE}") from error


# -- checks -----------------------------------------------------------------------------------------------------------


def _read_intrinsics(path: Path) -> Dict[str, Any]:
    camera: Any = None
    fault = ""
    try:
        camera = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        fault = _first_line(error)
    if fault := fault or _fault_of_camera(camera):
        raise ValueError(f"{path} is damaged ({fault}): {_CURE}")
    return camera


def _fault_of_camera(camera: Any) -> str:
    """What is wrong with the content of intrinsics.json, or nothing."""
    if not isinstance(camera, dict):
        return "it is no object"
    for name in (*_COUNTS, *_POSITIVE, "contraction_centre", "pose"):
        if name in camera and not _is_sane(name, camera[name]):
            return f"{name} is {camera[name]!r:.40}"
        if name not in camera and name not in _OPTIONAL:
            return f"{name} is missing"
    return "" if camera["near"] < camera["far"] else "near is not less than far"


def _is_sane(name: str, value: Any) -> bool:
    """Whether an entry of intrinsics.json has the right type and range; NaN and infinite numbers have not."""
    if name in _COUNTS:  # a bool is an int, too
        return type(value) is int and (0 if name == "multires" else 1) <= value <= _LARGEST_COUNT
    if name in _POSITIVE:
        return type(value) in (int, float) and 0 < value <= _LARGEST_NUMBER
    if name == "pose":
        return isinstance(value, str)
    if not isinstance(value, list) or len(value) != 3:
        return False
    return all(type(x) in (int, float) and abs(x) <= _LARGEST_NUMBER for x in value)


def _fault_of_session(session: Any, name: str, camera: Dict[str, Any]) -> str:
    """Where a loaded file disagrees with intrinsics.json, or nothing. Other files than the four are not known."""
    if name not in (SAMPLER, EMBEDDER, NETWORK, PIPELINE):
        return ""
    inputs, outputs = _shapes(name, camera)
    taken, given = ([value.name for value in side] for side in (session.get_inputs(), session.get_outputs()))
    if sorted(taken) != sorted(inputs):
        return f"its inputs are {taken!r:.80}, not {list(inputs)}"
    if not given or given != list(outputs)[: len(given)]:
        return f"its outputs are {given!r:.80}, not {list(outputs)}"
    for value in (*session.get_inputs(), *session.get_outputs()):
        wanted = {**inputs, **outputs}[value.name]
        fits = len(value.shape) == len(wanted) and all(y in (None, x) for x, y in zip(value.shape, wanted))
        if value.type != "tensor(float)" or not fits:
            shape = ", ".join("any" if size is None else str(size) for size in wanted)
            return f"{value.name} is a {value.type} of {value.shape!r:.80}, not a tensor(float) of [{shape}]"
    return _fault_of_metadata(session.get_modelmeta().custom_metadata_map, camera)


def _fault_of_metadata(metadata: Dict[str, str], camera: Dict[str, Any]) -> str:
    """Where the camera in a file's metadata is another one, or nothing. Other tools may have removed it."""
    names = (*_COUNTS, *_POSITIVE, "contraction_centre")
    if not any(name in metadata for name in names):
        return ""
    for name in names:
        try:
            value = json.loads(metadata.get(name, "null"))
        except (ValueError, RecursionError):
            value = metadata[name]
        if value != camera.get(name):
            return f"{name} is {metadata.get(name)!r:.40}, not {camera.get(name)!r:.40}"
    return ""


def _shapes(name: str, camera: Dict[str, Any]) -> Tuple[_Shapes, _Shapes]:
    """Inputs of a file and all outputs that it may have; it has the first of them at least."""
    h, w, height, width = (camera[key] for key in ("H", "W", "image_height", "image_width"))
    rays, coordinates, per_number = h * w, 3 * camera["n_sample"], 2 * camera["multires"] + 1
    codes, channels = (1, per_number, rays, coordinates), coordinates * per_number
    if "surface_octaves" in camera:
        channels = coordinates + 3 * (2 * camera["surface_octaves"] + 1)
        codes = (1, 1, rays, channels)
    points = (1, 1, rays, coordinates)
    if name == SAMPLER:
        return {"c2w33": (1, 1, 3, 3), "c2w13": (1, 1, 1, 3)}, {"pts": points}
    if name == EMBEDDER:
        return {"rays": points}, {"embbrays": codes}
    if name == NETWORK:
        image, mask = (1, 3, height, width), (1, 1, height, width)
        return {"input": (1, channels, h, w)}, {"output": image, "alpha": mask, "depth01": mask}
    image, mask = (None, 3, height, width), (None, 1, height, width)
    return {"c2w": (None, 3, 4)}, {"rgb": image, "alpha": mask, "depth": mask}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
