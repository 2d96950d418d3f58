"""The renderer of exported files: without torch, with the files that a method needs, and its errors."""

import subprocess
import sys

import numpy as np
import pytest
from builders import make_student
from export_builders import some_poses, write_both

from mobiler2l_ns.runtime import Renderer


@pytest.fixture
def folder(tmp_path):
    """An exported student."""
    return write_both(make_student(), tmp_path)


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
