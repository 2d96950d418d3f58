"""The script that renders an animation: its poses stay within the range, and it writes what it rendered."""

import json
import math
import sys

import make_animation as script
import numpy as np
import pytest
from PIL import Image

RANGE = {
    "centre": [0.0, 0.0, 0.1], "up": [0.0, 0.0, 1.0], "east": [1.0, 0.0, 0.0],
    "radius": [3.9, 4.1], "elevation": [0.2, 1.2], "azimuth": None,
}  # fmt: skip


class StubRenderer:
    """Renders a square whose colour is the camera's direction, on white."""

    intrinsics = {"image_height": 48}

    def __init__(self, folder):
        self.folder = folder

    def session(self, name):
        assert name == "pipeline.onnx"

    def render(self, c2w):
        image = np.ones((48, 48, 3), np.float32)
        image[16:40, 12:36] = 0.4 + 0.4 * c2w[:, 2]
        return image


@pytest.fixture
def export(tmp_path, monkeypatch):
    """A folder with the files that the script looks for."""
    for folder in ("onnx", "web"):
        (tmp_path / "export" / folder).mkdir(parents=True)
    (tmp_path / "export" / "onnx" / "pipeline.onnx").write_bytes(bytes(1_500_000))
    (tmp_path / "export" / "web" / "scene.json").write_text(json.dumps({"range": RANGE}))
    monkeypatch.setattr(script, "Renderer", StubRenderer)
    return tmp_path / "export"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["make_animation.py", *map(str, arguments)])
    return script.main()


@pytest.mark.parametrize("azimuth", [None, [0.5, 1.5]])
def test_poses_are_one_turn_within_the_range(tmp_path, azimuth):
    (tmp_path / "scene.json").write_text(json.dumps({"range": {**RANGE, "azimuth": azimuth}}))
    poses = np.stack(script.turn(script.read_range(tmp_path / "scene.json"), 12))
    away = poses[:, :, 3] - [0, 0, 0.1]
    radius = np.linalg.norm(away, axis=1)
    np.testing.assert_allclose(radius, 4.0, rtol=1e-5)
    np.testing.assert_allclose(poses[:, :, 2], away / radius[:, None], atol=1e-5)
    elevation, angle = np.arcsin(away[:, 2] / radius), np.unwrap(np.arctan2(away[:, 1], away[:, 0]))
    assert 0.2 < elevation.min() < elevation.max() < 1.2
    if azimuth is None:
        np.testing.assert_allclose(np.diff(angle), 2 * math.pi / 12, rtol=1e-4)
    else:
        assert angle.min() == pytest.approx(0.5, abs=1e-4) and angle.max() == pytest.approx(1.5, abs=1e-4)


@pytest.mark.parametrize("suffix", ["webp", "gif"])
def test_an_animation_repeats_its_views(export, tmp_path, monkeypatch, suffix):
    output = tmp_path / "new" / f"turning.{suffix}"
    assert run(monkeypatch, "--export", export, "--output", output, "--num-views", 5, "--seconds", 1) == 0
    with Image.open(output) as animation:
        # The square of 24 pixels with a margin of 6; the caption is below.
        assert (animation.n_frames, animation.size) == (5, (36, 36 + script.CAPTION_HEIGHT))
        assert animation.info["loop"] == 0
        seen = []
        for k in range(5):
            animation.seek(k)
            seen.append(animation.convert("RGB").getpixel((18, 18)))
    assert len(set(seen)) == 5


def test_the_original_is_beside_the_student(export, tmp_path, monkeypatch):
    output = tmp_path / "turning.webp"
    assert run(monkeypatch, "--export", export, "--output", output, "--num-views", 2, "--original") == 0
    with Image.open(output) as animation:
        width, _ = animation.size
        assert width > 2 * 36
        left = np.asarray(animation.convert("RGB")).astype(int)[: -script.CAPTION_HEIGHT, : width // 2]
    # The island is as wide as its panel, and more colourful than the square.
    assert (left.min(axis=-1) < 200).any(axis=0).mean() > 0.6 and len(np.unique(left.reshape(-1, 3) // 32, axis=0)) > 30


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", *(json.dumps({"range": {**RANGE, **change}}) for change in (
        {"up": [0, 1]}, {"up": "z"}, {"centre": [0, 0, float("nan")]}, {"east": [10**99, 0, 0]}, {"radius": None},
        {"radius": [3]}, {"elevation": [0, "up"]}, {"azimuth": {}},
    ))],
)  # fmt: skip
def test_a_damaged_scene_is_named(export, tmp_path, monkeypatch, content):
    path = export / "web" / "scene.json"
    path.write_text(content)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "--export", export, "--output", tmp_path / "x.webp")
    assert stop.value.code == f"mobiler2l: {path} is damaged: export the student again with ns-export-mobiler2l."


def test_a_damaged_export_is_named(export, tmp_path, monkeypatch):
    def fail(renderer, name):
        raise ValueError(f"{name} cannot be loaded: export again")

    monkeypatch.setattr(StubRenderer, "session", fail)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "--export", export, "--output", tmp_path / "x.webp")
    assert stop.value.code == "mobiler2l: pipeline.onnx cannot be loaded: export again."


def test_mistakes_are_one_sentence(export, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "--export", tmp_path, "--output", tmp_path / "x.webp") == 1
    assert "no export with the targets" in capsys.readouterr().err
    assert run(monkeypatch, "--export", export, "--output", tmp_path / "x.mp4") == 1
    assert "another suffix" in capsys.readouterr().err
