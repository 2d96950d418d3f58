"""Files for Lens Studio: Sampler, Embedder and a network with GeluSnap, the operator of Lens Studio's importer.

Layout and names are those of Snap's Lens template. SnapML stores tensors as (H, W, C) and supports few operators:
snap_operators.py has what it documents for each of its backends.
"""

import copy
import math
import re
from pathlib import Path
from typing import Iterable, Optional, Tuple, Union

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mobiler2l_ns.export.onnx_files import intrinsics, trace_front, trace_network, write_graphs
from mobiler2l_ns.export.onnx_graph import rename_operators
from mobiler2l_ns.model import MobileR2LModel
from mobiler2l_ns.student.network import MobileR2LNetwork, Outputs
from mobiler2l_ns.student.viewing_range import ViewingRange, viewing_range

CONSTANTS = "controller_constants.js"
LENS_BUDGET = 10_000_000  # bytes of ML assets that one Lens may have
_BYTES_PER_NUMBER = 2  # the importer stores float16


def snap_network_name(model: MobileR2LModel, scene: str) -> str:
    """Name of the network's file: the scene's name and the activation."""
    return f"{safe_name(scene)}_Snap{'GELU' if model.network.config.activation == 'gelu' else 'ReLU'}.onnx"


def safe_name(scene: str) -> str:
    """A scene's name for a file name: one - replaces all characters but letters, digits, - and _; it is not empty."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", scene).strip("-") or "scene"


def write_snap_files(model: MobileR2LModel, folder: Path, scene: str, outputs: Outputs = "rgb") -> None:
    """Writes Sampler.onnx, Embedder.onnx, the network, intrinsics.json and controller_constants.js.

    Args:
        model: A trained student on the CPU.
        folder: An existing folder.
        scene: Name of the scene.
        outputs: Outputs of the network; Snap's template uses the colours alone.

    Raises:
        OSError: The folder cannot be written.
    """
    network = trace_network(model, with_relu(model.network), outputs)
    if model.network.config.activation == "gelu":
        rename_operators(network, "Relu", "GeluSnap")
    graphs = {**trace_front(model), snap_network_name(model, scene): network}
    write_graphs(graphs, intrinsics(model), folder)
    (folder / CONSTANTS).write_text(controller_constants(model))


def with_relu(network: MobileR2LNetwork) -> MobileR2LNetwork:
    """A copy of the network with ReLU in place of GELU."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GELU):
                setattr(module, name, nn.ReLU())
    return network


def controller_constants(model: MobileR2LModel) -> str:
    """JavaScript for the template's MLController.js: the constants at its top, and the limits of its angles.

    The template's orbit is c2w = MAT_CONST * turn(THETA) * tilt(PHI) * shift(RADIUS), with the camera at elevation
    -PHI. The template's MAT_CONST is a rotation. Ours is a rotation and a translation, so that the orbit may have any
    centre and any up direction.
    """
    camera, orbit = intrinsics(model), viewing_range(model)
    azimuth, elevation, radius = orbit.middle()
    theta = [None, None] if orbit.azimuth is None else sorted(_theta(angle) for angle in orbit.azimuth)
    phi = sorted(-math.degrees(angle) for angle in orbit.elevation)
    return f"""\
// Constants of this student for MLController.js. Paste them over the template's lines from "const H" to the end of
// "const MAT_CONST", both included.
const H = {camera.H};
const W = {camera.W};
const NSAMPLE = {camera.n_sample};
const RADIUS = {_number(radius)};  // from CENTRE to the camera, world units; trained from {_span(orbit.radius)}

const NEAR = {_number(camera.near)};
const FAR = {_number(camera.far)};
const CAM_ANGLE = {_number(camera.cam_angle)};  // horizontal field of view, radians
const focal = {_number(camera.focal)};  // in cells of the ray grid: .5 * W / Math.tan(.5 * CAM_ANGLE)

// Centre of the orbit, world units. The last column of MAT_CONST adds it to every camera position.
const CENTRE = [{_numbers(orbit.centre)}];
{_axes(orbit)}
// The line "var THETA" becomes:  var THETA = THETA_START;
// The line "var PHI" becomes:    var PHI = PHI_START;
const THETA_START = {_number(_theta(azimuth))};  // degrees
const PHI_START = {_number(-math.degrees(elevation))};  // degrees; the camera's elevation is -PHI

// The line "PHI = Math.max(...)", after each touch, becomes these two:
//     THETA = Math.max(THETA_MIN, Math.min(THETA, THETA_MAX));
//     PHI = Math.max(PHI_MIN, Math.min(PHI, PHI_MAX));
const THETA_MIN = {_number(theta[0], "-Infinity")};
const THETA_MAX = {_number(theta[1], "Infinity")};
const PHI_MIN = {_number(phi[0])};
const PHI_MAX = {_number(phi[1])};

// Not a line of the script, but a setting of the network's ML component: the scale of its output as a texture.
const OUTPUT_SCALE = {camera.output_scale};
"""


def _axes(orbit: ViewingRange) -> str:
    """MAT_CONST: from camera axes (right, up, back) at THETA 0 and PHI 0 to the student's world."""
    north = torch.linalg.cross(orbit.up, orbit.east)
    columns = torch.stack([-orbit.east, orbit.up, north]).T.tolist()
    rows = "".join(f"    {_numbers(row)}, CENTRE[{axis}],\n" for axis, row in enumerate(columns))
    upright = bool(torch.allclose(orbit.up, torch.tensor([0.0, 0.0, 1.0]), atol=0.02))  # a degree
    remark = "" if upright else f"// Up in this world is not +z but ({_numbers(orbit.up)}). MAT_CONST has it as up.\n"
    return f"{remark}const MAT_CONST = new Float32Array([\n{rows}    0, 0, 0, 1,\n]);\n"


def _theta(azimuth: float) -> float:
    """The template's THETA in degrees. THETA increases from north to east, an azimuth from east to north."""
    return 90 - math.degrees(azimuth)


def _number(value: Optional[float], missing: str = "") -> str:
    return missing if value is None else f"{value + 0.0:.7g}"


def _numbers(values: Union[Float[Tensor, "N"], Iterable[float]]) -> str:
    return ", ".join(_number(float(value)) for value in values)


def _span(bounds: Tuple[float, float]) -> str:
    return " to ".join(f"{value:.4g}" for value in bounds)


def lens_bytes(files: Union[Path, Iterable[Path]]) -> int:
    """Bytes that files take in a Lens: two for each of their numbers.

    This is an upper bound: the importer reduces Snap's own Sampler from 1.52 MB to 29 kB.

    Args:
        files: ONNX files, or a folder of them.
    """
    import onnx

    paths = sorted(files.glob("*.onnx")) if isinstance(files, Path) else files
    tensors = [tensor for path in paths for tensor in onnx.load(str(path)).graph.initializer]
    return _BYTES_PER_NUMBER * sum(math.prod(tensor.dims) for tensor in tensors)


def check_budget(size: int) -> Optional[str]:
    """A warning if files of this size (of lens_bytes) are too large for a Lens, or None."""
    if size <= LENS_BUDGET:
        return None
    return (
        f"The files take {size / 1e6:.1f} MB in a Lens, which may hold {LENS_BUDGET / 1e6:.0f} MB: train with a "
        f"smaller --pipeline.model.network.width (about {math.sqrt(LENS_BUDGET / size):.0%} of the present one fits) "
        "or a smaller --pipeline.model.network.depth."
    )
