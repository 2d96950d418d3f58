"""Captures in the format of LLFF, as nerfstudio reads them: poses_bounds.npy becomes transforms.json.

nerfstudio's colmap parser reads the sparse/0 of the published scenes, but their reduced photos have other names than
those in it, and COLMAP's poses differ from those of the published figures.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from mobiler2l_ns.errors import UserError

HELD_OUT_EVERY = 8  # each eighth photo, the first among them, is held out of training


def convert_llff(scene: Path, output: Path, reduction: int = 4) -> Path:
    """Writes ``output/transforms.json``, whose photos stay where they are.

    A row of poses_bounds.npy is a matrix (3, 5) and two depths. The columns of the matrix are the camera's down, right
    and backwards, its position, and height, width and focal length in pixels of the whole photos (Mildenhall et al.,
    "Local Light Field Fusion", SIGGRAPH 2019). nerfstudio's cameras are right, up, backwards.

    Args:
        scene: Folder with poses_bounds.npy and images_REDUCTION, or images where that is missing.
        output: Folder for transforms.json.
        reduction: How much smaller the photos are.

    Returns:
        ``output``.

    Raises:
        UserError: Photos and poses do not belong together.
    """
    rows = np.load(scene / "poses_bounds.npy")
    folder = scene / f"images_{reduction}"
    folder = folder if folder.is_dir() else scene / "images"
    photos = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if rows.ndim != 2 or rows.shape[1] != 17 or len(rows) != len(photos):
        raise UserError(
            f"{scene / 'poses_bounds.npy'} has {len(rows)} rows for {len(photos)} photos in {folder}: fetch the scene "
            "again."
        )
    matrices = rows[:, :15].reshape(-1, 3, 5)
    with Image.open(photos[0]) as photo:
        width, height = photo.size
    focal = float(matrices[0, 2, 4]) * width / float(matrices[0, 1, 4])
    frames = []
    for matrix, path in zip(matrices, photos):
        down, right, back, position = matrix[:, :4].T
        pose = np.eye(4)
        pose[:3] = np.stack([right, -down, back, position], axis=1)
        frames.append({"file_path": str(path.resolve()), "transform_matrix": pose.tolist()})
    intrinsics = {"w": width, "h": height, "fl_x": focal, "fl_y": focal, "cx": width / 2, "cy": height / 2}
    output.mkdir(parents=True, exist_ok=True)
    content = {"camera_model": "OPENCV", **intrinsics, "frames": frames}
    (output / "transforms.json").write_text(json.dumps(content, indent=1) + "\n")
    return output
