"""Streams the student's training data from memory: patches of new teacher views, reprojected views and photos.

A batch holds patches from the pool of teacher views, from that of reprojected views and from the photos. Between steps
the teacher renders views from new poses, within a fraction of the training time, and each replaces the oldest one. So
the student never trains on a fixed set, and nothing has to be stored on disk.

B: patches; hc, wc: cells of a patch; Hc, Wc: its pixels.
"""

import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Dict, Literal, Optional, Tuple, Type

import tyro
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.utils import comms
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from mobiler2l_ns.compat import running_command
from mobiler2l_ns.data.batches import BatchMixer, check_batches, check_shares
from mobiler2l_ns.data.capture import CaptureDataManager, CaptureDataManagerConfig
from mobiler2l_ns.data.photo_source import PhotoSource, num_reprojected_views
from mobiler2l_ns.data.photos import PhotoSet, TrainingViewRays, load_photos
from mobiler2l_ns.data.planes import choose_near_far
from mobiler2l_ns.data.pool import ViewPool, announce_memory
from mobiler2l_ns.data.poses import PoseKind, PoseSampler, fit_poses
from mobiler2l_ns.data.reprojection import ReprojectedViews
from mobiler2l_ns.data.saved_views import SavedViews
from mobiler2l_ns.data.student_camera import (
    check_pinholes,
    find_points,
    fit_student_camera,
    student_focal,
    student_size,
)
from mobiler2l_ns.data.time_budget import TimeBudget, synchronize
from mobiler2l_ns.data.view_stream import ViewStream
from mobiler2l_ns.student.sampler import Points
from mobiler2l_ns.teacher.adoption import check_same_scene, check_same_world
from mobiler2l_ns.teacher.frozen import CachedViews, TeacherConfig
from mobiler2l_ns.teacher.teacher import Teacher
from mobiler2l_ns.training.distributed import broadcast_from_main, local_share

SHARES = "photo_share", "reprojected_share", "teacher_share", "filling_share"


@dataclass
class DistillationDataManagerConfig(CaptureDataManagerConfig):
    """Where the student's training data comes from."""

    _target: Type = field(default_factory=lambda: DistillationDataManager)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """The radiance field that teaches the student."""
    image_size: Optional[Tuple[int, int]] = None
    """Width and height of the student's view in pixels, both divisible by the network's upscale factor; left out: the
    photos' own size."""
    poses: PoseKind = "auto"
    """Where the teacher is rendered from. orbit: a shell around an object. path: between neighbouring cameras. auto:
    orbit if the cameras surround what they look at, else path."""
    near_far: Optional[Tuple[float, float]] = None
    """z of the first and the last point on a ray, in world units; left out: tight around what the teacher renders."""
    pool_views: int = 1000
    """Teacher views kept in memory, over all processes; a new view replaces the oldest one."""
    initial_views: int = 100
    """Teacher views rendered before the first step, over all processes."""
    teacher_share: float = 0.15
    """Fraction of training time in which the teacher renders new views once the pool is full. 0: none are rendered."""
    filling_share: float = 0.25
    """Fraction of training time in which the teacher renders new views until the pool is full. 0: only the initial
    views are used."""
    tile_cells: Optional[int] = None
    """Render square tiles of this many ray-grid cells a side instead of whole views: more poses for the same pixels."""
    photo_share: float = 0.5
    """Fraction of each batch that comes from the photos. 0: none, but reprojected views are made of photos, too."""
    reprojected_share: float = 0.0
    """Fraction of the other patches that comes from reprojected views: photos moved to new poses by the teacher's
    depth, which cost little and have a photo's colours. 0: none."""
    reprojected_views: int = 400
    """Reprojected views kept in memory, over all processes."""
    photo_depth: bool = False
    """Let photos teach depth, too: the teacher renders it for each photo before the first step. Reprojected views turn
    this on."""
    hard_share: float = 0.0
    """Fraction of each batch drawn from the patches of the last batches with the largest errors (R2L's hard rays).
    Photos and teacher views divide the rest. 0: none are kept."""
    patches_per_batch: int = 64
    """Patches in a batch, over all processes, each of which takes as many."""
    patch_cells: Optional[int] = 8
    """Side of a patch in ray-grid cells; left out: whole views."""
    even_borders: bool = False
    """Let patches and tiles show the border of images as often as the middle, which then is less sharp."""
    cache_dir: Optional[Path] = None
    """Also keep the pool in this folder, so that an interrupted run need not render it again; with several processes,
    each in its own folder rank-N inside."""
    upscale: tyro.conf.Suppress[int] = 8
    """Pixels a ray-grid cell; set by the pipeline from the network's shape."""
    channels: tyro.conf.Suppress[int] = 3
    """What the student learns of a teacher view: 3 colours, 4: and alpha, 5: and depth; set by the pipeline."""
    points: tyro.conf.Suppress[Literal["auto", "bounded", "unbounded"]] = "auto"
    """Where the student's points lie; set by the pipeline from the model's options."""
    validation_photos: tyro.conf.Suppress[int] = 0
    """Training photos held out to score the student on; set by the pipeline from the options of fine-tuning."""


