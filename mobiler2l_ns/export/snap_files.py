"""The student for Lens Studio: Sampler, Embedder and a network around the importer's own GELU.

Layout and names are those of Snap's Lens template. SnapML keeps tensors as (H, W, C) and knows few operators; what it
documents for each of its backends is in snap_operators.py.
"""

import copy
import math
import re
from pathlib import Path
from typing import Iterable, Optional, Union

import torch
from torch import nn

from mobiler2l_ns.export.onnx_files import intrinsics, trace_front, trace_network, write_graphs
from mobiler2l_ns.export.onnx_graph import rename_operators
from mobiler2l_ns.student.network import Outputs
from mobiler2l_ns.student.viewing_range import ViewingRange, viewing_range

CONSTANTS = "controller_constants.js"
LENS_BUDGET = 10_000_000  # bytes of ML assets that one Lens may hold
_BYTES_A_NUMBER = 2  # the importer stores float16


def snap_network_name(model, scene: str) -> str:
    """Name of the network's file: after the scene, and after the activation that the importer must know."""
    return f"{safe_name(scene)}_Snap{'GELU' if model.network.config.activation == 'gelu' else 'ReLU'}.onnx"


def safe_name(scene: str) -> str:
    """A scene's name as part of a file's: letters, digits, - and _ survive, everything else is one -; never empty."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", scene).strip("-") or "scene"


def write_snap_files(model, folder: Path, scene: str, outputs: Outputs = "rgb") -> None:
    """Writes Sampler.onnx, Embedder.onnx, the network, intrinsics.json and controller_constants.js.

    Args:
        model: A trained MobileR2LModel on the CPU.
        folder: An existing folder.
        scene: Name of the scene.
        outputs: What the network returns; Snap's template knows the colours.

    Raises:
        OSError: The folder cannot be written.
    """
    network = trace_network(model, with_relu(model.network), outputs)
    if model.network.config.activation == "gelu":
        rename_operators(network, "Relu", "GeluSnap")
    graphs = {**trace_front(model), snap_network_name(model, scene): network}
    write_graphs(graphs, intrinsics(model), folder)
    (folder / CONSTANTS).write_text(controller_constants(model))


def with_relu(network: nn.Module) -> nn.Module:
    """A copy of the network with ReLU for GELU."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GELU):
                setattr(module, name, nn.ReLU())
    return network


def controller_constants(model) -> str:
    """JavaScript for the template's MLController.js: the constants at its top, and below them where its angles go.

    The template's orbit is c2w = MAT_CONST * turn(THETA) * tilt(PHI) * shift(RADIUS), with the camera at elevation
    -PHI. Its MAT_CONST is a rotation; as ours also moves, the orbit may have any centre and any up.
    """
    facts, orbit = intrinsics(model), viewing_range(model)
    azimuth, elevation, radius = orbit.middle()
    theta = [None, None] if orbit.azimuth is None else sorted(_theta(angle) for angle in orbit.azimuth)
    phi = sorted(-math.degrees(angle) for angle in orbit.elevation)
    return f"""\
// Constants of this student for MLController.js. Paste them over the template's lines from "const H" to the end of
// "const MAT_CONST", both included.
const H = {facts["H"]};
const W = {facts["W"]};
const NSAMPLE = {facts["n_sample"]};
const RADIUS = {_number(radius)};  // from CENTRE to the camera, world units; trained from {_span(orbit.radius)}

const NEAR = {_number(facts["near"])};
const FAR = {_number(facts["far"])};
const CAM_ANGLE = {_number(facts["cam_angle"])};  // horizontal field of view, radians
const focal = {_number(facts["focal"])};  // in cells of the ray grid: .5 * W / Math.tan(.5 * CAM_ANGLE)

// What the camera goes around, world units. The last column of MAT_CONST adds it to every camera's place.
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

// No line of the script, but a setting of the network's ML component: the scale of its output as a texture.
const OUTPUT_SCALE = {facts["output_scale"]};
"""


def _axes(orbit: ViewingRange) -> str:
    """MAT_CONST: from the axes of the template's camera at THETA 0, PHI 0 (right, up, back) to the student's world."""
    north = torch.linalg.cross(orbit.up, orbit.east)
    columns = torch.stack([-orbit.east, orbit.up, north]).T.tolist()
    rows = "".join(f"    {_numbers(row)}, CENTRE[{axis}],\n" for axis, row in enumerate(columns))
    upright = bool(torch.allclose(orbit.up, torch.tensor([0.0, 0.0, 1.0]), atol=0.02))  # a degree
    remark = (
        "" if upright else f"// Up in this world is not +z but ({_numbers(orbit.up)}): MAT_CONST turns it upright.\n"
    )
    return f"{remark}const MAT_CONST = new Float32Array([\n{rows}    0, 0, 0, 1,\n]);\n"


def _theta(azimuth: float) -> float:
    """The template's THETA, degrees: it grows from north to east, an azimuth from east to north."""
    return 90 - math.degrees(azimuth)


def _number(value: Optional[float], missing: str = "") -> str:
    return missing if value is None else f"{value + 0.0:.7g}"


def _numbers(values) -> str:
    return ", ".join(_number(float(value)) for value in values)


def _span(bounds) -> str:
    return " to ".join(f"{value:.4g}" for value in bounds)


def lens_bytes(files: Union[Path, Iterable[Path]]) -> int:
    """Bytes that a Lens spends on files: two for each of their numbers.

    The importer may need fewer: of Snap's own Sampler, 1.52 MB, it keeps 29 kB.

    Args:
        files: ONNX files, or a folder of them.
    """
    import onnx

    files = sorted(files.glob("*.onnx")) if isinstance(files, Path) and files.is_dir() else files
    tensors = [tensor for path in files for tensor in onnx.load(str(path)).graph.initializer]
    return _BYTES_A_NUMBER * sum(math.prod(tensor.dims) for tensor in tensors)


def check_budget(size: int) -> Optional[str]:
    """A sentence of warning where a Lens has no room for so many bytes (of lens_bytes), or None."""
    if size <= LENS_BUDGET:
        return None
    return (
        f"The files take {size / 1e6:.1f} MB in a Lens, which may hold {LENS_BUDGET / 1e6:.0f}: train with a smaller "
        f"--pipeline.model.network.width (about {math.sqrt(LENS_BUDGET / size):.0%} of the present one fits) or a "
        "smaller --pipeline.model.network.depth."
    )
