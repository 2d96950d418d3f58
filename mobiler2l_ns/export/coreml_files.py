"""The student for CoreML: one ML program from a camera pose to pictures, for Xcode and the Neural Engine.

h, w: ray grid; s: upscale factor::

    c2w (1,3,4) -> [points and codes: float32] -> [network: float16] -> rgb (1,3,sh,sw), alpha and depth (1,1,sh,sw)
"""

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import torch

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export.onnx_files import intrinsics
from mobiler2l_ns.export.optional import require
from mobiler2l_ns.export.pose_graph import OUTPUT_NAMES, PoseToImage
from mobiler2l_ns.export.snap_files import safe_name
from mobiler2l_ns.student.network import Outputs

_WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")
_BLOB_OVERHEAD = 128  # bytes around each tensor of weight.bin: a header and its alignment


def coreml_name(scene: str) -> str:
    """Name of the package for a scene."""
    return f"{safe_name(scene)}.mlpackage"


def write_coreml_files(model, folder: Path, scene: str, outputs: Outputs = "rgb") -> None:
    """Writes SCENE.mlpackage: an ML program for iOS 16, macOS 13 and later.

    Args:
        model: A trained MobileR2LModel on the CPU.
        folder: An existing folder.
        scene: Name of the scene.
        outputs: What comes out.

    Raises:
        UserError: coremltools is not installed.
        OSError: The folder cannot be written.
    """
    with _quietly():
        package = convert(model, outputs)
        package.short_description = "Camera-to-world pose (OpenGL axes) to a picture: a neural light field."
        package.user_defined_metadata.update({name: str(value) for name, value in intrinsics(model).items()})
        package.save(str(folder / coreml_name(scene)))


def convert(model, outputs: Outputs):
    """The coremltools MLModel of a student. It is not compiled, which only macOS can."""
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


def is_network(operation) -> bool:
    """Whether an operation of an ML program comes after a convolution, or is one: the network, to be float16.

    What comes before are points and codes. A code is the sine of up to 32 times a coordinate: float16 would lose its
    phase.
    """
    seen, waiting = set(), [operation]
    while waiting:
        operation = waiting.pop()
        if operation.op_type == "conv":
            return True
        for variables in operation.inputs.values():
            for variable in variables if isinstance(variables, (list, tuple)) else [variables]:
                if variable.op is not None and variable.op not in seen:
                    seen.add(variable.op)
                    waiting.append(variable.op)
    return False


def check_coreml(path: Path, model, outputs: Outputs = "rgb") -> None:
    """Raises UserError unless a package is what write_coreml_files means to write.

    Checked are names, shapes and types of what goes in and comes out, that points and codes are float32, that all of
    the network and its weights are float16, and that the weights take the room of float16. Its numbers are not: only
    macOS can run it.

    Args:
        path: The .mlpackage.
        model: The student it was written from.
        outputs: What should come out.
    """
    ct = import_coremltools()
    with _quietly():
        spec = ct.utils.load_spec(str(path))
    (height, width), (h, w) = model.size, model.sampler.grid.tolist()
    wanted = {"c2w": (1, 3, 4), "rgb": (1, 3, height, width)}
    wanted.update({name: (1, 1, height, width) for name in OUTPUT_NAMES[outputs][1:]})
    arrays = {value.name: value.type.multiArrayType for value in (*spec.description.input, *spec.description.output)}
    if {name: tuple(array.shape) for name, array in arrays.items()} != wanted:
        raise _mistake(path, f"does not take and give {wanted}")
    if any(array.dataType != ct.proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT32 for array in arrays.values()):
        raise _mistake(path, "takes or gives something that is not float32")
    function = spec.mlProgram.functions["main"]
    operations = function.block_specializations[function.opset].operations
    _check_types(path, operations, ct.proto.MIL_pb2)
    numbers = sum(p.numel() for p in PoseToImage(model.sampler, model.embedder, model.network, outputs).parameters())
    rays = 4 * h * w  # directions and a bias for each, float32
    size = (path / _WEIGHTS).stat().st_size
    if size > 2 * numbers + 4 * rays + _BLOB_OVERHEAD * len(operations):
        raise _mistake(path, f"has {size} bytes of weights, too many for float16")


def _check_types(path: Path, operations, mil) -> None:
    types = {value.name: value.type.tensorType.dataType for operation in operations for value in operation.outputs}
    convolutions = [operation for operation in operations if operation.type == "conv"]
    for operation in convolutions:
        names = (operation.outputs[0].name, *(operation.inputs[key].arguments[0].name for key in ("x", "weight")))
        if any(types[name] != mil.FLOAT16 for name in names):
            raise _mistake(path, f"has a convolution that is not float16 ({names[0]})")
    for operation in operations:
        if operation.type in ("linear", "matmul", "sin", "cos") and types[operation.outputs[0].name] != mil.FLOAT32:
            raise _mistake(path, f"has points or codes that are not float32 ({operation.outputs[0].name})")


def _mistake(path: Path, what: str) -> UserError:
    return UserError(f"{path} {what}: export again, and report this if it stays.")


def import_coremltools():
    """The module coremltools, which is an extra and talkative; a UserError where it is missing."""
    with _quietly():
        return require("coremltools")


@contextlib.contextmanager
def _quietly():
    """Without coremltools' progress bars and warnings (about versions, and about what only macOS has)."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
