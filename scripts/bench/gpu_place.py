"""Where the parts of gpu.py work, and how large everything is."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Tuple

import torch
from nerfstudio.cameras.cameras import Cameras

from bench.common import default_device
from bench.distillation import pairs, student_pairs
from bench.training import capture_parser, method_config
from mobiler2l_ns.data.photos import PhotoSet, load_photos
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export.comparison import held_out_dataset
from mobiler2l_ns.student.network import NetworkConfig
from mobiler2l_ns.trainer import DistillationTrainerConfig

MAX_SIDE = 1000  # pixels of a capture's views: photos of a phone would take 100 GB
UPSCALE = NetworkConfig().upscale
TINY_NETWORK = NetworkConfig(depth=6, width=16, sr_widths=(8, 8, 8))


@dataclass
class Sizes:
    """How large everything is."""

    side: int = 800
    """Pixels of the demo scene's photos."""
    num_train: int = 100
    """Its training photos."""
    num_photos: int = 16
    """Held-out photos that a score is the mean of."""
    teacher_steps: int = 4000
    student_seconds: float = 420.0
    """Time of each student, teacher's views included."""
    timed_steps: int = 48
    compiles: bool = True
    """Also measure torch.compile."""
    network: Optional[NetworkConfig] = None
    """In place of the methods'."""
    student: Tuple[Tuple[str, object], ...] = ()
    """Options of the datamanager that differ from the methods'."""
    teacher_rays: Optional[int] = None
    """Rays in a teacher's batch; None: the method's."""


TINY = Sizes(
    side=32, num_train=6, num_photos=2, teacher_steps=3, student_seconds=1.0, timed_steps=3, compiles=False,
    network=TINY_NETWORK, teacher_rays=64,
    student=(("patches_per_batch", 4), ("patch_cells", 2), ("pool_views", 4), ("initial_views", 2),
             ("reprojected_views", 2), ("near_far", (2.0, 6.0))),
)  # fmt: skip


@dataclass
class Place:
    """Where a part works.

    Args:
        folder: For data, runs and pictures.
        sizes: How large everything is.
        capture: A posed capture, which is measured beside the demo scene; None: the demo scene alone.
    """

    folder: Path
    sizes: Sizes
    capture: Optional[Path] = None

    @property
    def demo(self) -> Path:
        """The demo scene."""
        return self.folder / "data" / "demo"

    @property
    def device(self) -> torch.device:
        """The GPU, or the CPU in a rehearsal."""
        return default_device()

    def data(self, scene: str) -> Path:
        """Folder of a scene, demo or capture."""
        return self.demo if scene == "demo" or self.capture is None else self.capture

    def config(self, scene: str, method: str) -> DistillationTrainerConfig:
        """A method's config for a scene, in a run folder of this place."""
        data = self.data(scene)
        config = method_config(method, data, capture_parser(data), self.folder / "outputs")
        config.experiment_name, config.timestamp = scene, "gpu"
        return config

    def teacher(self, scene: str, method: str = "mobiler2l-teacher") -> Path:
        """config.yml of a teacher that an earlier part trained.

        Raises:
            UserError: It did not.
        """
        path = self.config(scene, method).get_base_dir() / "config.yml"
        if not (path.parent / "nerfstudio_models").is_dir():
            raise UserError(f"there is no {path}: the part that trains {method} has to run before.")
        return path

    def student(self, scene: str, method: str) -> DistillationTrainerConfig:
        """A student's config, with the nerfacto teacher of an earlier part."""
        config = self.config(scene, method)
        config.pipeline.datamanager.teacher.load_config = self.teacher(scene)
        height, width = self.view_size(scene)
        config.pipeline.datamanager.image_size = width, height
        if self.sizes.network is not None:
            batch_norm = config.pipeline.model.network.batch_norm
            config.pipeline.model.network = copy.deepcopy(self.sizes.network)
            config.pipeline.model.network.batch_norm = batch_norm
        for name, value in self.sizes.student:
            if name != "patch_cells" or config.pipeline.datamanager.patch_cells is not None:  # None: whole views
                setattr(config.pipeline.datamanager, name, value)
        return config

    def view_size(self, scene: str) -> Tuple[int, int]:
        """(H, W) of the views of a scene, see ``whole_cells``."""
        return whole_cells(held_out_dataset(self.config(scene, "mobiler2l")).cameras)

    def held_out(self, scene: str, size: Optional[Tuple[int, int]] = None) -> PhotoSet:
        """Held-out photos at a size (H, W), or at that of the scene's views."""
        dataset = held_out_dataset(self.config(scene, "mobiler2l"))
        height, width = size or whole_cells(dataset.cameras)
        return load_photos(dataset, height, width, 1, self.device, limit=self.sizes.num_photos)


def whole_cells(cameras: Cameras) -> Tuple[int, int]:
    """(H, W) of the first camera's photo in whole cells, and at most MAX_SIDE pixels."""
    sides = int(cameras.height[0]), int(cameras.width[0])
    shrink = min(1.0, MAX_SIDE / max(sides))
    height, width = (max(UPSCALE, int(side * shrink) // UPSCALE * UPSCALE) for side in sides)
    return height, width


def save_picture(path: Path, photos: PhotoSet, model, teacher) -> None:
    """Three held-out photos beside the student's and the teacher's views."""
    from torchvision.utils import save_image

    few = PhotoSet(photos.images[:3], photos.cameras[:3], photos.upscale)
    rows = zip(student_pairs(model, few), pairs(teacher.render, few))
    picture = torch.cat([torch.cat([photo, student, teacher], 1) for (student, photo), (teacher, _) in rows])
    save_image(picture.permute(2, 0, 1), path)
