"""The renderer of exported files: without torch, with the files that a method needs, and its errors.

All exports that this project writes are taken, and what is damaged, swapped or foreign is refused in one sentence.
"""

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from builders import KINDS, STUDENT_CAMERA, make_student
from export_builders import some_poses, write_both
from onnx import TensorProto, helper, numpy_helper

from mobiler2l_ns.export.onnx_files import write_onnx_files
from mobiler2l_ns.export.onnx_graph import set_metadata
from mobiler2l_ns.runtime import Renderer

FILES = ("Sampler.onnx", "Embedder.onnx", "MobileR2L.onnx", "pipeline.onnx")
MISSING = object()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An exported student; read only."""
    return write_both(make_student(), tmp_path_factory.mktemp("exported"))


@pytest.fixture
def folder(exported, tmp_path):
    """An exported student."""
    return shutil.copytree(exported, tmp_path / "export")


def test_renderer_needs_neither_torch_nor_nerfstudio(folder):
    script = (
        "import sys, numpy as np; from mobiler2l_ns.runtime import Renderer;"
        f"image = Renderer({str(folder)!r}).render(np.eye(4)); assert image.shape == (48, 72, 3);"
        "assert not {'torch', 'nerfstudio'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_wrong_poses_and_layouts(folder):
    renderer = Renderer(folder)
    with pytest.raises(ValueError, match="NaN"):
        renderer.render(np.full((3, 4), np.nan))
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        renderer.render(np.eye(3))
    with pytest.raises(ValueError, match="layout"):
        renderer.render_chain(np.eye(4), "nhwc")


def test_a_method_needs_its_own_files_only(folder):
    for name in ("Sampler.onnx", "Embedder.onnx", "MobileR2L.onnx"):
        (folder / "onnx" / name).unlink()
    renderer = Renderer(folder)
    assert renderer.render(some_poses()[0]).shape == (48, 72, 3)
    with pytest.raises(FileNotFoundError, match="onnx has no Sampler.onnx: pass a folder that ns-export-mobiler2l"):
        renderer.render_chain(some_poses()[0])
    with pytest.raises(FileNotFoundError, match="has no Embedder.onnx"):
        renderer.render_points(np.zeros((1, 1, 54, 24), np.float32))


def test_three_files_render_without_the_one_graph(folder):
    (folder / "onnx" / "pipeline.onnx").unlink()
    renderer = Renderer(folder / "onnx")
    assert renderer.render_chain(some_poses()[0]).shape == (48, 72, 3)
    with pytest.raises(FileNotFoundError, match="has no pipeline.onnx"):
        renderer.render(some_poses()[0])


def test_the_camera_is_needed_at_once(folder):
    (folder / "onnx" / "intrinsics.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no intrinsics.json"):
        Renderer(folder)


# -- files of strangers -----------------------------------------------------------------------------------------------


def refusal(call, *arguments) -> str:
    """The message of a ValueError, which is one sentence with a cure."""
    with pytest.raises(ValueError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    assert message.endswith(": export the student again with ns-export-mobiler2l")
    return message


@pytest.mark.parametrize(
    ("kind", "outputs", "precision", "opset"),
    [("surface", "rgb", "fp16", 20), ("surface_unbounded", "rgba", "int8", 13), ("r2l", "rgbad", "fp32", 11)],
)
def test_every_kind_of_export_is_taken(tmp_path, kind, outputs, precision, opset):
    """tests/test_onnx_files.py has all kinds of students in fp32."""
    write_onnx_files(make_student(**KINDS[kind], outputs="rgbad"), tmp_path, outputs, precision, opset)
    renderer = Renderer(tmp_path)
    images = renderer.render_all(np.stack(some_poses()[:2]))
    assert [image.shape for image in images.values()] == [(2, 48, 72, 3), *[(2, 48, 72, 1)] * (len(outputs) - 3)]
    assert renderer.render_chain(some_poses()[0]).shape == (48, 72, 3)


def test_files_for_lens_studio_are_taken(folder):
    renderer = Renderer(folder / "snap")
    assert all(renderer.session(name) for name in FILES[:2])


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"H": "6"}, "H is '6'"),
        ({"W": 9.0}, "W is 9.0"),
        ({"upscale": True}, "upscale is True"),
        ({"image_width": -72}, "image_width is -72"),
        ({"image_height": 0}, "image_height is 0"),
        ({"image_height": 16385}, "image_height is 16385"),
        ({"n_sample": 10**99}, f"n_sample is 1{'0' * 39}"),
        ({"multires": None}, "multires is None"),
        ({"surface_octaves": 0}, "surface_octaves is 0"),
        ({"focal": math.nan}, "focal is nan"),
        ({"far": math.inf}, "far is inf"),
        ({"near": -2.0}, "near is -2.0"),
        ({"near": 5.0}, "near is not less than far"),
        ({"radius": "3.5\n"}, "radius is '3.5\\n'"),
        ({"image_focal": MISSING}, "image_focal is missing"),
        ({"cam_angle": [1]}, "cam_angle is [1]"),
        ({"pose": 3}, "pose is 3"),
        ({"contraction_centre": [0.0, 0.0]}, "contraction_centre is [0.0, 0.0]"),
        ({"contraction_centre": [0.0, math.nan, 0.0]}, "contraction_centre is [0.0, nan, 0.0]"),
        ({"contraction_radius": 0}, "contraction_radius is 0"),
    ],
)
def test_damaged_numbers_are_named(folder, changes, fault):
    path = folder / "onnx" / "intrinsics.json"
    camera = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in camera.items() if value is not MISSING}))
    assert refusal(Renderer, folder).startswith(f"{path} is damaged ({fault})")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"3", b"\xff\xfe\x00", b"[" * 100_000])
def test_damaged_text_is_named(folder, content):
    path = folder / "onnx" / "intrinsics.json"
    path.write_bytes(content)
    assert refusal(Renderer, folder).startswith(f"{path} is damaged (")


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """The files of a student with another ray grid, another image and another far plane."""
    folder = tmp_path_factory.mktemp("larger")
    write_onnx_files(make_student({**STUDENT_CAMERA, "height": 56, "far": 6.0}), folder)
    return folder


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("metadata", [True, False])
def test_files_of_another_student_are_refused(folder, larger, name, metadata):
    graph = onnx.load(larger / name)
    if not metadata:
        del graph.metadata_props[:]
    onnx.save(graph, folder / "onnx" / name)
    message = refusal(Renderer(folder).session, name)
    assert message.startswith(f"{folder / 'onnx' / name} does not fit intrinsics.json (")
    assert ", not a tensor(float) of [" in message


@pytest.mark.parametrize(("key", "value"), [("far", 6.0), ("far", "x"), ("surface_octaves", 8), ("near", None)])
def test_a_student_of_the_same_size_is_told_by_its_metadata(folder, key, value):
    camera = {**json.loads((folder / "onnx" / "intrinsics.json").read_text()), key: value}
    path = folder / "onnx" / "pipeline.onnx"
    graph = onnx.load(path)
    set_metadata(graph, {name: value for name, value in camera.items() if value is not None})
    onnx.save(graph, path)
    found = None if value is None else str(value)
    assert f"does not fit intrinsics.json ({key} is {found!r}, not " in refusal(Renderer(folder).render, np.eye(4))


def write_graph(path, inputs, outputs):
    """A file with these inputs and outputs, each a name with an element type and a shape; outputs are zeros."""
    values = [
        [helper.make_tensor_value_info(name, *value) for name, value in side.items()] for side in (inputs, outputs)
    ]
    nodes = []
    for name, (kind, shape) in outputs.items():
        sizes = [size if isinstance(size, int) else 1 for size in shape]
        zeros = np.zeros(sizes, helper.tensor_dtype_to_np_dtype(kind))
        nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(zeros)))
    graph = helper.make_graph(nodes, "graph", *values)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


FLOAT, DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE
RGB, ALPHA = (FLOAT, [1, 3, 48, 72]), (FLOAT, [1, 1, 48, 72])


@pytest.mark.parametrize("batch", ["batch", "N", None, 1])
def test_any_number_of_poses_may_be_declared(folder, batch):
    write_graph(folder / "onnx" / "pipeline.onnx", {"c2w": (FLOAT, [batch, 3, 4])}, {"rgb": RGB})
    assert Renderer(folder).render(np.eye(4)).max() == 0


@pytest.mark.parametrize(
    ("inputs", "outputs", "fault"),
    [
        ({"pose": (FLOAT, [1, 3, 4])}, {"rgb": RGB}, "its inputs are ['pose'], not ['c2w']"),
        ({"c2w": (FLOAT, [1, 3, 4]), "time": (FLOAT, [1])}, {"rgb": RGB}, "its inputs are ['c2w', 'time'], not"),
        (
            {"c2w": (FLOAT, [3, 4])},
            {"rgb": RGB},
            "c2w is a tensor(float) of [3, 4], not a tensor(float) of [any",
        ),
        ({"c2w": (FLOAT, [1, 4, 4])}, {"rgb": RGB}, "c2w is a tensor(float) of [1, 4, 4]"),
        ({"c2w": (FLOAT, [1, "rows", 4])}, {"rgb": RGB}, "c2w is a tensor(float) of [1, 'rows', 4]"),
        ({"c2w": (DOUBLE, [1, 3, 4])}, {"rgb": RGB}, "c2w is a tensor(double) of"),
        ({"c2w": (FLOAT, [1, 3, 4])}, {"image": RGB}, "its outputs are ['image'], not ['rgb', 'alpha', 'depth']"),
        ({"c2w": (FLOAT, [1, 3, 4])}, {"alpha": ALPHA, "rgb": RGB}, "its outputs are ['alpha', 'rgb']"),
        ({"c2w": (FLOAT, [1, 3, 4])}, {"rgb": RGB, "alpha": RGB}, "alpha is a tensor(float) of [1, 3, 48, 72]"),
        ({"c2w": (FLOAT, [1, 3, 4])}, {"rgb": (FLOAT, [1, 3, 48, 720])}, "rgb is a tensor(float) of [1, 3, 48, 720]"),
        ({"c2w": (FLOAT, [1, 3, 4])}, {"rgb": (DOUBLE, RGB[1])}, "rgb is a tensor(double)"),
    ],
)
def test_another_contract_is_refused(folder, inputs, outputs, fault):
    write_graph(folder / "onnx" / "pipeline.onnx", inputs, outputs)
    assert fault in refusal(Renderer(folder).render, np.eye(4))


@pytest.mark.parametrize("location", ["../../outside.bin", "{}/outside.bin", "inside.bin"])
def test_numbers_in_other_files_are_not_read(folder, location):
    """Some versions of onnxruntime would read any file of the machine."""
    path = folder / "onnx" / "pipeline.onnx"
    graph = onnx.load(path)
    tensor = graph.graph.initializer[0]
    for target in (folder.parent / "outside.bin", folder / "onnx" / "inside.bin"):
        target.write_bytes(numpy_helper.to_array(tensor).tobytes())
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location.format(folder.parent))
    path.write_bytes(graph.SerializeToString())
    message = refusal(Renderer(folder).render, np.eye(4))
    assert message.startswith(f"{path} takes numbers from another file")


@pytest.mark.parametrize("size", [0, 7, 0.5])
def test_an_incomplete_file_is_named(folder, size):
    path = folder / "onnx" / "pipeline.onnx"
    content = path.read_bytes()
    path.write_bytes(content[: int(size * len(content)) if size < 1 else size])
    assert refusal(Renderer(folder).render, np.eye(4)).startswith(f"{path} cannot be loaded (")
