"""The command ``ns-process-mobiler2l``: from a folder of photos or a video to a capture with poses."""

import contextlib
import io
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Dict, List, Literal, Tuple

import tyro
from nerfstudio.process_data.colmap_utils import colmap_to_json
from nerfstudio.process_data.process_data_utils import CAMERA_MODELS

from mobiler2l_ns.errors import UserError, explain_write_errors
from mobiler2l_ns.optional import require
from mobiler2l_ns.process_data.photos import find_photos, import_photos
from mobiler2l_ns.process_data.reconstruction import Matching, Reconstructor, is_exhaustive
from mobiler2l_ns.process_data.record import RECORD, Record
from mobiler2l_ns.process_data.report import PoseReport, draw_poses
from mobiler2l_ns.process_data.video import import_video
from mobiler2l_ns.training.progress import duration, log_line

# nerfstudio holds one photo in ten out, and none of fewer.
MIN_PHOTOS = 10
PHOTO_OPTIONS = ("num_frames_target", "num_downscales")
POSE_OPTIONS = ("camera_type", "matching_method", "max_side")


@dataclass
class ProcessMobileR2L:
    """Finds the camera poses of photos or of a video, and writes a capture that every nerfstudio method reads.

    It does what ns-process-data does, with the packages pycolmap and PyAV instead of the programs COLMAP and ffmpeg.
    The same command goes on where it was interrupted.
    """

    data: Path
    """Folder of photos (JPEG, PNG), with its subfolders, or a video."""
    output_dir: Path
    """Folder of the capture: transforms.json, images, images_2, ..., sparse_pc.ply, and poses.png to look at."""
    camera_type: Literal["perspective", "pinhole", "simple_pinhole"] = "perspective"
    """perspective: a lens with distortion, as in phones. pinhole, simple_pinhole: without, as in rendered images."""
    matching_method: Matching = "auto"
    """exhaustive: all pairs of photos. sequential: each photo with those that follow, for long videos. auto: exhaustive
    up to 200 photos."""
    num_frames_target: int = 150
    """Number of frames to take from a video: the sharpest of each interval."""
    num_downscales: Annotated[int, tyro.conf.arg(aliases=["--downscale"])] = 3
    """Number of smaller copies of the photos, each with half the size of the one before."""
    max_side: int = 1600
    """Features are found in photos of at most so many pixels a side. Larger takes more memory and time."""
    num_threads: int = -1
    """Threads for features, matches and poses; -1: one for each core."""

    def main(self) -> None:
        """All steps that are not done."""
        started = time.perf_counter()
        self._check_options()
        require("pycolmap")  # before the photos are copied
        with explain_write_errors(self.output_dir):
            sources = [self.data] if self.data.is_file() else find_photos(self.data, self.output_dir)
            record = self._begin(sources)
            if record.report is None:
                self._import_photos(record, sources)
                self._find_poses(record)
            else:
                log_line(f"{self.output_dir} is complete already.")
        assert record.report is not None
        record.report.print(is_exhaustive(self.matching_method, len(record.photos)))
        spent = ", ".join(f"{step} {duration(seconds)}" for step, seconds in record.seconds.items())
        log_line(f"Wrote {self.output_dir} in {duration(time.perf_counter() - started)} ({spent}).")
        log_line(f"Look at {self.output_dir / 'poses.png'}: the cameras should form the path that you walked.")
        log_line(f"Next: ns-train mobiler2l-teacher --data {self.output_dir}")

    def _check_options(self) -> None:
        if not self.data.exists():
            raise UserError(f"there is no {self.data}: pass a folder of photos or a video with --data.")
        for option in ("num_frames_target", "max_side"):
            if getattr(self, option) <= 0:
                raise UserError(f"--{option.replace('_', '-')} {getattr(self, option)} must be larger than 0.")
        if not 0 <= self.num_downscales <= 8:
            raise UserError(f"--num-downscales {self.num_downscales} is not between 0 and 8.")
        if self.output_dir.resolve() == self.data.resolve():
            raise UserError(f"{self.output_dir} has the photos themselves: pass another --output-dir.")

    def _begin(self, sources: List[Path]) -> Record:
        """The record of the output folder, or a new one.

        Raises:
            UserError: The folder has something else in it.
        """
        if self.data.is_dir():
            self._check_count(len(sources))
        files = {str(path.resolve()): [path.stat().st_size, path.stat().st_mtime] for path in sources}
        record = Record(str(self.data.resolve()), files, self._values(PHOTO_OPTIONS), self._values(POSE_OPTIONS))
        path = self.output_dir / RECORD
        if path.is_file():
            record = self._continue(Record.read(path), record)
        elif self.output_dir.is_dir() and any(self.output_dir.iterdir()):
            raise UserError(f"{self.output_dir} has other files: pass an empty folder with --output-dir.")
        self.output_dir.mkdir(parents=True, exist_ok=True)
        record.write(path)
        return record

    def _values(self, options: Tuple[str, ...]) -> Dict[str, Any]:
        return {name: getattr(self, name) for name in options}

    def _continue(self, found: Record, wanted: Record) -> Record:
        """What stays of a former call: all, or the photos if only poses are wanted with other options.

        Raises:
            UserError: That call had other photos.
        """
        if not found.photos and found.source == wanted.source:
            return wanted  # it ended before the photos were copied
        same = ("source", "files", "photo_options")
        if any(getattr(found, name) != getattr(wanted, name) for name in same):
            raise UserError(
                f"{self.output_dir} was made from other photos or sizes: pass another --output-dir, or delete it."
            )
        if found.pose_options != wanted.pose_options:
            if {**found.pose_options, "matching_method": self.matching_method} != wanted.pose_options:
                shutil.rmtree(self.output_dir / "colmap", ignore_errors=True)
            found.pose_options, found.report = wanted.pose_options, None
        return found

    def _import_photos(self, record: Record, sources: List[Path]) -> None:
        if record.photos:
            return
        start, images = time.perf_counter(), self.output_dir / "images"
        for folder in self.output_dir.glob("images*"):  # of an interrupted call
            shutil.rmtree(folder)
        images.mkdir()
        if self.data.is_file():
            photos = import_video(self.data, images, self.num_frames_target, self.num_downscales)
        else:
            photos = import_photos(sources, self.data, images, self.num_downscales)
        self._check_count(len(photos))
        record.photos = photos
        self._finish_step(record, "photos", start)

    def _check_count(self, count: int) -> None:
        if count < MIN_PHOTOS:
            raise UserError(f"{self.data} has {count} photos: take at least {MIN_PHOTOS}, better 50 to 150.")

    def _find_poses(self, record: Record) -> None:
        reconstructor = Reconstructor(
            self.output_dir, record.photos, CAMERA_MODELS[self.camera_type].value, self.matching_method, self.max_side,
            self.num_threads,
        )  # fmt: skip
        start = time.perf_counter()
        reconstructor.find_features()
        start = self._finish_step(record, "features", start)
        reconstructor.match()
        start = self._finish_step(record, "matching", start)
        report = PoseReport.of(reconstructor.find_poses(), record.photos)
        if report.posed < MIN_PHOTOS:
            raise UserError(
                f"only {report.posed} of the {len(record.photos)} photos of {self.data} fit together: take photos that "
                "overlap by three quarters, of things that have a pattern (see docs/capture.md)."
            )
        self._write_capture()
        draw_poses(self.output_dir, self.output_dir / "poses.png")
        record.report = report
        self._finish_step(record, "poses", start)

    def _finish_step(self, record: Record, step: str, start: float) -> float:
        """Notes a step's seconds. Returns the time now."""
        now = time.perf_counter()
        record.seconds[step] = round(now - start, 1)
        record.write(self.output_dir / RECORD)
        return now

    def _write_capture(self) -> None:
        """The model of COLMAP as nerfstudio's transforms.json and sparse_pc.ply."""
        colmap = self.output_dir / "colmap"
        with contextlib.redirect_stdout(io.StringIO()):  # nerfstudio prints all cameras if there are several
            colmap_to_json(colmap / "sparse" / "0", colmap)
        for name in ("sparse_pc.ply", "transforms.json"):
            os.replace(colmap / name, self.output_dir / name)


def entrypoint() -> None:
    """The command ns-process-mobiler2l."""
    tyro.extras.set_accent_color("bright_yellow")
    tyro.cli(ProcessMobileR2L).main()
