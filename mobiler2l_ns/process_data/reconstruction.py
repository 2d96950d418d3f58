"""Structure from motion: runs the steps of pycolmap, shows their progress, and says what is missing.

Features and matches are kept in COLMAP's database, and pycolmap computes only what is missing there. So an interrupted
command continues where it was.
"""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Callable, Dict, List, Literal

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.process_data import colmap_steps
from mobiler2l_ns.process_data.colmap_steps import Job
from mobiler2l_ns.process_data.photos import Photo, write_mask
from mobiler2l_ns.training.progress import progress_of

# More photos than this have too many pairs to match all of them.
MAX_EXHAUSTIVE = 200
POLL_SECONDS = 0.2
LOG = "log.txt"

Matching = Literal["auto", "exhaustive", "sequential"]


def is_exhaustive(matching: Matching, count: int) -> bool:
    """Whether all pairs of so many photos are matched."""
    return matching == "exhaustive" or (matching == "auto" and count <= MAX_EXHAUSTIVE)


class Reconstructor:
    """The steps from photos to a model. Photos of one size share one camera.

    Args:
        capture: Folder with the photos in ``images``; what COLMAP keeps goes to ``colmap``.
        photos: The photos.
        camera_model: COLMAP's name of the camera model.
        matching: Which pairs of photos are matched.
        max_side: Features are found in photos of at most so many pixels a side.
        num_threads: Threads of pycolmap; -1: one for each core.
    """

    def __init__(
        self, capture: Path, photos: List[Photo], camera_model: str, matching: Matching = "auto", max_side: int = 1600,
        num_threads: int = -1,
    ):  # fmt: skip
        self.capture, self.colmap, self.count = capture, capture / "colmap", len(photos)
        self.colmap.mkdir(exist_ok=True)
        by_size = sorted(photos, key=lambda photo: (photo.width, photo.height, photo.name))
        groups = groupby(by_size, key=lambda photo: (photo.width, photo.height))
        cameras = [[photo.name for photo in group] for _, group in groups]
        masked = [photo.name for photo in photos if write_mask(capture / "images" / photo.name, self.colmap / "masks")]
        self.job = Job(
            str(capture / "images"), str(self.colmap), cameras, masked, camera_model,
            is_exhaustive(matching, self.count), max_side, num_threads,
        )  # fmt: skip

    def find_features(self) -> None:
        """SIFT features of each photo.

        Raises:
            UserError: The photos show nothing that has features.
        """
        if self._rows("images") != self.count:
            self._run("add_cameras", "cameras", 0, lambda: 0)
        self._run("find_features", "features", self.count, lambda: self._rows("keypoints"))
        if not self._rows("keypoints", "rows > 0"):
            raise UserError(
                f"the photos in {self.capture} show nothing that can be recognised: put something with a pattern "
                "beside the subject (see docs/capture.md)."
            )

    def match(self) -> None:
        """Matches of all pairs of photos, or of each photo with those that follow it.

        Raises:
            UserError: No two photos show the same.
        """
        pairs = self.count * (self.count - 1) // 2 if self.job.exhaustive else 0
        self._run("match", "matching", pairs, lambda: self._rows("two_view_geometries"))
        if not self._rows("two_view_geometries", "rows > 0"):
            raise UserError(
                f"no two photos in {self.capture} share enough points: take photos that overlap by three quarters, of "
                "things that have a pattern (see docs/capture.md)."
            )

    def find_poses(self) -> Dict:
        """Writes the largest model to ``colmap/sparse/0``.

        Returns:
            ``posed`` (names of its photos), ``reprojection_error`` in pixels, and ``points`` (their number).

        Raises:
            UserError: No two photos fit together.
        """
        figures, progress = self.colmap / "model.json", self.colmap / "posed"
        figures.unlink(missing_ok=True)
        progress.write_text("0")
        self._run("find_poses", "poses", self.count, lambda: min(self.count, int(progress.read_text() or 0)))
        progress.unlink()
        if not figures.is_file():
            raise UserError(
                f"no poses were found for the photos in {self.capture}: take photos that overlap by three quarters, "
                "from places that are a step apart (see docs/capture.md)."
            )
        return json.loads(figures.read_text())

    def _run(self, step: str, name: str, total: int, count: Callable[[], int]) -> None:
        """Runs a step in a process of its own, with a progress bar. Its output goes to a file.

        Raises:
            UserError: The step was killed, most likely for its memory.
        """
        command = [sys.executable, "-m", colmap_steps.__name__, step, self.job.dumps()]
        with (self.colmap / LOG).open("w") as log, progress_of(name, total) as advance:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                while process.poll() is None:
                    try:
                        process.wait(POLL_SECONDS)
                    except subprocess.TimeoutExpired:
                        pass
                    advance(count())
            finally:
                process.kill()
                process.wait()
        if process.returncode < 0:
            raise UserError(
                f"pycolmap was ended by signal {-process.returncode} while it computed {name} (see "
                f"{self.colmap / LOG}): if the memory is full, pass --num-threads 1 --max-side 1000."
            )
        if process.returncode:
            raise RuntimeError(f"pycolmap failed at {name}:\n{(self.colmap / LOG).read_text()[-3000:]}")

    def _rows(self, table: str, condition: str = "1") -> int:
        """Rows of a table of the database; 0 if there is no such table, or no database."""
        try:
            database = sqlite3.connect(f"{self.job.database.resolve().as_uri()}?mode=ro", uri=True, timeout=5)
            with closing(database) as connection:
                return connection.execute(f"SELECT COUNT(*) FROM {table} WHERE {condition}").fetchone()[0]
        except sqlite3.DatabaseError:
            return 0
