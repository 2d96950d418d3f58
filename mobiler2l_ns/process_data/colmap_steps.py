"""Steps of structure from motion with pycolmap: ``python -m mobiler2l_ns.process_data.colmap_steps STEP JOB``.

Each step is a process of its own. pycolmap contains a copy of SQLite, and two copies in one process drop each other's
locks on the database, which the main process reads for its progress. Also, Ctrl-C and a lack of memory then end a step
and not the command. This module imports pycolmap and Python's own modules alone, so that a step starts fast.
"""

import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

SEED = 0
# Below this share of photos with a pose, a second model is made that needs less overlap.
FEW_POSES = 0.8
# Models are made with fewer parameters of the lens, because few and small photos leave the others free. The last bundle
# adjustment has them all.
MAPPED_AS = {"OPENCV": "SIMPLE_RADIAL", "PINHOLE": "SIMPLE_PINHOLE", "SIMPLE_PINHOLE": "SIMPLE_PINHOLE"}
# Points that cover less of the photos, as those of an object do, leave lens and principal point free.
COVERING = 0.75
RELAXED = {"init_min_num_inliers": 50, "init_min_tri_angle": 6.0, "abs_pose_min_num_inliers": 15}


@dataclass
class Job:
    """What the steps work on.

    Attributes:
        images: Folder of the photos.
        colmap: Folder of database, masks and models.
        cameras: Names of the photos that share a camera, for each camera.
        masked: Names of the photos that have a mask.
        camera_model: COLMAP's name of the camera model.
        exhaustive: Match all pairs of photos; else each photo with those that follow it.
        max_side: Features are found in photos of at most so many pixels a side.
        num_threads: Threads; -1: one for each core.
    """

    images: str
    colmap: str
    cameras: List[List[str]]
    masked: List[str]
    camera_model: str
    exhaustive: bool
    max_side: int
    num_threads: int

    @property
    def database(self) -> Path:
        return Path(self.colmap) / "database.db"

    @property
    def names(self) -> List[str]:
        return [name for camera in self.cameras for name in camera]

    def dumps(self) -> str:
        """The job as JSON."""
        return json.dumps(asdict(self))


def add_cameras(col: Any, job: Job) -> None:
    """A new database of photos and cameras, with the focal lengths of the EXIF data where there are any."""
    for path in Path(job.colmap).glob("database.db*"):
        path.unlink()
    col.Database.open(job.database).close()
    for names in job.cameras:
        options = col.ImageReaderOptions(camera_model=MAPPED_AS[job.camera_model])
        col.import_images(job.database, job.images, col.CameraMode.SINGLE, names, options)


def find_features(col: Any, job: Job) -> None:
    """SIFT features of the photos that have none yet."""
    options = col.FeatureExtractionOptions(max_image_size=job.max_side, num_threads=job.num_threads, use_gpu=False)
    masked = set(job.masked)
    others = [name for name in job.names if name not in masked]
    for names, reader in ((job.masked, {"mask_path": Path(job.colmap) / "masks"}), (others, {})):
        if names:
            col.extract_features(
                job.database, job.images, names, reader_options=col.ImageReaderOptions(**reader),
                extraction_options=options, device=col.Device.cpu,
            )  # fmt: skip


def match(col: Any, job: Job) -> None:
    """Matches of the pairs that were not matched yet."""
    matching = col.FeatureMatchingOptions(num_threads=job.num_threads, use_gpu=False)
    verification = col.TwoViewGeometryOptions()
    verification.ransac.random_seed = SEED
    call = col.match_exhaustive if job.exhaustive else col.match_sequential
    call(job.database, matching_options=matching, verification_options=verification, device=col.Device.cpu)


