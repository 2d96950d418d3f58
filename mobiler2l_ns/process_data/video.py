"""Sharp frames of a video, evenly spaced in time. PyAV, which nerfstudio needs anyway, decodes it."""

from pathlib import Path
from typing import Iterator, List, Tuple

import av
import numpy as np
from av.error import FFmpegError
from jaxtyping import UInt8
from PIL import Image

from mobiler2l_ns.errors import UserError, first_line
from mobiler2l_ns.process_data.photos import JPEG_QUALITY, Photo, write_smaller
from mobiler2l_ns.training.progress import progress_of

SCORED_SIDE = 640


def import_video(video: Path, images: Path, num_frames: int, num_downscales: int) -> List[Photo]:
    """Writes the sharpest frame of each of ``num_frames`` intervals of equal length to ``images``.

    Raises:
        UserError: The file is no video or has no frames.
    """
    sharpness = [measure_sharpness(gray) for gray in _gray_frames(video)]
    if not sharpness:
        raise UserError(f"{video} is a video without frames: record it again, or pass a folder of photos.")
    wanted = choose_frames(sharpness, num_frames)
    photos: List[Photo] = []
    with progress_of("frames", len(wanted)) as advance:
        for index, (seconds, frame) in enumerate(_frames(video)):
            if index != wanted[len(photos)]:
                continue
            name = f"frame_{len(photos) + 1:05d}.jpg"
            upright(frame.to_ndarray(format="rgb24"), frame.rotation).save(images / name, quality=JPEG_QUALITY)
            width, height = write_smaller(images / name, num_downscales)
            photos.append(Photo(name, f"{seconds:.2f} s", width, height))
            advance(len(photos))
            if len(photos) == len(wanted):
                break
    return photos


def choose_frames(sharpness: List[float], count: int) -> List[int]:
    """The index of the sharpest frame in each of ``count`` intervals; all frames if there are fewer."""
    edges = np.linspace(0, len(sharpness), min(count, len(sharpness)) + 1).round().astype(int)
    return [int(first + np.argmax(sharpness[first:last])) for first, last in zip(edges[:-1], edges[1:])]


def measure_sharpness(gray: UInt8[np.ndarray, "H W"]) -> float:
    """Variance of the Laplacian: small where motion or focus blurred the frame."""
    g = gray.astype(np.float32)
    return float((g[1:-1, :-2] + g[1:-1, 2:] + g[:-2, 1:-1] + g[2:, 1:-1] - 4 * g[1:-1, 1:-1]).var())


def upright(image: UInt8[np.ndarray, "H W C"], rotation: int) -> Image.Image:
    """A frame as the phone was held: ``rotation`` is the angle of its display matrix, in degrees anticlockwise."""
    return Image.fromarray(np.ascontiguousarray(np.rot90(image, round(rotation / 90))))


def _gray_frames(video: Path) -> Iterator[UInt8[np.ndarray, "H W"]]:
    """Frames at no more than 640 pixels a side, with a progress bar."""
    with progress_of("sharpness", _count_frames(video)) as advance:
        for number, (_, frame) in enumerate(_frames(video), start=1):
            shrink = min(1.0, SCORED_SIDE / max(frame.width, frame.height))
            small = frame.reformat(round(frame.width * shrink), round(frame.height * shrink), format="gray")
            yield small.to_ndarray()
            advance(number)


def _count_frames(video: Path) -> int:
    """Number of frames as the file's header has it; 0 if it has none."""
    try:
        with av.open(str(video)) as container:
            return container.streams.video[0].frames if container.streams.video else 0
    except FFmpegError:
        return 0  # _frames says why


def _frames(video: Path) -> Iterator[Tuple[float, av.VideoFrame]]:
    """Time in seconds and image of each frame."""
    try:
        with av.open(str(video)) as container:
            for stream in container.streams.video[:1]:
                stream.thread_type = "AUTO"
                for frame in container.decode(stream):
                    yield frame.time or 0.0, frame
    except FFmpegError as error:
        raise UserError(
            f"the video {video} cannot be read ({first_line(error)}): record it again, or pass a folder of photos."
        ) from error
