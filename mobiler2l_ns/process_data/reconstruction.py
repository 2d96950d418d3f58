"""Structure from motion with pycolmap: features, matches, and a model of cameras and points.

pycolmap keeps features and matches in a database, and computes only what is missing there. So an interrupted command
goes on where it was.
"""

import shutil
import sqlite3
import threading
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, List, Literal

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.optional import require
from mobiler2l_ns.process_data.photos import Photo, write_mask
from mobiler2l_ns.training.progress import progress_of

SEED = 0
# More photos than this have too many pairs to match all of them.
MAX_EXHAUSTIVE = 200
# Below this share of photos with a pose, a second model is tried that needs less overlap.
FEW_POSES = 0.8
POLL_SECONDS = 0.2

Matching = Literal["auto", "exhaustive", "sequential"]


@dataclass
class Reconstructor:
    """The steps from photos to a model.

    Attributes:
        images: Folder of the photos.
        colmap: Folder of database, masks and models.
        photos: The photos.
        camera_model: COLMAP's name of the camera model. Photos of one size share one camera.
        max_side: Features are found in photos of at most so many pixels a side.
        num_threads: Threads of pycolmap; -1: one for each core.
    """

    images: Path
    colmap: Path
    photos: List[Photo]
    camera_model: str
    max_side: int
    num_threads: int = -1

    def __post_init__(self):
        self.pycolmap = require("pycolmap")
        self.colmap.mkdir(exist_ok=True)
        log_to(self.colmap, self.pycolmap)

    @property
    def database(self) -> Path:
        return self.colmap / "database.db"

    def find_features(self) -> None:
        """SIFT features of each photo.

        Raises:
            UserError: The photos show nothing that has features.
        """
        col = self.pycolmap
        if self._count("images") != len(self.photos):
            self._add_cameras()
        options = col.FeatureExtractionOptions(
            max_image_size=self.max_side, num_threads=self.num_threads, use_gpu=False
        )
        masks = self.colmap / "masks"
        masked = [photo.name for photo in self.photos if (masks / f"{photo.name}.png").is_file()]
        others = [photo.name for photo in self.photos if photo.name not in masked]

        def extract(token: Any) -> None:
            for names, reader in ((masked, {"mask_path": masks}), (others, {})):
                if names:
                    col.extract_features(
                        self.database, self.images, names, reader_options=col.ImageReaderOptions(**reader),
                        extraction_options=options, device=col.Device.cpu, cancellation_token=token,
                    )  # fmt: skip

        self._watch("features", len(self.photos), lambda: self._count("keypoints"), extract)
        if not self._count("keypoints", "rows > 0"):
            raise UserError(
                f"the photos in {self.images.parent} show nothing that can be recognised: put something with a pattern "
                "beside the subject (see docs/capture.md)."
            )

    def _add_cameras(self) -> None:
        """One camera for the photos of each size, with the focal length of their EXIF data if they have it."""
        col = self.pycolmap
        for path in self.colmap.glob("database.db*"):
            path.unlink()
        col.Database.open(self.database).close()
        for photo in self.photos:
            write_mask(self.images / photo.name, self.colmap / "masks")
        by_size = sorted(self.photos, key=lambda photo: (photo.width, photo.height, photo.name))
        for _, group in groupby(by_size, key=lambda photo: (photo.width, photo.height)):
            names = [photo.name for photo in group]
            options = col.ImageReaderOptions(camera_model=self.camera_model)
            col.import_images(self.database, self.images, col.CameraMode.SINGLE, names, options)

    def match(self, method: Matching) -> None:
        """Matches of all pairs of photos, or of each photo with those that follow it.

        Raises:
            UserError: No two photos show the same.
        """
        col, count = self.pycolmap, len(self.photos)
        if method == "auto":
            method = "exhaustive" if count <= MAX_EXHAUSTIVE else "sequential"
        matching = col.FeatureMatchingOptions(num_threads=self.num_threads, use_gpu=False)
        verification = col.TwoViewGeometryOptions()
        verification.ransac.random_seed = SEED
        options: Any = {
            "matching_options": matching, "verification_options": verification, "device": col.Device.cpu,
        }  # fmt: skip
        match = col.match_exhaustive if method == "exhaustive" else col.match_sequential
        pairs = count * (count - 1) // 2 if method == "exhaustive" else 0
        self._watch("matching", pairs, lambda: self._count("two_view_geometries"), lambda token: match(
            self.database, cancellation_token=token, **options
        ))  # fmt: skip
        if not self._count("two_view_geometries", "rows > 0"):
            raise UserError(
                f"no two photos in {self.images.parent} share enough points: take photos that overlap by three "
                "quarters, of things that have a pattern (see docs/capture.md)."
            )

    def map(self) -> Any:
        """The largest model of cameras and points, with a refined principal point; a ``pycolmap.Reconstruction``.

        Raises:
            UserError: No two photos fit together.
        """
        model = self._map("mapping")
        if model is None or model.num_reg_images() < FEW_POSES * len(self.photos):
            relaxed = self._map("mapping with less overlap", init_min_num_inliers=50, init_min_tri_angle=6.0,
                                abs_pose_min_num_inliers=15)  # fmt: skip
            model = max((m for m in (model, relaxed) if m), key=lambda m: m.num_reg_images(), default=None)
        if model is None:
            raise UserError(
                f"no poses were found for the photos in {self.images.parent}: take photos that overlap by three "
                "quarters, from places that are a step apart (see docs/capture.md)."
            )
        shutil.rmtree(self.colmap / "models")
        self._refine(model)
        return model

    def _map(self, name: str, **mapper_options: float):
        col, posed = self.pycolmap, [0]
        options = col.IncrementalPipelineOptions(
            random_seed=SEED, num_threads=self.num_threads, min_model_size=3, ba_use_gpu=False
        )
        for option, value in mapper_options.items():
            setattr(options.mapper, option, value)

        def count_pose() -> None:
            posed[0] += 1

        models = self._watch(name, len(self.photos), lambda: min(posed[0], len(self.photos)),
            lambda token: col.incremental_mapping(
                self.database, self.images, _emptied(self.colmap / "models"), options,
                initial_image_pair_callback=lambda: posed.__setitem__(0, 2), next_image_callback=count_pose,
                cancellation_token=token,
            ))  # fmt: skip
        return max(models.values(), key=lambda model: model.num_reg_images(), default=None)

    def _refine(self, model: Any) -> None:
        """Bundle adjustment of all parameters and, as in nerfstudio, the principal point."""
        col = self.pycolmap
        config = col.BundleAdjustmentConfig()
        for index in model.reg_image_ids():
            config.add_image(index)
        config.fix_gauge(col.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
        options = col.BundleAdjustmentOptions(refine_principal_point=True, print_summary=False)
        col.create_default_bundle_adjuster(options, config, model).solve()
        model.update_point_3d_errors()

    def _watch(self, name: str, total: int, count: Callable[[], int], call: Callable[[Any], Any]):
        """Runs a call of pycolmap in a thread, so that the bar moves and Ctrl-C ends it."""
        token, found, failed = self.pycolmap.CancellationToken(), [], []

        def run() -> None:
            try:
                found.append(call(token))
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            with progress_of(name, total) as advance:
                while thread.is_alive():
                    thread.join(POLL_SECONDS)
                    advance(count())
        finally:
            token.cancel()
            thread.join()
        if failed:
            raise failed[0]
        return found[0]

    def _count(self, table: str, condition: str = "1") -> int:
        """Rows of a table of the database; 0 if there is no such table, or no database."""
        try:
            with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=5)) as connection:
                return connection.execute(f"SELECT COUNT(*) FROM {table} WHERE {condition}").fetchone()[0]
        except sqlite3.DatabaseError:
            return 0


def log_to(folder: Path, pycolmap: ModuleType) -> None:
    """pycolmap's log goes to a file, not to the terminal."""
    pycolmap.logging.logtostderr = False
    pycolmap.logging.alsologtostderr = False
    pycolmap.logging.stderrthreshold = pycolmap.logging.Level.FATAL.value
    level = pycolmap.logging.Level
    pycolmap.logging.set_log_destination(level.INFO, str(folder / "log."))  # with warnings and errors
    for worse in (level.WARNING, level.ERROR, level.FATAL):
        pycolmap.logging.set_log_destination(worse, "")


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
