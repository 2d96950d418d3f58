"""Poses of ns-process-mobiler2l beside the true ones.

    python scripts/bench/poses.py --capture data/fox

Of the demo scene: transparent photos from three rings, and a video of two turns around it. Of a capture: its photos,
alone and as the frames of a video; the poses that came with it count as the truth. Inputs that are done are not
processed again.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

if __name__ == "__main__":  # modules are found in scripts/, not in scripts/bench/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import av
import numpy as np
import tyro
from demo_scene.cameras import TARGET, look_at
from demo_scene.island import diorama
from demo_scene.tracer import Scene, render
from PIL import Image
from rich.progress import track

from bench.common import CPU, console, new_table, with_machine, write_figures
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.process_data.command import ProcessMobileR2L
from mobiler2l_ns.process_data.record import RECORD, Record

RADIUS = 4.0
RINGS = ((20, 36), (40, 30), (60, 18))  # degrees above the ground, and photos


@dataclass
class Options:
    """Command line."""

    capture: Optional[Path] = None
    """A capture with transforms.json and images, whose poses count as the truth."""
    work: Path = Path("outputs/bench-poses")
    """Folder for photos, videos and captures."""
    side: int = 800
    """Width and height of the rings' photos, in pixels; the video has six tenths of it."""
    frames: int = 144
    """Frames of the video."""
    json: Path = Path("docs/benchmarks/poses.json")
    """File for the figures."""


def around(elevation: float, azimuth: float) -> np.ndarray:
    """Pose (4, 4) of a camera that looks at the demo scene; angles in degrees."""
    e, a = np.radians([elevation, azimuth])
    return look_at(TARGET + RADIUS * np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)]))


def ring_poses() -> List[np.ndarray]:
    """Poses of all rings."""
    return [around(elevation, 360 * number / count) for elevation, count in RINGS for number in range(count)]


def path_poses(count: int) -> List[np.ndarray]:
    """Poses of a video: two turns, from 22 to 50 degrees above the ground."""
    return [around(22 + 28 * part, 720 * part) for part in np.arange(count) / count]


def write_rings(folder: Path, side: int) -> Path:
    """Transparent photos of the demo scene from three rings."""
    folder.mkdir(parents=True)
    scene, rng = Scene(diorama()), np.random.default_rng(0)
    for number, pose in enumerate(track(ring_poses(), description="rings")):
        Image.fromarray(render(scene, pose, side, 4, rng)).save(folder / f"{number:03d}.png")
    return folder


def demo_frames(count: int, side: int) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) of the demo scene on white."""
    scene, rng = Scene(diorama()), np.random.default_rng(0)
    for pose in track(path_poses(count), description="video"):
        image = render(scene, pose, side, 1, rng).astype(np.float32)
        alpha = image[..., 3:] / 255
        yield (image[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def write_video(path: Path, frames: Iterator[np.ndarray]) -> Path:
    """An H.264 video of frames (H, W, 3) with even sides."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "14"})
        for number, frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def capture_poses(capture: Path) -> Dict[str, np.ndarray]:
    """Poses of a capture by the names of its photos, in their order."""
    try:
        frames = json.loads((capture / "transforms.json").read_text())["frames"]
        found = {Path(frame["file_path"]).name: np.array(frame["transform_matrix"]) for frame in frames}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{capture} has no transforms.json with poses ({error}): pass another --capture.") from error
    return dict(sorted(found.items()))


def measure(source: Path, target: Path, truth: List[np.ndarray]) -> Dict:
    """Finds the poses of photos or a video and compares them with the true ones, which are in the photos' order."""
    ProcessMobileR2L(source, target).main()
    record = Record.read(target / RECORD)
    assert record.report is not None
    true = {photo.name: pose for photo, pose in zip(record.photos, truth, strict=True)}
    found = capture_poses(target)
    pairs = [(found[name][:3], true[name][:3]) for name in found]
    errors = np.median(pose_errors(*(np.stack(poses) for poses in zip(*pairs))), axis=0)
    return {
        "photos": len(truth),
        "posed": record.report.posed,
        "reprojection_error_pixels": round(record.report.reprojection_error, 3),
        "median_position_error_percent": round(100 * float(errors[0]), 3),
        "median_angle_error_degrees": round(float(errors[1]), 3),
        "seconds": record.seconds,
    }


def pose_errors(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Errors of poses (N, 3, 4) after the similarity that fits their positions best (Umeyama, TPAMI 1991).

    Returns:
        (N, 2): a distance as a fraction of the extent of the true cameras, and an angle in degrees.
    """
    p, q = found[:, :, 3], true[:, :, 3]
    p0, q0 = p - p.mean(0), q - q.mean(0)
    u, s, vt = np.linalg.svd(q0.T @ p0)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation, scale = u @ np.diag(sign) @ vt, (s * sign).sum() / (p0**2).sum()
    distances = np.linalg.norm(scale * p0 @ rotation.T - q0, axis=1) / np.linalg.norm(np.ptp(q, axis=0))
    relative = np.einsum("nij,nik->njk", rotation @ found[:, :, :3], true[:, :, :3])
    cosines = np.clip((np.trace(relative, axis1=1, axis2=2) - 1) / 2, -1, 1)
    return np.stack([distances, np.degrees(np.arccos(cosines))], axis=1)


def inputs(options: Options) -> Iterator[Tuple[str, Path, List[np.ndarray]]]:
    """Name, source and true poses of each input; sources are made if they are not there."""
    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    rings, orbit, walk = work / "rings", work / "orbit.mp4", work / "walk.mp4"
    yield "rings", rings if rings.is_dir() else write_rings(rings, options.side), ring_poses()
    if not orbit.is_file():
        write_video(orbit, demo_frames(options.frames, 2 * round(0.3 * options.side)))
    yield "orbit", orbit, path_poses(options.frames)
    if options.capture is not None:
        poses = capture_poses(options.capture)
        photos = [options.capture / "images" / name for name in poses]
        yield "capture", options.capture / "images", list(poses.values())
        if not walk.is_file():
            write_video(walk, (np.asarray(Image.open(photo).convert("RGB")) for photo in photos))
        yield "capture as a video", walk, list(poses.values())


def main() -> None:
    """Measures, prints and writes."""
    options = tyro.cli(Options, description=__doc__)
    results = {}
    for name, source, truth in inputs(options):
        console.print(f"[bold]{name}[/bold]")
        results[name] = measure(source, options.work / f"{name.replace(' ', '-')}-posed", truth)
    table = new_table("poses", "input", "posed", "error [px]", "position [%]", "angle [deg]", "seconds")
    for name, found in results.items():
        table.add_row(
            name, f"{found['posed']} of {found['photos']}", f"{found['reprojection_error_pixels']:.2f}",
            f"{found['median_position_error_percent']:.2f}", f"{found['median_angle_error_degrees']:.2f}",
            f"{sum(found['seconds'].values()):.0f}",
        )  # fmt: skip
    console.print(table)
    write_figures(with_machine(results, CPU), options.json)


if __name__ == "__main__":
    main()
