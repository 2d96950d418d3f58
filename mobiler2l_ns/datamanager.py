"""Streams training data for the student: fresh teacher views and real photos, from memory, without end.

A step takes a batch of patches from the pool of teacher views and from the photos. Between steps the teacher renders
new views from new poses, within a share of the training time, and each replaces the oldest one: the student never
sees a fixed set, and nothing has to be stored on disk.
"""

import copy
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Dict, Iterator, List, Literal, Optional, Tuple, Type

import torch
import tyro
from jaxtyping import Float, UInt8
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.utils import comms
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import track
from torch import Tensor

from mobiler2l_ns.cameras import crop_camera, fit_cameras, fit_image, pinhole_cameras
from mobiler2l_ns.checkpoints import load_dataparser_transform, read_config
from mobiler2l_ns.compat import running_command
from mobiler2l_ns.data.capture import CaptureDataManager, CaptureDataManagerConfig
from mobiler2l_ns.data.patches import HardPatches, Patches, alpha_depth_targets, join_bundles
from mobiler2l_ns.data.photos import PhotoSet, load_photos
from mobiler2l_ns.data.pool import ViewPool
from mobiler2l_ns.data.poses import OrbitPoses, PoseKind, PoseSampler, fit_poses
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.geometry import cameras_cube
from mobiler2l_ns.student.sampler import DepthRange, Points
from mobiler2l_ns.student.viewing_range import spread_viewpoints
from mobiler2l_ns.teacher.frozen import FrozenTeacher, Teacher, depth_range, resolve_teacher
from mobiler2l_ns.teacher.kinds import check_teacher
from mobiler2l_ns.training.distributed import broadcast_from_main, local_share
from mobiler2l_ns.viewer.panels import StreamPanel

HARD_BATCHES = 20  # R2L keeps as many hard rays as 20 batches have rays


