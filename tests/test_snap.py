"""The files for Lens Studio: operators by backend, the controller's constants, names, sizes and the guide's table."""

import math
import re
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from builders import KINDS, make_student, orbit_cameras
from system_packages import needs

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export import snap_operators
from mobiler2l_ns.export.onnx_graph import trace
from mobiler2l_ns.export.snap_files import (
    check_budget,
    controller_constants,
    lens_bytes,
    safe_name,
    snap_network_name,
    write_snap_files,
)
from mobiler2l_ns.student.coverage import NUM_VIEWPOINTS
from mobiler2l_ns.student.network import MobileR2LNetwork, NetworkConfig, count_parameters
from mobiler2l_ns.student.viewing_range import fit_range, viewing_range

GUIDE = Path(__file__).parents[1] / "docs" / "lens-studio.md"
NOT_ON_NPU = {"Sampler.onnx": ["Mul", "Slice", "Transpose"], "Embedder.onnx": ["Add", "Cos", "Mul", "Sin"]}
SURFACE_NOT_ON_NPU = ["Add", "Concat", "Cos", "Mul", "Reshape", "Sin", "Transpose"]


@pytest.fixture(scope="module", params=KINDS)
def lens(request, tmp_path_factory):
    """A student of each kind and the folder it was written to."""
    model = make_student(**KINDS[request.param])
    folder = tmp_path_factory.mktemp(request.param)
    write_snap_files(model, folder, "my lens")
    return model, folder


# -- operators ------------------------------------------------------------------------------------------------------


def test_every_kind_of_student_is_imported(lens):
    model, folder = lens
    network = snap_network_name(model, "my lens")
    gelu = model.network.config.activation == "gelu"
    assert network == f"my-lens_Snap{'GELU' if gelu else 'ReLU'}.onnx"
    names = {"Sampler.onnx", "Embedder.onnx", network}
    assert {path.name for path in folder.iterdir()} == names | {"intrinsics.json", "controller_constants.js"}
    for name in names:
        snap_operators.check_snap_operators(folder / name)


def test_backends_of_each_file(lens):
    """The NPU lacks sines and permutations, Android GPUs lack GELU. All backends run the other operators."""
    model, folder = lens
    everywhere = {"CPU": [], "iPhone GPU": [], "Android GPU": [], "iPhone NPU": []}
    for name, operators in NOT_ON_NPU.items():
        if model.sampler.unbounded and name == "Sampler.onnx":
            operators = ["Add", "Div", *operators]
        if model.config.surface_octaves and name == "Embedder.onnx":
            operators = SURFACE_NOT_ON_NPU
        assert snap_operators.backends(folder / name) == {**everywhere, "iPhone NPU": operators}
    gelu = ["GeluSnap"] if model.network.config.activation == "gelu" else []
    network = folder / snap_network_name(model, "my lens")
    assert snap_operators.backends(network) == {**everywhere, "Android GPU": gelu}


def test_relu_of_the_surface_stays_relu(tmp_path):
    """GeluSnap replaces the network's activations alone. The Embedder was trained with ReLU."""
    write_snap_files(make_student(surface_octaves=8, refinements=1), tmp_path, "lens")
    types = [node.op_type for node in onnx.load(tmp_path / "Embedder.onnx").graph.node]
    assert types.count("Relu") == 6 and types.count("Softmax") == 1 and "GeluSnap" not in types


def test_alpha_and_depth_run_wherever_colours_do(tmp_path):
    """They have convolutions of their own. No output is sliced, which the NPU does not support."""
    model = make_student(outputs="rgbad")
    write_snap_files(model, tmp_path, "lens", "rgbad")
    network = tmp_path / "lens_SnapGELU.onnx"
    assert [output.name for output in onnx.load(network).graph.output] == ["output", "alpha", "depth01"]
    assert {name: operators for name, operators in snap_operators.backends(network).items() if operators} == {
        "Android GPU": ["GeluSnap"]
    }


