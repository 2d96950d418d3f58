"""The file for CoreML: one ML program from a camera pose to images, for Xcode and the Neural Engine.

h, w: ray grid; s: upscale factor::

    c2w (1,3,4) -> [points, surface, codes: float32] -> [network: float16] -> rgb (1,3,sh,sw), alpha, depth (1,1,sh,sw)
"""

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Sequence, Set

import numpy as np
import torch

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export.onnx_files import intrinsics
from mobiler2l_ns.export.pose_graph import OUTPUT_NAMES, PoseToImage
from mobiler2l_ns.export.snap_files import safe_name
from mobiler2l_ns.model import MobileR2LModel
from mobiler2l_ns.optional import require
from mobiler2l_ns.student.network import Outputs

_WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")
_WAVES = ("sin", "cos")
_BLOB_OVERHEAD = 128  # bytes of header and alignment for each tensor in weight.bin


def coreml_name(scene: str) -> str:
    """Name of a scene's package."""
    return f"{safe_name(scene)}.mlpackage"


def write_coreml_files(model: MobileR2LModel, folder: Path, scene: str, outputs: Outputs = "rgb") -> None:
    """Writes SCENE.mlpackage: an ML program for iOS 16, macOS 13 and later.

    Args:
        model: A trained student on the CPU.
        folder: An existing folder.
        scene: Name of the scene.
        outputs: Outputs of the program.

    Raises:
        UserError: coremltools is not installed.
        OSError: The folder cannot be written.
    """
    with _quietly():
        package = convert(model, outputs)
        package.short_description = "Camera-to-world pose (OpenGL axes) to an image: a neural light field."
        metadata = {name: str(value) for name, value in intrinsics(model).to_dict().items()}
        package.user_defined_metadata.update(metadata)
        package.save(str(folder / coreml_name(scene)))


def convert(model: MobileR2LModel, outputs: Outputs) -> Any:
    """The coremltools MLModel of a student. It is not compiled, because only macOS can do that."""
    ct = import_coremltools()
    module = PoseToImage(model.sampler, model.embedder, model.network, outputs).eval()
    pose = torch.eye(3, 4)[None]
    with torch.no_grad():
        traced = torch.jit.trace(module, pose, check_trace=False)
    return ct.convert(
        traced,
        inputs=[ct.TensorType("c2w", tuple(pose.shape), np.float32)],
        outputs=[ct.TensorType(name, dtype=np.float32) for name in OUTPUT_NAMES[outputs]],
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.transform.FP16ComputePrecision(op_selector=is_network),
        skip_model_load=True,
    )


def is_network(operation: Any) -> bool:
    """Whether an operation of an ML program is a convolution of the network or depends on one: it is then float16.

    All other operations compute points, predicted surface and codes, in float32. A code is the sine of up to 256 times
    a coordinate, whose phase float16 cannot resolve. The convolutions that predict the surface are those before a
    sine; none of the network's is.
    """
    return any(
        found.op_type == "conv" and not any(after.op_type in _WAVES for after in _reachable(found, _readers))
        for found in _reachable(operation, _sources)
    )


def _reachable(operation: Any, neighbours: Callable[[Any], Iterable[Any]]) -> Iterator[Any]:
    """An operation, and all that can be reached from it."""
    seen, waiting = {operation}, [operation]
    while waiting:
        operation = waiting.pop()
        yield operation
        for neighbour in neighbours(operation):
            if neighbour not in seen:
                seen.add(neighbour)
                waiting.append(neighbour)


def _sources(operation: Any) -> Iterator[Any]:
    """The operations whose results an operation takes."""
    for variables in operation.inputs.values():
        for variable in variables if isinstance(variables, (list, tuple)) else [variables]:
            if variable.op is not None:
                yield variable.op


def _readers(operation: Any) -> Iterator[Any]:
    """The operations that take the results of an operation."""
    for variable in operation.outputs:
        yield from variable.child_ops


def check_coreml(path: Path, model: MobileR2LModel, outputs: Outputs = "rgb") -> None:
    """Checks a package: names, shapes and types of its inputs and outputs, number formats, and size of the weights.

    Points, predicted surface and codes must be float32, the network and its weights float16. The package is not run,
    because only macOS can do that.

    Args:
        path: The .mlpackage.
        model: The student that it was written from.
        outputs: Its outputs.

    Raises:
        UserError: The package differs.
    """
    ct = import_coremltools()
    with _quietly():
        spec = ct.utils.load_spec(str(path))
    (height, width), (h, w) = model.size, model.sampler.grid.tolist()
    wanted = {"c2w": (1, 3, 4), "rgb": (1, 3, height, width)}
    wanted.update({name: (1, 1, height, width) for name in OUTPUT_NAMES[outputs][1:]})
    arrays = {value.name: value.type.multiArrayType for value in (*spec.description.input, *spec.description.output)}
    if {name: tuple(array.shape) for name, array in arrays.items()} != wanted:
        raise _wrong_package(path, f"does not have the inputs and outputs {wanted}")
    if any(array.dataType != ct.proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT32 for array in arrays.values()):
        raise _wrong_package(path, "has an input or output that is not float32")
    function = spec.mlProgram.functions["main"]
    operations = function.block_specializations[function.opset].operations
    _check_types(path, operations, ct.proto.MIL_pb2)
    module = PoseToImage(model.sampler, model.embedder, model.network, outputs)
    embedder = module.embedder
    half = sum(p.numel() for p in module.parameters()) - sum(p.numel() for p in embedder.parameters())
    rays = 4 * h * w  # directions and a bias for each
    full = rays + sum(tensor.numel() for tensor in (*embedder.parameters(), *embedder.buffers()))
    size = (path / _WEIGHTS).stat().st_size
    if size > 2 * half + 4 * full + _BLOB_OVERHEAD * len(operations):
        raise _wrong_package(path, f"has {size} bytes of weights, too many for float16")


def _check_types(path: Path, operations: Sequence[Any], mil: Any) -> None:
    types = {value.name: value.type.tensorType.dataType for operation in operations for value in operation.outputs}
    before_waves: Set[str] = set()  # values from which a sine or cosine is computed
    for operation in reversed(operations):
        result = operation.outputs[0].name
        taken = [argument.name for value in operation.inputs.values() for argument in value.arguments]
        if operation.type in _WAVES or result in before_waves:
            before_waves.update(taken)
            if operation.type in (*_WAVES, "linear", "matmul", "conv", "softmax") and types[result] != mil.FLOAT32:
                raise _wrong_package(path, f"has points or codes that are not float32 ({result})")
        elif operation.type == "conv":
            names = (result, *(operation.inputs[key].arguments[0].name for key in ("x", "weight")))
            if any(types[name] != mil.FLOAT16 for name in names):
                raise _wrong_package(path, f"has a convolution that is not float16 ({result})")


def _wrong_package(path: Path, difference: str) -> UserError:
    return UserError(f"{path} {difference}: export again, and report this if it stays.")


def import_coremltools() -> Any:
    """The module coremltools, without its messages.

    Raises:
        UserError: It cannot be imported.
    """
    with _quietly():
        return require("coremltools")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Suppresses coremltools' progress bars and its warnings about versions and features of macOS."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
