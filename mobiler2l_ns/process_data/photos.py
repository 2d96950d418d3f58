"""Photos of a folder, copied upright and in smaller sizes, with the names that ns-process-data gives them."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Tuple

from nerfstudio.process_data.process_data_utils import ALLOWED_RAW_EXTS, list_images
from PIL import Image, ImageFilter, ImageOps

from mobiler2l_ns.errors import UserError, first_line
from mobiler2l_ns.training.progress import progress_of

# A phone that stores these also exports JPEG.
UNREADABLE_EXTS = (".heic", ".heif", ".avif", ".dng", ".arw", ".nef", *ALLOWED_RAW_EXTS)
# nerfstudio's dataset reads these as they are.
COPIED_FORMATS = {"JPEG": (".jpg", ("RGB", "L")), "PNG": (".png", ("RGB", "RGBA", "L"))}
EXIF_ORIENTATION = 0x0112
JPEG_QUALITY = 95
MASK_MARGIN = 5


@dataclass
class Photo:
    """A photo of a capture.

    Attributes:
        name: Its file in ``images``.
        source: Its file in the user's folder, relative to it, or the time in the user's video.
        width, height: Its size in pixels, upright.
    """

    name: str
    source: str
    width: int
    height: int


def find_photos(data: Path, output_dir: Path) -> List[Path]:
    """Photos below a folder, sorted by name, without smaller copies of them and without what is in ``output_dir``.

    Raises:
        UserError: There are none.
    """
    found = [
        path
        for path in list_images(data)
        if path.suffix.lower() not in UNREADABLE_EXTS
        and output_dir.resolve() not in path.resolve().parents
        and not any(re.fullmatch(r"images_\d+", part) for part in path.relative_to(data).parts[:-1])
    ]
    if not found:
        others = sorted({path.suffix.lower() for path in data.rglob("*") if path.is_file()})
        raise UserError(
            f"{data} has no photos, only {', '.join(others) or 'empty folders'}: pass a folder of JPEG or PNG photos "
            "(a phone exports HEIC photos as JPEG), or a video."
        )
    return found


def import_photos(sources: List[Path], data: Path, images: Path, num_downscales: int) -> List[Photo]:
    """Copies photos upright to ``images``, and halves their sizes in ``images_2``, ``images_4`` and so on.

    Raises:
        UserError: A photo cannot be read.
    """
    photos: List[Photo] = []

    def copy(item) -> Photo:
        number, source = item
        name = copy_photo(source, images, f"frame_{number:05d}")
        width, height = write_smaller(images / name, num_downscales)
        return Photo(name, source.relative_to(data).as_posix(), width, height)

    with progress_of("photos", len(sources)) as advance, ThreadPoolExecutor() as pool:
        for photo in pool.map(copy, enumerate(sources, start=1)):
            photos.append(photo)
            advance(len(photos))
    return photos


def copy_photo(source: Path, images: Path, stem: str) -> str:
    """Copies a photo byte for byte if it is an upright JPEG or PNG, else encodes it anew. Returns the copy's name.

    Raises:
        UserError: The file is damaged or has more than 8 bits a channel.
    """
    try:
        with Image.open(source) as image:
            image.load()
            suffix, modes = COPIED_FORMATS.get(image.format or "", ("", ()))
            upright = image.getexif().get(EXIF_ORIENTATION, 1) == 1
            if upright and image.mode in modes and "transparency" not in image.info:
                shutil.copyfile(source, images / f"{stem}{suffix}")
                return f"{stem}{suffix}"
            if image.mode.startswith(("I", "F")):
                raise UserError(f"the photo {source} has more than 8 bits a channel: export it as a JPEG.")
            upright_image = ImageOps.exif_transpose(image)
            if upright_image.has_transparency_data or image.format == "PNG":
                mode = "RGBA" if upright_image.has_transparency_data else "RGB"
                upright_image.convert(mode).save(images / f"{stem}.png")
                return f"{stem}.png"
            # COLMAP reads the focal length from the EXIF data.
            exif = upright_image.getexif()
            upright_image.convert("RGB").save(images / f"{stem}.jpg", quality=JPEG_QUALITY, exif=exif)
            return f"{stem}.jpg"
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"the photo {source} cannot be read ({first_line(error)}): remove it, or export it again."
        ) from error


def write_smaller(photo: Path, num_downscales: int) -> Tuple[int, int]:
    """Writes a photo at 1/2, 1/4, ... of its size into the folders beside its own. Returns its width and height."""
    with Image.open(photo) as image:
        size = image.size
        for factor in (2**power for power in range(1, num_downscales + 1)):
            folder = photo.parent.with_name(f"{photo.parent.name}_{factor}")
            folder.mkdir(exist_ok=True)
            small_size = (max(1, size[0] // factor), max(1, size[1] // factor))
            small = image.resize(small_size, Image.Resampling.LANCZOS, reducing_gap=3)
            small.save(folder / photo.name, quality=JPEG_QUALITY)
    return size


def write_mask(photo: Path, masks: Path) -> Optional[Path]:
    """Writes the mask of a transparent photo as COLMAP reads it: features lie where it is not black.

    The outline of an object is no point of its surface, so the mask keeps a margin from it.
    """
    with Image.open(photo) as image:
        if image.mode != "RGBA":
            return None
        masks.mkdir(exist_ok=True)
        opaque = image.getchannel("A").point(lambda alpha: 255 * (alpha > 127))
        opaque.filter(ImageFilter.MinFilter(MASK_MARGIN)).save(masks / f"{photo.name}.png")
    return masks / f"{photo.name}.png"