class Custom(torch.nn.Module):
    """A function of inputs as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def write(path, module, *shapes):
    inputs = tuple(torch.rand(shape) for shape in shapes)
    onnx.save(trace(module, inputs, [f"x{index}" for index in range(len(inputs))], "y"), path)
    return path


@pytest.mark.parametrize(
    ("module", "shape", "complaint"),
    [
        (torch.nn.PixelShuffle(2), (1, 4, 2, 2), "uses DepthToSpace, which"),
        (torch.nn.GELU(), (1, 4, 2, 2), "uses .*Erf"),
        (Custom(lambda x: x * x), (2, 2, 1, 1, 1), "more than four dimensions"),
        (torch.nn.Conv2d(4, 4, 1, groups=2), (1, 4, 2, 2), "group that SnapML does not"),
        (torch.nn.Conv2d(4, 4, 1, stride=(1, 2)), (1, 4, 2, 2), "stride"),
        (torch.nn.Conv2d(4, 4, 3, dilation=(1, 2)), (1, 4, 8, 8), "dilation"),
        (torch.nn.Conv2d(4, 4, 1, padding=2), (1, 4, 2, 2), "padding"),
        (torch.nn.ConvTranspose2d(4, 4, 3, dilation=2), (1, 4, 2, 2), "dilation"),
        (torch.nn.ConvTranspose2d(4, 4, (2, 3)), (1, 4, 2, 2), "kernel"),
        (torch.nn.ConvTranspose2d(4, 4, 2, groups=2), (1, 4, 2, 2), "group"),
        (Custom(lambda x: x.softmax(1)), (1, 4, 2, 2), "not along the channels"),
        (Custom(lambda x: x.softmax(2)), (2, 4, 3), "not along the channels"),
    ],
)
def test_what_no_backend_runs_is_refused(tmp_path, module, shape, complaint):
    with pytest.raises(UserError, match=f"x.onnx.*{complaint}"):
        snap_operators.check_snap_operators(write(tmp_path / "x.onnx", module, shape))


@pytest.mark.parametrize(
    ("module", "missing"),
    [
        (torch.nn.Conv2d(4, 4, 3, padding=1, stride=2, dilation=2), []),
        (torch.nn.Conv2d(4, 4, 3, padding=1, groups=4), ["CPU", "iPhone GPU", "iPhone NPU"]),
        (torch.nn.ConvTranspose2d(4, 4, 4, 2, 1, groups=4), []),
        (torch.nn.ConvTranspose2d(4, 4, 3, 3), []),
        (Custom(lambda x: x + x), []),
        (Custom(lambda x: x + torch.ones(1, 4, 1, 1)), ["iPhone NPU"]),
        (Custom(torch.abs), []),
        (Custom(lambda x: x / torch.ones(1, 4, 1, 1)), ["iPhone NPU"]),
        (Custom(lambda x: x / x.sum(1, keepdim=True)), ["iPhone NPU"]),
        (Custom(lambda x: torch.cat([x, x], 1)), []),
        (Custom(lambda x: torch.cat([x, x], -3)), []),
        (Custom(lambda x: torch.cat([x, x], 2)), ["iPhone NPU"]),
        (Custom(torch.sin), ["iPhone NPU"]),
        (Custom(lambda x: x.reshape(1, 2, 16, 8)), ["iPhone NPU"]),
        (Custom(lambda x: x.permute(0, 2, 3, 1)), ["iPhone NPU"]),
        (Custom(lambda x: x[:, 1:]), ["iPhone NPU"]),
        (Custom(lambda x: x.sum(1)), ["iPhone NPU"]),
        (Custom(lambda x: x.reshape(-1, 8).softmax(1).reshape(1, 4, 8, 8)), ["iPhone NPU"]),  # NPU: the reshapes
    ],
)
def test_conditions(tmp_path, module, missing):
    path = write(tmp_path / "x.onnx", module, (1, 4, 8, 8))
    snap_operators.check_snap_operators(path)
    assert [backend for backend, operators in snap_operators.backends(path).items() if operators] == missing


@pytest.mark.parametrize(("shape", "refused"), [((1, 3, 1, 1), False), ((1, 1, 4, 4), False), ((1, 1, 1, 4), True)])
def test_broadcasting_over_channels_and_pixels_at_once_is_refused(tmp_path, shape, refused):
    path = write(tmp_path / "x.onnx", Custom(lambda x, y: x * y), (1, 3, 4, 4), shape)
    if refused:
        with pytest.raises(UserError, match="broadcasts"):
            snap_operators.check_snap_operators(path)
    else:
        snap_operators.check_snap_operators(path)


def test_the_printed_table_counts_nodes(lens):
    from rich.console import Console

    _, folder = lens
    console = Console(width=120, record=True)
    with console.capture() as captured:
        console.print(snap_operators.backend_table(sorted(folder.glob("*.onnx"))))
    rows = [re.findall(r"[^│\s][^│]*[^│\s]|[^│\s]", line) for line in captured.get().splitlines()]
    octaves = lens[0].config.surface_octaves
    if octaves:  # the codes are multiplied by constants and the two blocks are sums of two tensors
        refined = lens[0].config.surface_refinements  # each has 6 octaves, a sum of two tensors, and 8 convolutions
        codes = 4 + 4 * refined + sum(octave % 3 != 0 for octave in range(octaves))
        sums = 2 + refined
        assert ["Embedder.onnx", "Add", str(codes + sums), "yes", "yes", "yes", f"{sums} of {codes + sums}"] in rows
        assert ["Softmax", "1", "yes", "yes", "yes", "yes"] in rows
        assert ["Conv", str(8 + 8 * refined), *["yes"] * 4] in rows
    else:
        assert ["Embedder.onnx", "Add", "4", "yes", "yes", "yes", "no"] in rows
        assert ["Mul", "17", "yes", "yes", "yes", "8 of 17"] in rows
    if lens[0].sampler.unbounded:
        assert ["Div", "1", "yes", "yes", "yes", "no"] in rows


def test_the_guide_has_this_table():
    table = re.search(r"^\| operator .*?\n(?!\|)", GUIDE.read_text() + "\n", re.MULTILINE | re.DOTALL).group()
    assert table == snap_operators.markdown_table()


# -- the controller's constants -------------------------------------------------------------------------------------


def with_viewpoints(c2w):
    """A student that was trained with these cameras."""
    model = make_student()
    model.coverage.viewpoints.copy_(c2w[torch.linspace(0, len(c2w) - 1, NUM_VIEWPOINTS).round().long()])
    return model


def read_constants(model):
    """The JavaScript constants as Python numbers."""
    text = controller_constants(model)
    numbers = {
        name: float(value.replace("Infinity", "inf"))
        for name, value in re.findall(r"const (\w+) = (-?[\w.+-]+);", text)
    }
    numbers["CENTRE"] = [float(x) for x in re.search(r"CENTRE = \[(.*)\];", text).group(1).split(",")]
    rows = re.search(r"Float32Array\(\[(.*?),\n\]\);", text, re.DOTALL).group(1)
    for axis, value in enumerate(numbers["CENTRE"]):
        rows = rows.replace(f"CENTRE[{axis}]", str(value))
    numbers["MAT_CONST"] = np.array([float(x) for x in rows.split(",")]).reshape(4, 4)
    return numbers


def template_pose(constants, theta, phi):
    """The template's pose for angles of its orbit (degrees): MAT_CONST * turn * tilt * shift."""
    theta, phi = math.radians(theta), math.radians(phi)
    shift, tilt, turn = np.eye(4), np.eye(4), np.eye(4)
    shift[2, 3] = constants["RADIUS"]
    tilt[1:3, 1:3] = [[math.cos(phi), -math.sin(phi)], [math.sin(phi), math.cos(phi)]]
    turn[np.ix_([0, 2], [0, 2])] = [[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]]
    return torch.tensor(constants["MAT_CONST"] @ turn @ tilt @ shift, dtype=torch.float32)[:3]


