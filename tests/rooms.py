"""Photos of a room with patterned walls from known poses: what structure from motion must find again."""

from pathlib import Path
from typing import List

import numpy as np
from PIL import Image

HALF = 2.0  # the room is [-2, 2]^3
TEXELS = 32  # of the walls' pattern, in a unit of length


def camera_poses(count: int) -> List[np.ndarray]:
    """Camera-to-world matrices (x right, y up, z backwards) on an arc, all looking at a corner of the room."""
    poses = []
    for part in np.linspace(-0.5, 0.5, count):
        position = np.array([1.4 * np.sin(1.2 * part) - 0.6, -0.6 - 0.4 * np.cos(1.2 * part), 0.5 * np.sin(9 * part)])
        backward = position - np.array([2.0, 2.0, 0.0])
        backward /= np.linalg.norm(backward)
        right = np.cross([0.0, 0.0, 1.0], backward)
        right /= np.linalg.norm(right)
        poses.append(np.stack([right, np.cross(backward, right), backward, position], axis=1))
    return poses


def render(pose: np.ndarray, seed: int = 0, width: int = 240, height: int = 180, focal: float = 200.0) -> np.ndarray:
    """A photo of the room; ``seed`` chooses its pattern."""
    x, y = np.meshgrid(np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2)
    rays = np.stack([x / focal, -y / focal, -np.ones_like(x)], axis=-1) @ pose[:, :3].T
    origin = pose[:, 3]
    distances = np.where(rays > 0, HALF - origin, -HALF - origin) / np.where(np.abs(rays) < 1e-9, 1e-9, rays)
    axis = distances.argmin(-1)
    points = origin + rays * distances.min(-1, keepdims=True)
    u = np.choose(axis, [points[..., 1], points[..., 0], points[..., 0]])
    v = np.choose(axis, [points[..., 2], points[..., 2], points[..., 1]])
    wall = 2 * axis + (np.take_along_axis(rays, axis[..., None], -1)[..., 0] > 0)
    patterns = np.random.default_rng(seed).uniform(
        0, 1, (6, 2, int(2 * HALF * TEXELS) + 2, int(2 * HALF * TEXELS) + 2, 3)
    )
    fine = sample(patterns[:, 0], wall, (u + HALF) * TEXELS, (v + HALF) * TEXELS)
    coarse = sample(patterns[:, 1], wall, (u + HALF) * TEXELS / 5, (v + HALF) * TEXELS / 5)
    return (255 * (0.5 * fine + 0.5 * coarse)).round().astype(np.uint8)


def sample(patterns: np.ndarray, wall: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Bilinear samples of the pattern of each pixel's wall."""
    size = patterns.shape[1]
    i, j = (np.clip(np.floor(w).astype(int), 0, size - 2) for w in (u, v))
    a, b = (u - i)[..., None], (v - j)[..., None]
    top = patterns[wall, i, j] * (1 - b) + patterns[wall, i, j + 1] * b
    return top * (1 - a) + (patterns[wall, i + 1, j] * (1 - b) + patterns[wall, i + 1, j + 1] * b) * a


def write_photos(folder: Path, count: int = 12, seed: int = 0, prefix: str = "room") -> List[Path]:
    """JPEG photos of a room, numbered from 0."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{prefix}{number:02d}.jpg" for number in range(count)]
    for path, pose in zip(paths, camera_poses(count)):
        Image.fromarray(render(pose, seed)).save(path, quality=95)
    return paths