@dataclass
class DistillationDataManagerConfig(CaptureDataManagerConfig):
    """Where the student's training data comes from."""

    _target: Type = field(default_factory=lambda: DistillationDataManager)
    teacher: Optional[Path] = None
    """config.yml of the teacher, any nerfstudio run; left out: the newest run on the same data, which is then named."""
    teacher_search_dir: Path = Path("outputs")
    """Where runs are looked for when no teacher is given."""
    image_size: Optional[Tuple[int, int]] = None
    """Width and height of the student's picture in pixels, both divisible by the network's upscale factor; left out:
    the photos' own size."""
    poses: PoseKind = "auto"
    """Where the teacher is rendered from. orbit: a shell around the object; path: between neighbouring cameras."""
    near_far: Optional[Tuple[float, float]] = None
    """z of the first and the last point on a ray, in world units; left out: tight around what the teacher shows."""
    pool_views: int = 1000
    """Teacher views kept in memory, over all processes; the oldest makes room for a new one."""
    initial_views: int = 100
    """Teacher views rendered before the first step, over all processes."""
    teacher_share: float = 0.15
    """Share of the training time in which the teacher renders new views once the pool is full. 0: none are rendered."""
    filling_share: float = 0.25
    """The same while the pool fills. 0: only the initial views are used."""
    tile_cells: Optional[int] = None
    """Render square tiles of this many ray-grid cells a side instead of whole views: more poses for the same pixels."""
    photo_share: float = 0.5
    """Share of each batch that comes from the real photos. 0: teacher only."""
    hard_share: float = 0.0
    """Share of each batch drawn from the hardest patches of the last batches (R2L's hard rays), before photos and
    teacher views divide the rest. 0: none are kept."""
    patches_per_batch: int = 64
    """Picture patches in a batch, over all processes, each of which takes as many."""
    patch_cells: Optional[int] = 8
    """Side of a patch in ray-grid cells; left out: whole pictures."""
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
    """Serves (rays, pixels) patches for training and whole photos for evaluation.

    The teacher is touched by ns-train only; every other command works without it.
    """

    config: DistillationDataManagerConfig

    def __init__(self, config: DistillationDataManagerConfig, device="cpu", *args, test_mode="val", **kwargs):
        self.device = device
        self.pool: Optional[ViewPool] = None
        self.photos: Optional[PhotoSet] = None
        self.validation: Optional[PhotoSet] = None
        self.eval_photos: Optional[PhotoSet] = None
        self.teacher_views: Dict[int, UInt8[Tensor, "h w 3"]] = {}  # of held-out photos' cameras
        self.photo_share = config.photo_share
        self.hard_patches: Optional[HardPatches] = None
        self.last_batch: Optional[Tuple[Patches, int]] = None  # and how many of its patches were new, with hard_share
        self.size: Optional[Tuple[int, int]] = None  # (H, W) of the student's picture, known to ns-train only
        self.teacher_seconds, self.views_rendered = 0.0, 0
        self.started: Optional[float] = None
        self.phase_start, self.phase_spent, self.pool_is_full = 0.0, 0.0, False
        self.teacher_is_of_other_data = False
        self.cameras_to_visit: List[int] = []
        if test_mode == "val" and running_command() is None:  # `ns-render dataset --split val` says "val", too
            self.teacher_is_of_other_data = self._adopt_teacher(config)
        super().__init__(config, device, *args, test_mode=test_mode, **kwargs)

    @cached_property
    def teacher(self) -> Teacher:
        """The frozen teacher, loaded when first needed. A cached property keeps it out of state_dict and train()."""
        CONSOLE.print(f"Loading the teacher {self.config.teacher}")
        return FrozenTeacher(self.config.teacher, self.device)

    @property
    def points(self) -> Points:
        """Where the student's points lie."""
        if self.config.points != "auto":
            return self.config.points
        return "bounded" if self.train_dataset.metadata["transparent_background"] else "unbounded"

    @cached_property
    def pose_sampler(self) -> PoseSampler:
        """Where the teacher is rendered from."""
        return fit_poses(self.train_dataset.cameras.camera_to_worlds.to(self.device), self.config.poses)

    # -- set-up ---------------------------------------------------------------------------------------------------

    def _adopt_teacher(self, config: DistillationDataManagerConfig) -> bool:
        """Finds the teacher and takes over its data parser, so that both live in one world.

        Returns:
            Whether the teacher was trained on another folder.
        """
        data = Path(config.data if config.data is not None else config.dataparser.data)
        config.teacher = broadcast_from_main(
            lambda: resolve_teacher(config.teacher, data, config.teacher_search_dir).resolve()
        )
        teacher = read_config(config.teacher)
        check_teacher(config.teacher, teacher, self.device)
        parser = teacher.pipeline.datamanager.dataparser
        teacher_data = teacher.pipeline.datamanager.data or teacher.data or parser.data
        if type(config.dataparser)() == _with_data(config.dataparser, type(config.dataparser)().data):
            # Nothing was said about parsing on the command line.
            config.dataparser = _with_data(parser, data)
            if hasattr(parser, "load_3D_points"):
                config.dataparser.load_3D_points = False  # where splats start; it may ask the user to convert them
        return Path(teacher_data).resolve() != data.resolve()

    def setup_train(self) -> None:
        """Photos, pool and the student's camera; for other commands than ns-train only nerfstudio's pixel sampler."""
        self.train_pixel_sampler = self._get_pixel_sampler(self.train_dataset, self.config.train_num_rays_per_batch)
        if self.test_mode != "val":
            return
        check_patches(self.config.patches_per_batch)
        check_pinholes(self.train_dataset)
        self._check_same_world()
        upscale = self.config.upscale
        self.size = student_size(self.train_dataset, self.config.image_size, upscale)
        height, width = self.size
        focal = float(fit_cameras(self.train_dataset.cameras, height, width)[0].fx.median())
        tile_cells = self.config.tile_cells or max(height, width)
        tile = min(height, tile_cells * upscale), min(width, tile_cells * upscale)
        capacity = max(1, local_share(self.config.pool_views))
        needs_photos = self.config.photo_share > 0 or self.config.validation_photos > 0
        self._announce(focal, tile, capacity, len(self.train_dataset) if needs_photos else 0)
        if self.teacher_is_of_other_data:
            self._check_same_scene()
        if needs_photos:
            self.photos = load_photos(
                self.train_dataset, height, width, upscale, self.device, with_alpha=self._photo_channels() == 4
            )
            if 0 < self.config.validation_photos < len(self.photos):
                self.photos, self.validation = self.photos.hold_out(self.config.validation_photos)
        near, far = broadcast_from_main(lambda: self._near_far(focal))
        self.train_dataset.metadata["student_camera"] = {
            "height": height, "width": width, "focal": focal, "near": near, "far": far, **self._focus(),
            "points": self.points, "contraction": cameras_cube(self.train_dataset.cameras.camera_to_worlds, near),
            "viewpoints": spread_viewpoints(self.train_dataset.cameras.camera_to_worlds),
        }  # fmt: skip
        identity = f"{self.config.teacher} step {getattr(self.teacher, 'step', 0)} {height}x{width} focal {focal:.3f}"
        cache = self.config.cache_dir
        if cache is not None and comms.get_world_size() > 1:
            cache = cache / f"rank-{comms.get_rank()}"
        self.pool = ViewPool(
            capacity, tile, self.size, focal, upscale, self.device, cache, identity, self.config.channels,
            DepthRange(near, far, self.points == "unbounded"),
        )  # fmt: skip
        self.hard_patches = self._hard_patches()
        self.stream = StreamPanel(self._changeable_shares(), self._change_share)

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> List[TrainingCallback]:
        """Keeps the viewer's figures up to date."""

        def show(step: int) -> None:
            self.stream.show({**self.statistics(), **self.progress()})

        return [TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], show, update_every_num_iters=50)]

    def _check_same_world(self) -> None:
        saved = load_dataparser_transform(self.config.teacher)
        if saved is None:
            return
        outputs, (transform, scale) = self.train_dataparser_outputs, saved
        same = torch.allclose(outputs.dataparser_transform.cpu().float(), transform.float(), atol=1e-4)
        if not same or abs(outputs.dataparser_scale - scale) > 1e-4 * abs(scale):
            raise UserError(
                f"{self.config.teacher} was trained in another world than {self.get_datapath()} (pose transform or "
                "scale differ): pass a teacher of this capture, or leave the data parser's options as the teacher's."
            )

    def _check_same_scene(self) -> None:
        """Compares small teacher views with photos; a teacher of another scene is worse than one flat colour."""
        height, width = (max(8, round(48 * side / max(self.size))) for side in self.size)
        photos = load_photos(self.train_dataset, height, width, 1, self.device, limit=4)
        target = torch.stack([photo for _, photo in photos])
        views = torch.stack([self.teacher.render(camera) for camera, _ in photos]).to(target)
        if (views - target).square().mean() > (target - target.mean(dim=(0, 1, 2))).square().mean():
            raise UserError(
                f"{self.config.teacher} shows another scene than the photos in {self.get_datapath()}: pass a teacher "
                "of this capture with --pipeline.datamanager.teacher."
            )

    def _near_far(self, focal: float) -> Tuple[float, float]:
        if self.config.near_far is not None:
            near, far = self.config.near_far
            if not 0 < near < far:
                raise UserError(f"--pipeline.datamanager.near-far needs 0 < near < far, not {near} {far}.")
            return near, far
        height, width = self.size
        small = 32 / max(height, width)
        probes = pinhole_cameras(
            self.pose_sampler.sample(24), focal * small, round(height * small), round(width * small)
        )
        near, far = depth_range(self.teacher, probes, self.points == "unbounded")
        CONSOLE.print(f"Content lies between z = {near:.3f} and {far:.3f} ({self.pose_sampler.kind} poses)")
        return near, far

    def _focus(self) -> Dict:
        """What an orbit goes around, and its smallest and largest depth in the cameras; nothing for a path."""
        if not isinstance(self.pose_sampler, OrbitPoses):
            return {}
        c2w = self.train_dataset.cameras.camera_to_worlds.to(self.device)
        depths = ((self.pose_sampler.centre - c2w[:, :, 3]) * -c2w[:, :, 2]).sum(-1)
        return {"focus": self.pose_sampler.centre, "focus_depths": [float(depths.min()), float(depths.max())]}

    def _hard_patches(self) -> Optional[HardPatches]:
        share, count = self.config.hard_share, local_share(self.config.patches_per_batch)
        if not 0 <= share < 1:
            raise UserError(f"--pipeline.datamanager.hard-share needs a number from 0 to below 1, not {share}.")
        num_hard = int(share * count)
        return HardPatches(num_hard, HARD_BATCHES * count) if num_hard else None

    def _photo_channels(self) -> int:
        """4 where photos can teach alpha, too."""
        return 4 if self.config.channels > 3 and self.train_dataset.metadata["transparent_background"] else 3

    def _announce(self, focal: float, tile: Tuple[int, int], capacity: int, num_photos: int) -> None:
        if not comms.is_main_process():
            return
        (height, width), (tile_h, tile_w) = self.size, tile
        pool = capacity * tile_h * tile_w * self.config.channels
        photos = num_photos * height * width * self._photo_channels()
        where = f"also kept in {self.config.cache_dir}" if self.config.cache_dir else "nothing is written to disk"
        each = f" of each of {comms.get_world_size()} processes" if comms.get_world_size() > 1 else ""
        CONSOLE.print(
            f"Student picture {width}x{height}, focal {focal:.1f}. Pool: {capacity} teacher views of "
            f"{tile_w}x{tile_h} ({pool / 1e6:.1f} MB) + photos ({photos / 1e6:.1f} MB) in memory{each}; {where}."
        )

    # -- batches --------------------------------------------------------------------------------------------------

    def next_train(self, step: int) -> Tuple[RayBundle, Dict]:
        """Rays (B, hc, wc) and ``batch["image"]`` (B, Hc, Wc, 3), this process's part of the batch, in ns-train.

        Where the student learns them, ``batch["alpha"]`` and ``batch["depth"]`` (M, Hc, Wc, 1) are those of the first M
        patches: of teacher views, and alpha of transparent photos too. Depth is as in ``Patches``. ``batch["sources"]``
        says how many patches are teacher views, photos and hard patches, which follow each other in this order.

        For ns-export pointcloud and poisson, the rays of a whole picture and no pixels.
        """
        if self.pool is None:
            return self._next_picture(), {}
        self.train_count += 1
        self._replenish()
        hc, wc = self._patch_size()
        again = [self.hard_patches.draw()] if self.hard_patches else []
        num_again, total = sum(len(patches.pixels) for patches in again), self.config.patches_per_batch
        count, new = local_share(total) - num_again, total - num_again * comms.get_world_size()
        num_photos = local_share(round(new * self.photo_share)) if self.photos is not None else 0
        parts = []
        if num_photos < count:
            parts.append(self.pool.sample(count - num_photos, hc, wc))
        if num_photos:
            parts.append(self.photos.sample(num_photos, hc, wc))
        parts += again
        # Whoever knows more about its pixels comes first: teacher views, photos, and hard patches, which are colours.
        patches = Patches(join_bundles([p.rays for p in parts]), torch.cat([p.pixels[..., :3] for p in parts]))
        if self.hard_patches is not None:
            self.last_batch = patches, count
        sources = [count - num_photos, num_photos, num_again]
        return patches.rays, {"image": patches.pixels, "sources": sources, **alpha_depth_targets(parts)}

    def _next_picture(self) -> RayBundle:
        """Rays (H, W) of the picture of a training camera, each in turn, without its lens distortion.

        The picture has no more rays than the command asks for at a time. It is moved by a fraction of a pixel, so that
        a camera's second turn brings new points.
        """
        if not self.cameras_to_visit:
            self.cameras_to_visit = torch.randperm(len(self.train_dataset)).tolist()
        index = self.cameras_to_visit.pop()
        camera = self.train_dataset.cameras[index : index + 1]
        height, width = int(camera.height), int(camera.width)
        factor = min(1.0, math.sqrt(self.train_pixel_sampler.num_rays_per_batch / (height * width)))
        camera, _ = fit_cameras(camera, max(2, int(height * factor)), max(2, int(width * factor)))
        camera.cx, camera.cy = camera.cx + torch.rand(()) - 0.5, camera.cy + torch.rand(()) - 0.5
        return camera.to(self.device).generate_rays(0, keep_shape=True, disable_distortion=True)

    def add_hard_patches(self, errors: Float[Tensor, "B"]) -> None:
        """Keeps the hardest new patches of the last batch; those drawn again do not enter twice.

        Args:
            errors: Mean squared error of each of the batch's patches; looked at only with a hard_share.
        """
        if self.hard_patches is not None:
            patches, num_new = self.last_batch
            self.hard_patches.add(patches, errors[:num_new])

    def next_eval(self, step: int) -> Tuple[RayBundle, Dict]:
        """Patches of held-out photos."""
        if self.pool is None:
            return super().next_eval(step)
        self.eval_count += 1
        if self.eval_photos is None:
            self.eval_photos = load_photos(self.eval_dataset, *self.size, self.config.upscale, self.device, limit=8)
        patches = self.eval_photos.sample(local_share(self.config.patches_per_batch), *self._patch_size())
        return patches.rays, {"image": patches.pixels}

    def next_eval_image(self, step: int) -> Tuple[Cameras, Dict]:
        """A held-out photo and its camera; in ns-train also the teacher's ``batch["teacher"]`` (H, W, 3) of it."""
        camera, batch = super().next_eval_image(step)
        if self.pool is None:
            return camera, batch
        return camera, {**batch, "teacher": self._teacher_view(batch["image_idx"], camera)}

    def _teacher_view(self, index: int, camera: Cameras) -> Float[Tensor, "H W 3"]:
        """The teacher's view of a held-out photo, rendered once, with no more pixels a side than the student has."""
        height, width = int(camera.height), int(camera.width)
        if index not in self.teacher_views:
            factor = min(1.0, max(self.size) / max(height, width))
            small, _ = fit_cameras(camera, round(height * factor), round(width * factor))
            self.teacher_views[index] = (self.teacher.render(small) * 255).round().to(torch.uint8).cpu()
        return fit_image(self.teacher_views[index].float() / 255, height, width)

    def _patch_size(self) -> Tuple[int, int]:
        grid = [pixels // self.config.upscale for pixels in self.pool.tile]
        side = self.config.patch_cells
        return (grid[0], grid[1]) if side is None else (min(side, grid[0]), min(side, grid[1]))

    def set_photo_share(self, share: float) -> None:
        """Changes the share of each batch that comes from the photos; at 1 the teacher is not asked any more."""
        self.photo_share = share

    def _changeable_shares(self) -> Dict[str, float]:
        """What the viewer's sliders change: nothing with several processes, whose batches must agree."""
        if comms.get_world_size() > 1:
            return {}
        shares = {"filling_share": self.config.filling_share, "teacher_share": self.config.teacher_share}
        return {**shares, "photo_share": self.photo_share} if self.photos is not None else shares

    def _change_share(self, name: str, share: float) -> None:
        if name == "photo_share":
            self.set_photo_share(share)
        else:
            setattr(self.config, name, share)
        # The time before counts at the old share, not as a debt of the teacher's.
        self.phase_start, self.phase_spent = time.perf_counter(), self.teacher_seconds

    def _replenish(self) -> None:
        """Fills the pool before the first step; later renders new views while the teacher is within its share."""
        if self.photo_share >= 1:
            return
        if self.started is None:
            missing = min(local_share(self.config.initial_views), self.pool.capacity) - len(self.pool)
            for _ in track(range(max(1, missing)), "Teacher renders the first views", console=CONSOLE, transient=True):
                self._render_view()
            self.started = self.phase_start = time.perf_counter() - self.teacher_seconds
        if self.config.teacher_share > 0 or self.config.filling_share > 0:
            # Processes wait for each other in every step, so all render in the same ones, by the main one's clock.
            for _ in range(broadcast_from_main(self._views_due)):
                self._render_view()

    def _views_due(self) -> int:
        now, mean_seconds = time.perf_counter(), self.teacher_seconds / self.views_rendered
        if not self.pool_is_full and len(self.pool) == self.pool.capacity:
            # What it took to fill the pool is not held against the teacher afterwards.
            self.pool_is_full, self.phase_start, self.phase_spent = True, now, self.teacher_seconds
        share = self.config.teacher_share if self.pool_is_full else self.config.filling_share
        behind = share * (now - self.phase_start) - (self.teacher_seconds - self.phase_spent)
        if behind <= 0:
            return 0
        missing = self.pool.capacity - len(self.pool)
        return min(math.ceil(behind / mean_seconds), missing or self.pool.capacity)

    def exclude(self, seconds: float) -> None:
        """Takes time that was not spent on training (an evaluation) out of the teacher's budget."""
        if self.started is not None:
            self.started += seconds
            self.phase_start += seconds

    @contextmanager
    def excluded(self) -> Iterator[None]:
        """Whatever is done inside is no training: see ``exclude``."""
        start = self._clock()
        yield
        self.exclude(self._clock() - start)

    def _render_view(self) -> None:
        start = self._clock()
        (height, width), (tile_h, tile_w) = self.size, self.pool.tile
        c2w = self.pose_sampler.sample(1)
        top = int(torch.randint(height - tile_h + 1, ()))
        left = int(torch.randint(width - tile_w + 1, ()))
        camera = pinhole_cameras(c2w, self.pool.focal, height, width)
        with torch.autocast(device_type=torch.device(self.device).type, enabled=False):
            camera = crop_camera(camera, top, left, tile_h, tile_w)
            channels = self.config.channels
            image = self.teacher.render(camera) if channels == 3 else self.teacher.render_all(camera)[..., :channels]
        self.pool.add(image.to(self.pool.images.device), c2w[0], (top, left), self.train_count)
        self.teacher_seconds += self._clock() - start
        self.views_rendered += 1

    def _clock(self) -> float:
        """Seconds, with the GPU's queue emptied first: its work is otherwise charged to whoever waits for it next."""
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def get_train_rays_per_batch(self) -> int:
        """Output pixels a step and process, which is what the viewer and ns-eval count too."""
        if self.pool is None:
            return super().get_train_rays_per_batch()
        hc, wc = self._patch_size()
        return local_share(self.config.patches_per_batch) * hc * wc * self.config.upscale**2

    # -- what was done --------------------------------------------------------------------------------------------

    def progress(self) -> Dict[str, float]:
        """How the training data is doing, as plain numbers; all shares are between 0 and 1.

        ``pool_fill``; ``pool_age``: how many steps ago the pool's views were rendered, on average; ``teacher_share``:
        the teacher's part of the time until now; ``photo_share``: the photos' part of a batch.
        """
        return {
            "pool_fill": len(self.pool) / self.pool.capacity,
            "pool_age": self.pool.mean_age(self.train_count),
            "teacher_share": self._share_of_time(),
            "photo_share": self.photo_share if self.photos is not None else 0.0,
        }

    def _share_of_time(self) -> float:
        elapsed = time.perf_counter() - self.started if self.started is not None else 0.0
        return self.teacher_seconds / elapsed if elapsed else 0.0

    def statistics(self) -> Dict[str, float]:
        """Size and cost of this process's pool so far."""
        return {
            "capacity": self.pool.capacity,
            "views": self.pool.num_added,
            "view_height": self.pool.tile[0],
            "view_width": self.pool.tile[1],
            "bytes": sum(part.nbytes for part in (self.pool, self.photos, self.hard_patches) if part is not None),
            "photos": len(self.photos) if self.photos is not None else 0,
            "teacher_seconds": round(self.teacher_seconds, 2),
            "share_of_training_time": round(self._share_of_time(), 4),
        }


def check_patches(patches_per_batch: int) -> None:
    """Raises UserError where processes would take different numbers of patches: the mean over them would be skewed."""
    size = comms.get_world_size()
    if patches_per_batch % size:
        raise UserError(
            f"--pipeline.datamanager.patches-per-batch {patches_per_batch} cannot be divided among {size} processes: "
            f"pass {size * (patches_per_batch // size + 1)}."
        )


def check_pinholes(dataset: InputDataset) -> None:
    """Raises UserError, naming the photo, for cameras whose rays have no depth along one axis: fisheye, panoramas."""
    other = (dataset.cameras.camera_type[:, 0] != CameraType.PERSPECTIVE.value).nonzero()
    if len(other):
        name = dataset.image_filenames[int(other[0])]
        raise UserError(
            f"{name} is a fisheye photo or a panorama, and a student sees through a pinhole: undistort the photos "
            "(e.g. with `colmap image_undistorter`), or cut panoramas into flat pictures with "
            "`ns-process-data images --camera-type equirectangular`."
        )


def merge_statistics(statistics: List[Dict[str, float]]) -> Dict[str, float]:
    """Statistics of all processes as one: sizes and seconds are summed, the rest is the main process's."""
    summed = ("capacity", "views", "bytes", "teacher_seconds")
    return {**statistics[0], **{name: round(sum(part[name] for part in statistics), 2) for name in summed}}


def student_size(dataset: InputDataset, image_size: Optional[Tuple[int, int]], upscale: int) -> Tuple[int, int]:
    """(H, W) of the student's picture: the given size, or the one that most photos have.

    Raises:
        UserError: The size is not divisible by the upscale factor.
    """
    sizes = list(zip(dataset.cameras.width[:, 0].tolist(), dataset.cameras.height[:, 0].tolist()))
    width, height = image_size or max(dict.fromkeys(sizes), key=sizes.count)  # the first of equals
    if width < upscale or height < upscale or width % upscale or height % upscale:
        near_w, near_h = (max(upscale, upscale * (n // upscale)) for n in (width, height))
        named = "--pipeline.datamanager.image-size"
        source = named if image_size else str(dataset.image_filenames[sizes.index((width, height))])
        raise UserError(
            f"{source} is {width}x{height}, which the network's upscale factor {upscale} does not divide: "
            f"pass --pipeline.datamanager.image-size {near_w} {near_h}."
        )
    return height, width


def _with_data(parser, data: Path):
    """A copy of a data parser's config for another folder."""
    parser = copy.deepcopy(parser)
    parser.data = data
    return parser
