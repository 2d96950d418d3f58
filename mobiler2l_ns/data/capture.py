"""The user's capture, checked when it is read, for the datamanagers of teachers and student alike."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Type

import numpy as np
import torch
from jaxtyping import UInt8
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager, FullImageDatamanagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from PIL import Image

from mobiler2l_ns.compat import with_batch_axis
from mobiler2l_ns.errors import UserError, first_line

# What nerfstudio's data parsers raise for missing files, missing keys, wrong types and their own assertions.
PARSER_ERRORS = (OSError, LookupError, TypeError, AssertionError, ValueError, AttributeError)
# PIL raises SyntaxError for some broken PNG files, nerfstudio AssertionError for other than 3 or 4 channels of 8 bits.
PHOTO_ERRORS = (OSError, SyntaxError, AssertionError)


class CaptureDataset(InputDataset):
    """nerfstudio's dataset of photos; a photo that cannot be read is named."""

    def get_numpy_image(self, image_idx: int) -> UInt8[np.ndarray, "H W C"]:
        """The photo as it is in its file.

        Raises:
            UserError: The file is missing or is no image.
        """
        try:
            return super().get_numpy_image(image_idx)
        except PHOTO_ERRORS as error:
            raise unreadable_photo(self.image_filenames[image_idx], error) from error


# To the type checker the mixin is a datamanager; both datamanagers below have the methods that it calls.
_Base = VanillaDataManager[CaptureDataset] if TYPE_CHECKING else object


class ValidatedDataMixin(_Base):
    """Mixin for nerfstudio's datamanagers: a capture that cannot be used ends the command with one sentence.

    It tells models through the train set's metadata whether the photos have a transparent background
    (``transparent_background``), which separates bounded from unbounded scenes.
    """

    def __init__(self, config, *args, **kwargs):
        data = Path(config.data if config.data is not None else config.dataparser.data)
        if not data.exists():
            raise UserError(f"there is no {data}: pass the folder of a posed capture with --data.")
        try:
            super().__init__(config, *args, **kwargs)
        except PARSER_ERRORS as error:
            if self.eval_dataset is not None:
                raise  # the capture was read; what failed came after it
            raise UserError(
                f"{data} cannot be read as {parser_name(config.dataparser)} ({first_line(error)}): it needs photos "
                "with poses in transforms.json; make them with ns-process-mobiler2l, or name another data parser at "
                "the end of the command, e.g. blender-data."
            ) from error

    def create_train_dataset(self) -> InputDataset:
        """The train split, checked."""
        check_cameras(self.train_dataparser_outputs, self.get_datapath())
        dataset = super().create_train_dataset()
        to_single_precision(dataset.cameras)
        dataset.metadata["transparent_background"] = has_transparent_background(dataset)
        return dataset

    def create_eval_dataset(self) -> InputDataset:
        """The held-out split, checked."""
        dataset = super().create_eval_dataset()
        if len(dataset) == 0:
            raise UserError(f"{self.get_datapath()} has too few photos to hold one out: take at least ten.")
        dataset.cameras = with_batch_axis(dataset.cameras)
        check_cameras(dataset._dataparser_outputs, self.get_datapath())
        to_single_precision(dataset.cameras)
        return dataset


@dataclass
class CaptureDataManagerConfig(VanillaDataManagerConfig):
    """nerfstudio's plain datamanager, with a capture that was checked."""

    _target: Type = field(default_factory=lambda: CaptureDataManager)


class CaptureDataManager(ValidatedDataMixin, VanillaDataManager[CaptureDataset]):
    """Rays through pixels of the photos."""

    config: CaptureDataManagerConfig


@dataclass
class PhotoDataManagerConfig(FullImageDatamanagerConfig):
    """nerfstudio's datamanager of whole photos, with a capture that was checked."""

    _target: Type = field(default_factory=lambda: PhotoDataManager)


class PhotoDataManager(ValidatedDataMixin, FullImageDatamanager[CaptureDataset]):
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


def to_single_precision(cameras: Cameras) -> None:
    """Makes float32 of all numbers of cameras, in place.

    blender-data's focal lengths are float64, and so are the poses of some captures. Networks and `ns-render spiral`
    fail on such numbers.
    """
    for name in ("camera_to_worlds", "fx", "fy", "cx", "cy", "distortion_params"):
        values = getattr(cameras, name)
        if values is not None:
            setattr(cameras, name, values.float())


def has_transparent_background(dataset: InputDataset) -> bool:
    """Whether the first photo has an alpha channel with fully transparent pixels."""
    path = dataset.image_filenames[0]
    try:
        with Image.open(path) as image:
            return image.mode in ("RGBA", "LA") and image.getchannel("A").getextrema()[0] == 0
    except PHOTO_ERRORS as error:
        raise unreadable_photo(path, error) from error


def unreadable_photo(path: Path, error: Exception) -> UserError:
    """The sentence for a photo that cannot be read."""
    return UserError(f"the photo {path} cannot be read ({error}): put it back, or remove it from the capture.")


def parser_name(dataparser: DataParserConfig) -> str:
    """The name of a data parser on the command line of ns-train; its class for one that is not registered."""
    from nerfstudio.configs.dataparser_configs import all_dataparsers  # discovers plugins, so not at import

    names = {type(config): name for name, config in all_dataparsers.items()}
    return names.get(type(dataparser), type(dataparser).__name__)