class DistillationDataManager(CaptureDataManager):
    """Serves patches (rays, pixels) for training and whole photos for evaluation.

    ns-train alone loads the teacher; every other command works without it.

    Attributes:
        size: (H, W) of the student's view, set in ns-train alone, as mixer and view_stream. pool is None elsewhere.
        photo_share: Fraction of each batch that comes from the photos; at 1 the teacher renders no more views.
    """

    config: DistillationDataManagerConfig
    size: Tuple[int, int]
    mixer: BatchMixer
    view_stream: ViewStream

    def __init__(self, config: DistillationDataManagerConfig, device="cpu", *args, test_mode="val", **kwargs):
        self.device = device
        self.pool: Optional[ViewPool] = None
        self.photos: Optional[PhotoSet] = None
        self.validation: Optional[PhotoSet] = None
        self.reprojected: Optional[ReprojectedViews] = None
        self.photo_share = config.photo_share
        self.budget = TimeBudget(config.filling_share, config.teacher_share, synchronize=lambda: synchronize(device))
        self.teacher_is_of_other_data = False
        if test_mode == "val" and running_command() is None:  # `ns-render dataset --split val` says "val", too
            data = Path(config.data if config.data is not None else config.dataparser.data)
            config.dataparser, self.teacher_is_of_other_data = config.teacher.find(data, config.dataparser, device)
        super().__init__(config, device, *args, test_mode=test_mode, **kwargs)

    @cached_property
    def teacher(self) -> Teacher:
        """The frozen teacher, loaded when first needed. A cached property keeps it out of state_dict and train()."""
        CONSOLE.print(f"Loading the teacher {self.config.teacher.load_config}")
        try:
            return self.config.teacher.setup(self.device)
        except AttributeError as error:  # nn.Module would report a missing attribute "teacher" instead
            raise RuntimeError(f"{self.config.teacher.load_config} cannot be loaded") from error

    @property
    def points(self) -> Points:
        """Where the student's points lie."""
        return find_points(self.config.points, self.train_dataset)

    @cached_property
    def pose_sampler(self) -> PoseSampler:
        """Where the teacher is rendered from."""
        return fit_poses(self.train_dataset.cameras.camera_to_worlds.to(self.device), self.config.poses)

    @cached_property
    def eval_photos(self) -> PhotoSet:
        """A few held-out photos at the student's size."""
        return load_photos(self.eval_dataset, *self.size, self.config.upscale, self.device, limit=8)

    @cached_property
    def teacher_views(self) -> CachedViews:
        """The teacher's views of held-out photos, with no more pixels a side than the student has."""
        return CachedViews(lambda: self.teacher, max(self.size))

    @cached_property
    def training_view_rays(self) -> TrainingViewRays:
        """Rays of whole training views, for nerfstudio's exporters."""
        return TrainingViewRays(self.train_dataset.cameras)

    def setup_train(self) -> None:
        """Photos, pool and the student's camera; for other commands than ns-train only nerfstudio's pixel sampler."""
        self.train_pixel_sampler = self._get_pixel_sampler(self.train_dataset, self.config.train_num_rays_per_batch)
        if self.test_mode != "val":
            return
        config, dataset = self.config, self.train_dataset
        check_shares({name: getattr(config, name) for name in SHARES})
        num_reprojected = num_reprojected_views(config.reprojected_share, config.reprojected_views, config.channels)
        check_batches(config.patches_per_batch, config.hard_share, num_reprojected)
        check_pinholes(dataset)
        teacher = config.teacher.load_config
        assert teacher is not None  # found in __init__
        check_same_world(teacher, self.train_dataparser_outputs, self.get_datapath())
        self.size = student_size(dataset, config.image_size, config.upscale)
        focal = student_focal(dataset.cameras, self.size)
        tile_h, tile_w = (min(side, (config.tile_cells or side) * config.upscale) for side in self.size)
        capacity = max(1, local_share(config.pool_views))
        source = PhotoSource(
            dataset, self.size, config.upscale, config.channels, config.photo_share, config.validation_photos,
            config.photo_depth, num_reprojected, self.device,
        )  # fmt: skip
        pool_shape = capacity, tile_h, tile_w, config.channels
        announce_memory(pool_shape, source.shape, focal, config.cache_dir, source.reprojection_bytes)
        if self.teacher_is_of_other_data:
            check_same_scene(self.teacher, source.load_few(), teacher, self.get_datapath())
        self.photos, self.validation = source.load()
        near_far = broadcast_from_main(lambda: choose_near_far(
            config.near_far, lambda camera: self.teacher.surface_depths(camera), self.pose_sampler, self.size, focal,
            self.points == "unbounded",
        ))  # fmt: skip
        camera = fit_student_camera(dataset.cameras, self.pose_sampler, self.size, focal, near_far, self.points)
        dataset.metadata["student_camera"] = camera  # nerfstudio hands this dictionary to the model
        self.pool = ViewPool(
            capacity, (tile_h, tile_w), self.size, focal, config.upscale, self.device, config.cache_dir,
            self._identity(focal), config.channels, camera.depths,
        )  # fmt: skip
        self.photos, self.reprojected = source.add_depth(
            self.photos, lambda camera: self.teacher.render_all(camera), self.pool, self.pose_sampler
        )
        self.mixer = BatchMixer(
            self.pool, self.photos, config.patches_per_batch, config.patch_cells, config.hard_share, self.reprojected,
            config.reprojected_share, config.even_borders,
        )  # fmt: skip
        self.view_stream = ViewStream(
            self.pool, self.pose_sampler, self.budget, self._render_teacher, config.initial_views, config.even_borders
        )

    def _identity(self, focal: float) -> str:
        """What cached views show: those of another teacher, other poses or another lens are of no use."""
        teacher = f"{self.config.teacher.load_config} {getattr(self.teacher, 'fingerprint', '')}"
        poses = zlib.crc32(self.train_dataset.cameras.camera_to_worlds.contiguous().cpu().numpy().data)
        return f"{teacher}, {self.pose_sampler.kind} poses {poses:08x}, size {self.size}, focal {focal:.3f}"

    def run_state(self) -> Dict[str, Any]:
        """What a checkpoint keeps of the training data. Several processes have views of their own, and keep none."""
        assert self.pool is not None
        pools = {"teacher": self.pool, **({"reprojected": self.reprojected.pool} if self.reprojected else {})}
        views = {name: SavedViews.of(pool)._asdict() for name, pool in pools.items() if comms.get_world_size() == 1}
        numbers = {"near_far": list(self.pool.depths[:2]), "photo_share": self.photo_share, "count": self.train_count}
        return {**numbers, "views": views}

    def resume(self, state: Dict[str, Any]) -> None:
        """Goes on from what a checkpoint has kept. Hard patches are collected anew."""
        self.photo_share, self.train_count = state["photo_share"], state["count"]
        streams = {"teacher": self.view_stream, "reprojected": self.reprojected}
        for name, views in state["views"].items():
            stream = streams[name]
            if stream is not None and comms.get_world_size() == 1:
                stream.resume(SavedViews(**views))

    def next_train(self, step: int) -> Tuple[RayBundle, Dict]:
        """This process's part of a batch in ns-train, see ``BatchMixer.draw``.

        For ns-export pointcloud and poisson, the rays (H, W) of a whole view and no pixels.
        """
        if self.pool is None:
            assert self.train_pixel_sampler is not None
            # The exporters set the number on the sampler, after this datamanager was made.
            return self.training_view_rays.next(self.train_pixel_sampler.num_rays_per_batch).to(self.device), {}
        self.train_count += 1
        if self.photo_share < 1:
            self.view_stream.advance(self.train_count)
            if self.reprojected is not None:
                self.reprojected.advance(self.train_count)
        return self.mixer.draw(self.photo_share)

    def next_eval(self, step: int) -> Tuple[RayBundle, Dict]:
        """Patches of held-out photos."""
        if self.pool is None:
            return super().next_eval(step)
        self.eval_count += 1
        patches = self.eval_photos.sample(local_share(self.config.patches_per_batch), *self.mixer.patch_size)
        return patches.rays, {"image": patches.pixels}

    def next_eval_image(self, step: int) -> Tuple[Cameras, Dict]:
        """A held-out photo and its camera; in ns-train also the teacher's ``batch["teacher"]`` (H, W, 3) of it."""
        camera, batch = super().next_eval_image(step)
        if self.pool is None:
            return camera, batch
        return camera, {**batch, "teacher": self.teacher_views.render(batch["image_idx"], camera)}

    def get_train_rays_per_batch(self) -> int:
        """Output pixels a step and process, which is what the viewer and ns-eval count too."""
        if self.pool is None:
            return super().get_train_rays_per_batch()
        hc, wc = self.mixer.patch_size
        return local_share(self.config.patches_per_batch) * hc * wc * self.config.upscale**2

    def set_photo_share(self, share: float) -> None:
        """Changes the fraction of each batch that comes from the photos."""
        self.photo_share = share

    def _render_teacher(self, camera: Cameras) -> Float[Tensor, "H W C"]:
        channels = self.config.channels
        return self.teacher.render(camera) if channels == 3 else self.teacher.render_all(camera)[..., :channels]

    def progress(self) -> Dict[str, float]:
        """State of the training data as plain numbers; all shares are between 0 and 1.

        ``photo_share``: the photos' fraction of a batch; the rest is explained at ``ViewStream.progress``.
        """
        photo_share = self.photo_share if self.photos is not None else 0.0
        return {**self.view_stream.progress(self.train_count), "photo_share": photo_share}

    def statistics(self) -> Dict[str, float]:
        """Size and cost of this process's pool and photos so far."""
        num_photos = len(self.photos) if self.photos is not None else 0
        return {**self.view_stream.statistics(), "bytes": self.mixer.nbytes, "photos": num_photos}