def test_constants_of_a_student_without_viewpoints():
    """An orbit around the origin at (near + far) / 2: the template's own matrix, 48 x 72 pixels in cells of 8."""
    constants = read_constants(make_student())
    expected = {"H": 6, "W": 9, "NSAMPLE": 8, "RADIUS": 3.5, "NEAR": 2, "FAR": 5, "OUTPUT_SCALE": 255, "focal": 70 / 8}
    assert {name: constants[name] for name in expected} == expected
    assert 0.5 * 9 / math.tan(0.5 * constants["CAM_ANGLE"]) == pytest.approx(constants["focal"], rel=1e-6)
    assert constants["CENTRE"] == [0, 0, 0]
    np.testing.assert_array_equal(constants["MAT_CONST"], [[-1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    assert (constants["THETA_MIN"], constants["THETA_MAX"]) == (-math.inf, math.inf)
    assert (constants["PHI_MIN"], constants["PHI_MAX"]) == pytest.approx((-60, 60))
    assert "not +z" not in controller_constants(make_student())


def test_constants_of_a_known_orbit():
    """A full circle around a centre, 20 to 60 degrees up, at distances of 2 to 3."""
    constants = read_constants(with_viewpoints(orbit_cameras((0.5, -1.0, 2.0), azimuth=(0, 315))))
    assert constants["CENTRE"] == pytest.approx([0.5, -1, 2], abs=1e-4)
    assert constants["RADIUS"] == pytest.approx(2.5, abs=1e-4)
    assert [constants[name] for name in ("PHI_MIN", "PHI_START", "PHI_MAX")] == pytest.approx([-60, -40, -20], abs=1e-2)
    assert (constants["THETA_MIN"], constants["THETA_MAX"]) == (-math.inf, math.inf)
    position = template_pose(constants, constants["THETA_START"], -30)[:, 3] - torch.tensor([0.5, -1, 2])
    assert position[2] == pytest.approx(2.5 * math.sin(math.radians(30)), abs=1e-3)


def test_constants_of_a_third_of_an_orbit():
    """In the plane of the centre, from azimuth 30 to 150: the first view is from azimuth 90, along y."""
    constants = read_constants(with_viewpoints(orbit_cameras(elevation=(0, 0))))
    assert [constants[name] for name in ("PHI_MIN", "PHI_MAX")] == pytest.approx([0, 0], abs=1e-2)
    thetas = [constants[name] for name in ("THETA_MIN", "THETA_START", "THETA_MAX")]
    assert np.diff(thetas) == pytest.approx([60, 60], abs=1e-2)
    for theta, azimuth in zip(thetas, (150, 90, 30)):
        place = 2.5 * torch.tensor([math.cos(math.radians(azimuth)), math.sin(math.radians(azimuth)), 0])
        torch.testing.assert_close(template_pose(constants, theta, 0)[:, 3], place, atol=1e-3, rtol=0)


def test_a_tilted_world_is_turned_upright():
    model = with_viewpoints(orbit_cameras(up=(0.0, 1.0, 1.0)))
    up = viewing_range(model).up
    assert up.tolist() == pytest.approx([0, 0.5**0.5, 0.5**0.5], abs=2e-2)
    assert f"not +z but ({', '.join(f'{float(x) + 0.0:.7g}' for x in up)})" in controller_constants(model)


@pytest.mark.parametrize("centre", [(0.0, 0.0, 0.0), (0.5, -1.0, 2.0)])
@pytest.mark.parametrize("up", [(0.0, 0.0, 1.0), (0.3, -0.4, 1.0)])
def test_the_templates_orbit_stays_in_the_viewing_range(centre, up):
    """At every corner of the clamped angles the template's camera is a pose of the range, looking at its centre."""
    model = with_viewpoints(orbit_cameras(centre, up))
    constants, orbit = read_constants(model), viewing_range(model)
    for theta in (constants["THETA_MIN"], constants["THETA_START"], constants["THETA_MAX"]):
        for phi in (constants["PHI_MIN"], constants["PHI_START"], constants["PHI_MAX"]):
            pose = template_pose(constants, theta, phi)
            expected = orbit.pose(math.radians(90 - theta), math.radians(-phi), sum(orbit.radius) / 2)
            torch.testing.assert_close(pose, expected, atol=1e-4, rtol=0)
            here = fit_range(pose[None].expand(2, 3, 4), orbit.centre)
            assert orbit.radius[0] <= here.radius[0] <= orbit.radius[1]
            elevation = math.asin(float((pose[:, 3] - orbit.centre) @ orbit.up) / here.radius[0])
            assert orbit.elevation[0] - 1e-4 <= elevation <= orbit.elevation[1] + 1e-4
            assert orbit.azimuth[0] - 1e-4 <= math.radians(90 - theta) <= orbit.azimuth[1] + 1e-4


@needs("nodejs")
@pytest.mark.parametrize(
    "cameras", [None, orbit_cameras((0.5, -1.0, 2.0), (0.3, -0.4, 1.0))], ids=["none", "half orbit"]
)
def test_the_constants_are_javascript(tmp_path, cameras):
    model = make_student() if cameras is None else with_viewpoints(cameras)
    script = tmp_path / "constants.js"
    script.write_text(controller_constants(model))
    subprocess.run(["node", "--check", str(script)], check=True, timeout=60)
    script.write_text(controller_constants(model) + "console.log(Array.from(MAT_CONST).join(), THETA_MIN, focal);")
    printed = subprocess.run(["node", str(script)], check=True, timeout=60, capture_output=True, text=True).stdout
    matrix, theta_min, focal = printed.split()
    constants = read_constants(model)
    np.testing.assert_allclose([float(x) for x in matrix.split(",")], constants["MAT_CONST"].reshape(-1), atol=1e-6)
    assert float(theta_min.replace("Infinity", "inf")) == constants["THETA_MIN"] and float(focal) == constants["focal"]


# -- names and sizes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scene", "name"),
    [("lego", "lego"), ("my lens: 2/3", "my-lens-2-3"), ("../..", "scene"), ("", "scene"), ("été_1", "t-_1")],
)
def test_scene_names_are_file_names(scene, name):
    assert safe_name(scene) == name


def test_bytes_in_a_lens_are_two_a_number(lens):
    model, folder = lens
    network = folder / snap_network_name(model, "my lens")
    merged = sum(2 * m.num_features for m in model.network.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert lens_bytes([network]) == 2 * (count_parameters(model.network) - merged)
    assert lens_bytes(folder) > lens_bytes([network])
    assert check_budget(lens_bytes(folder)) is None


@pytest.mark.parametrize(("width", "megabytes"), [(256, None), (512, 32)])
def test_the_budget_of_a_lens(width, megabytes):
    """The published network fits; twice its width does not. A meta device makes shapes without numbers."""
    with torch.device("meta"):
        sentence = check_budget(2 * count_parameters(MobileR2LNetwork(312, NetworkConfig(width=width))))
    if megabytes is None:
        assert sentence is None
    else:
        assert f"take {megabytes}." in sentence and "hold 10 MB: train with a smaller" in sentence
        assert "network.width (about 56% of the present one" in sentence
