"""The user's capture: checked before anything is built on it, by the teachers' and the student's datamanager alike."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Type

import torch
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager, FullImageDatamanagerConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from PIL import Image

from mobiler2l_ns.compat import with_batch_axis
from mobiler2l_ns.errors import UserError


class ValidatedDataMixin:
    """Mixin for nerfstudio's datamanagers: ends with one sentence for a capture that cannot be used.

    It tells models, through the train set's metadata, whether the photos have a transparent background
    (``transparent_background``): that is what separates an object from a scene.
    """

    def __init__(self, config, *args, **kwargs):
        data = Path(config.data if config.data is not None else config.dataparser.data)
        parser = type(config.dataparser).__name__.removesuffix("DataParserConfig").lower() + "-data"
        if not data.exists():
            raise UserError(f"there is no {data}: pass the folder of a posed capture with --data.")
        try:
            super().__init__(config, *args, **kwargs)
        except (OSError, LookupError, TypeError, AssertionError, ValueError, AttributeError) as error:
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise UserError(
                f"{data} cannot be read as {parser} ({reason}): it needs photos with poses in transforms.json; "
                "make them with ns-process-data, or name another parser at the end of the command, e.g. blender-data."
            ) from error

    def create_train_dataset(self) -> InputDataset:
        """The train split, checked."""
        check_cameras(self.train_dataparser_outputs, self.get_datapath())
        dataset = super().create_train_dataset()
        dataset.metadata["transparent_background"] = has_transparent_background(dataset)
        return dataset

    def create_eval_dataset(self) -> InputDataset:
        """The held-out split, checked."""
        dataset = super().create_eval_dataset()
        if len(dataset) == 0:
            raise UserError(f"{self.get_datapath()} has too few photos to hold one out: take at least ten.")
        dataset.cameras = with_batch_axis(dataset.cameras)
        check_cameras(dataset._dataparser_outputs, self.get_datapath())
        for name in ("fx", "fy"):  # blender-data's are float64, on which `ns-render spiral` fails
            setattr(dataset.cameras, name, getattr(dataset.cameras, name).float())
        return dataset


@dataclass
class CaptureDataManagerConfig(VanillaDataManagerConfig):
    """nerfstudio's plain datamanager, with a capture that was checked."""

    _target: Type = field(default_factory=lambda: CaptureDataManager)


class CaptureDataManager(ValidatedDataMixin, VanillaDataManager):
    """Rays through pixels of the photos."""

    config: CaptureDataManagerConfig


@dataclass
class PhotoDataManagerConfig(FullImageDatamanagerConfig):
    """nerfstudio's datamanager of whole photos, with a capture that was checked."""

    _target: Type = field(default_factory=lambda: PhotoDataManager)


class PhotoDataManager(ValidatedDataMixin, FullImageDatamanager):
    """Whole photos, without lens distortion, and their cameras."""

    config: PhotoDataManagerConfig


def check_cameras(outputs, data: Path) -> None:
    """Raises UserError, naming the photo, for a capture without photos or with an unusable camera."""
    if len(outputs.image_filenames) == 0:
        raise UserError(
            f"{data} lists no photos: its transforms.json needs frames with file_path and transform_matrix."
        )
    cameras = outputs.cameras
    # A lone camera may have its numbers without the batch's axis.
    parts = (cameras.camera_to_worlds, cameras.fx, cameras.fy, cameras.cx, cameras.cy)
    values = torch.cat([part.reshape(len(outputs.image_filenames), -1) for part in parts], dim=-1)
    bad = (~torch.isfinite(values)).any(dim=-1) | (values[:, 12] <= 0)
    if bad.any():
        name = outputs.image_filenames[int(bad.nonzero()[0])]
        raise UserError(f"the camera of {name} has a NaN, an infinite number or no focal length: "
                        f"mend or remove that frame in the transforms file in {data}.")  # fmt: skip


def has_transparent_background(dataset: InputDataset) -> bool:
    """Whether the first photo has an alpha channel with fully transparent pixels."""
    with Image.open(dataset.image_filenames[0]) as image:
        return image.mode in ("RGBA", "LA") and image.getchannel("A").getextrema()[0] == 0
