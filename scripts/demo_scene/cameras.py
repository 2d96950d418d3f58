"""Where the demo scene is seen from: cameras on a shell, and the rays of their pixels.

Cameras follow Blender: x right, y up, looking along -z. Image row i grows downward and column j to the right.
H, W: image height and width; S: samples per pixel.
"""

import numpy as np

CAMERA_ANGLE_X = 0.6911112  # horizontal field of view in radians, as in NeRF-synthetic
TARGET = np.array([0.0, 0.0, 0.1])  # the point that every camera looks at


def look_at(position: np.ndarray) -> np.ndarray:
    """Camera-to-world matrix (4, 4) of a camera at `position` (3,) that looks at TARGET with z up."""
    back = (position - TARGET) / np.linalg.norm(position - TARGET)
    right = np.cross([0, 0, 1], back)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3] = np.stack([right, np.cross(back, right), back, position], axis=1)
    return matrix


def cameras(count: int, spread: bool, rng: np.random.Generator) -> list[np.ndarray]:
    """Camera-to-world matrices on a shell about TARGET, 15 to 70 degrees up; `spread` lays them on a spiral."""
    jitter, turn = rng.uniform(size=count), rng.uniform(size=count)
    if spread:
        jitter = (np.arange(count) + jitter) / count
        turn = np.arange(count) * (np.sqrt(5) - 1) / 2 + 0.02 * turn
    sine = np.sin(np.radians(15)) + jitter * (np.sin(np.radians(70)) - np.sin(np.radians(15)))
    cosine, turn, radius = np.sqrt(1 - sine**2), 2 * np.pi * turn, rng.uniform(3.9, 4.1, size=count)
    shell = np.stack([cosine * np.cos(turn), cosine * np.sin(turn), sine], axis=1) * radius[:, None]
    return [look_at(position) for position in TARGET + shell]


def pixel_rays(matrix: np.ndarray, resolution: int, inside: np.ndarray) -> np.ndarray:
    """Unit rays (S * H * W, 3) in the world, through the points `inside` (S, H, W, 2) each pixel, (x, y) in 0..1."""
    focal = 0.5 * resolution / np.tan(0.5 * CAMERA_ANGLE_X)
    x = (np.arange(resolution) + inside[..., 0] - resolution / 2) / focal
    y = -(np.arange(resolution)[:, None] + inside[..., 1] - resolution / 2) / focal
    rays = np.stack([x, y, -np.ones_like(x)], axis=-1).reshape(-1, 3) @ matrix[:3, :3].T
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)
