"""Renders an animation of an exported student that turns once within its viewing range.

    python scripts/make_animation.py --export exports/demo --output turning.webp

The export needs the targets onnx and web. The suffix of the output chooses the format: .webp or .gif. docs/images has
the student of quickstart.sh, made with --original.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from demo_scene.island import diorama
from demo_scene.tracer import Scene
from demo_scene.tracer import render as trace
from PIL import Image, ImageDraw, ImageFont
from rich.progress import track

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.runtime import PIPELINE, Renderer
from mobiler2l_ns.student.viewing_range import ViewingRange

CAPTION_HEIGHT = 26
SAMPLES = 9  # rays per pixel of the original


@dataclass
class Options:
    """Command line."""

    export: Path
    """Folder that ns-export-mobiler2l wrote, with the targets onnx and web."""
    output: Path
    """The animation, .webp or .gif."""
    num_views: int = 60
    """Views of one turn."""
    seconds: float = 7.5
    """Duration of one turn."""
    original: bool = False
    """Also show the demo scene, ray-traced from the same poses: for students of the demo scene only."""
    quality: int = 80
    """Quality of a .webp, 0 to 100."""


def read_range(path: Path) -> ViewingRange:
    """The viewing range in the scene.json of a web export.

    Raises:
        UserError: The file is damaged.
    """

    def numbers(name: str, count: int) -> np.ndarray:
        values = np.array(found[name], dtype=np.float64)
        if values.shape != (count,) or not (np.abs(values) < 1e9).all():  # also true of NaN
            raise ValueError(name)
        return values

    try:
        found = json.loads(path.read_bytes())["range"]
        vectors = {name: torch.from_numpy(numbers(name, 3)).float() for name in ("centre", "up", "east")}
        known = [name for name in ("radius", "elevation", "azimuth") if found[name] is not None or name != "azimuth"]
        spans = {name: tuple(numbers(name, 2).tolist()) for name in known}
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise UserError(f"{path} is damaged: export the student again with ns-export-mobiler2l.") from None
    return ViewingRange(**vectors, **{"azimuth": None, **spans})


def open_export(folder: Path) -> tuple[Renderer, ViewingRange]:
    """The renderer of an export, and its viewing range.

    Raises:
        UserError: A file is damaged, or fits no other.
    """
    span = read_range(folder / "web" / "scene.json")
    try:
        renderer = Renderer(folder)
        renderer.session(PIPELINE)
    except ValueError as error:
        raise UserError(f"{error}.") from None
    return renderer, span


def turn(span: ViewingRange, count: int) -> list[np.ndarray]:
    """Poses (3, 4) of one turn, whose last is a step before its first; where the circle is not full, back and forth."""
    phases = 2 * np.pi * np.arange(count) / count
    low, high = span.elevation
    if span.azimuth is None:
        azimuths = phases
    else:
        azimuths = span.azimuth[0] + (span.azimuth[1] - span.azimuth[0]) * (0.5 - 0.5 * np.cos(phases))
    elevations = low + (high - low) * (0.3 + 0.2 * np.sin(phases))
    return [span.pose(*angles, sum(span.radius) / 2).numpy() for angles in zip(azimuths, elevations)]


def render_original(scene: Scene, pose: np.ndarray, size: int) -> np.ndarray:
    """A view (H, W, 3) of the demo scene on white, in 0..1."""
    rgba = trace(scene, np.vstack([pose, [0, 0, 0, 1]]), size, SAMPLES, np.random.default_rng(0)) / 255.0
    return rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]


def content_box(images: list[np.ndarray], margin: int = 6) -> tuple[slice, slice]:
    """Rows and columns that hold everything that is not white in any of the images (H, W, 3)."""
    dark = np.min([image.min(axis=-1) for image in images], axis=0) < 0.94
    ranges = []
    for axis in (1, 0):
        used = np.flatnonzero(dark.any(axis=axis))
        ends = (used[0] - margin, used[-1] + 1 + margin) if len(used) else (0, dark.shape[1 - axis])
        ranges.append(slice(max(0, ends[0]), ends[1]))
    return ranges[0], ranges[1]


def join(panels: dict[str, np.ndarray]) -> Image.Image:
    """Images (H, W, 3) side by side, each with its caption."""
    height, width = next(iter(panels.values())).shape[:2]
    sheet = Image.new("RGB", (width * len(panels), height + CAPTION_HEIGHT), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for k, (caption, image) in enumerate(panels.items()):
        sheet.paste(Image.fromarray(np.round(255 * image.clip(0, 1)).astype(np.uint8)), (k * width, 0))
        draw.text(((k + 0.5) * width, height + CAPTION_HEIGHT / 2), caption, "black", font, anchor="mm")
    return sheet


def save(sheets: list[Image.Image], options: Options) -> None:
    """Writes the animation; it repeats without end."""
    duration = round(1000 * options.seconds / len(sheets))
    if options.output.suffix == ".gif":
        every = sheets[:: max(1, len(sheets) // 8)]
        palette = Image.fromarray(np.concatenate([np.asarray(sheet) for sheet in every])).quantize(256)
        sheets = [sheet.quantize(palette=palette, dither=Image.Dither.NONE) for sheet in sheets]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    sheets[0].save(
        options.output, save_all=True, append_images=sheets[1:], duration=duration, loop=0,
        quality=options.quality, method=6, optimize=True,
    )  # fmt: skip


def main() -> int:
    """Reads the command line, renders and writes; returns the exit code."""
    options = tyro.cli(Options, description=__doc__)
    scene_path = options.export / "web" / "scene.json"
    if not scene_path.is_file() or not (options.export / "onnx" / "pipeline.onnx").is_file():
        print(f"{options.export} is no export with the targets onnx and web: run ns-export-mobiler2l.", file=sys.stderr)
        return 1
    if options.output.suffix not in (".webp", ".gif"):
        print(f"{options.output} has another suffix than .webp and .gif: choose one of them.", file=sys.stderr)
        return 1
    renderer, span = open_export(options.export)
    poses = turn(span, options.num_views)
    size = (options.export / "onnx" / "pipeline.onnx").stat().st_size
    rows = {f"student, {size / 1e6:.1f} MB": [renderer.render(pose) for pose in track(poses, "student")]}
    if options.original:
        scene = Scene(diorama())
        side = renderer.intrinsics["image_height"]
        originals = [render_original(scene, pose, side) for pose in track(poses, "original")]
        rows = {"original, ray-traced": originals, **rows}
    box = content_box([image for images in rows.values() for image in images])
    save([join({name: images[k][box] for name, images in rows.items()}) for k in range(len(poses))], options)
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