def find_poses(col: Any, job: Job) -> None:
    """Writes the largest model to ``sparse/0`` and its figures to ``model.json``; nothing if there is no model."""
    models = [largest_model(col, job)]
    if models[0] is None or num_photos(models[0]) < FEW_POSES * len(job.names):
        models.append(largest_model(col, job, **RELAXED))
    found = [model for model in models if model is not None]
    if not found:
        return
    model = max(found, key=num_photos)
    set_camera_model(col, model, job.camera_model)
    if smallest_spread(model) > COVERING:
        refine(col, model)
    model.write(emptied(Path(job.colmap) / "sparse" / "0"))
    figures = {
        "posed": [model.image(index).name for index in model.reg_image_ids()],
        "reprojection_error": model.compute_mean_reprojection_error(),
        "points": model.num_points3D(),
    }
    (Path(job.colmap) / "model.json").write_text(json.dumps(figures))


def largest_model(col: Any, job: Job, **mapper_options: float) -> Optional[Any]:
    """The model with the most photos. Their number so far goes to the file ``posed``."""
    options = col.IncrementalPipelineOptions(
        random_seed=SEED, num_threads=job.num_threads, min_model_size=3, ba_use_gpu=False
    )
    for option, value in mapper_options.items():
        setattr(options.mapper, option, value)
    progress, posed = Path(job.colmap) / "posed", [0]

    def count(number: int) -> None:
        posed[0] = number
        progress.write_text(str(number))

    models = emptied(Path(job.colmap) / "models")
    found = col.incremental_mapping(
        job.database, job.images, models, options, initial_image_pair_callback=lambda: count(2),
        next_image_callback=lambda: count(posed[0] + 1),
    )  # fmt: skip
    shutil.rmtree(models)
    return max(found.values(), key=num_photos, default=None)


def num_photos(model: Any) -> int:
    """Photos with a pose."""
    return model.num_reg_images()


def smallest_spread(model: Any) -> float:
    """The part of the photos' widths and heights that nine tenths of the points cover, for the worst camera."""
    seen: Dict[int, List[Any]] = {camera: [] for camera in model.cameras}
    for index in model.reg_image_ids():
        image = model.image(index)
        seen[image.camera_id] += [point.xy for point in image.points2D if point.has_point3D()]
    cameras = model.cameras
    return min(spread(points, cameras[index].width, cameras[index].height) for index, points in seen.items() if points)


def spread(points: Sequence[Sequence[float]], width: int, height: int) -> float:
    """The part of a photo's width, or of its height if that is smaller, that nine tenths of the points cover."""
    parts = []
    for values, side in zip(zip(*points), (width, height)):
        ordered = sorted(values)
        cut = len(ordered) // 20
        parts.append((ordered[-1 - cut] - ordered[cut]) / side)
    return min(parts)


def set_camera_model(col: Any, model: Any, name: str) -> None:
    """Gives the cameras the lens that was asked for, which renders as before."""
    for camera in model.cameras.values():
        focal, x, y, *radial = camera.params
        lens = {
            "SIMPLE_PINHOLE": [focal, x, y],
            "PINHOLE": [focal, focal, x, y],
            "OPENCV": [focal, focal, x, y, *radial, 0.0, 0.0, 0.0],
        }[name]
        camera.model, camera.params = getattr(col.CameraModelId, name), lens


def refine(col: Any, model: Any) -> None:
    """Bundle adjustment of all parameters and, as in nerfstudio, the principal point."""
    config = col.BundleAdjustmentConfig()
    for index in model.reg_image_ids():
        config.add_image(index)
    config.fix_gauge(col.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    options = col.BundleAdjustmentOptions(refine_principal_point=True, print_summary=False)
    col.create_default_bundle_adjuster(options, config, model).solve()
    model.update_point_3d_errors()


def emptied(folder: Path) -> Path:
    """The folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


STEPS = {step.__name__: step for step in (add_cameras, find_features, match, find_poses)}

if __name__ == "__main__":
    import pycolmap

    pycolmap.logging.logtostderr = True  # else it writes files below /tmp
    STEPS[sys.argv[1]](pycolmap, Job(**json.loads(sys.argv[2])))
