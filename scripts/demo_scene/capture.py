"""Writes the demo scene as a capture in the NeRF-synthetic ("blender") format."""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from demo_scene.cameras import CAMERA_ANGLE_X, cameras
from demo_scene.island import diorama
from demo_scene.tracer import Scene, centre_depth, render

FORMAT = 1  # raised whenever the scene itself changes, so that an older capture is not taken for the present one
SPLITS = ("train", "val", "test")


def write_split(scene: Scene, folder: Path, split: str, settings: dict) -> None:
    """Renders one split into `folder`, with its transforms file; the test split also gets depth."""
    rng = np.random.default_rng([settings["seed"], SPLITS.index(split)])
    (folder / split).mkdir()
    frames = []
    shots = list(enumerate(cameras(settings[split], split == "train", rng)))
    for k, matrix in track(shots, description=f"{split:>5}"):
        name = f"{split}/r_{k:03d}"
        image = render(scene, matrix, settings["resolution"], settings["samples"], rng)
        Image.fromarray(image).save(folder / f"{name}.png")
        if split == "test":
            np.save(folder / f"{name}_depth.npy", centre_depth(scene, matrix, settings["resolution"]))
        frames.append({"file_path": f"./{name}", "transform_matrix": matrix.tolist()})
    transforms = {"camera_angle_x": CAMERA_ANGLE_X, "frames": frames}
    (folder / f"transforms_{split}.json").write_text(json.dumps(transforms, indent=1))


def is_done(output: Path, settings: dict, overwrite: bool) -> bool:
    """Whether `output` already holds this capture; raises FileExistsError if it holds what must not be replaced."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    record = output / "scene.json"
    if not record.is_file():
        raise FileExistsError(f"{output} exists and is not a demo scene: choose another --output.")
    if record.read_text() == json.dumps(settings):
        return True
    if not overwrite:
        raise FileExistsError(f"{output} holds a demo scene with other settings: pass --overwrite to replace it.")
    return False


def write_capture(output: Path, settings: dict) -> None:
    """Renders all splits and the geometry into a new folder, which replaces `output` once it is complete."""
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        scene = Scene(diorama())
        scene.mesh.export(partial / "geometry.ply")
        for split in SPLITS:
            write_split(scene, partial, split, settings)
        (partial / "scene.json").write_text(json.dumps(settings))
        if output.exists():
            shutil.rmtree(output)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
