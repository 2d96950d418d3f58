"""Shapes and paints of the demo scene: triangle meshes with procedural colours.

z is up. N: points on a surface.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import trimesh
from trimesh.creation import cylinder, revolve

Paint = Callable[[np.ndarray], np.ndarray]


def rgb(code: str) -> np.ndarray:
    """Turns a hex code into an sRGB colour (3,) in 0..1."""
    return np.frombuffer(bytes.fromhex(code), np.uint8).astype(np.float32) / 255


WHITE, CREAM, DARK, WOOD = rgb("f7f4ec"), rgb("f4e3b8"), rgb("2b2d42"), rgb("8a5a34")
RED, ORANGE, YELLOW, GREEN = rgb("e0303a"), rgb("f78a1d"), rgb("ffd02e"), rgb("2fa84f")
BLUE, SKY, PURPLE, PINK = rgb("2463d6"), rgb("58b8f0"), rgb("7b3fc0"), rgb("f560a0")


@dataclass
class Part:
    """A mesh in one paint; `matrix` (4, 4) takes the part's own coordinates, which the paint sees, to the world."""

    mesh: trimesh.Trimesh
    paint: Paint | np.ndarray
    gloss: float = 0.0  # strength of the highlight and of the sky's mirror image, 0..1
    shininess: float = 40.0  # Blinn-Phong exponent
    glow: float = 0.0  # light given off, as a multiple of the paint
    matrix: np.ndarray = field(default_factory=lambda: np.eye(4))


def place(parts: list[Part], x: float, y: float, z: float = 0.0, spin: float = 0.0, size: float = 1.0) -> list[Part]:
    """Scales parts about their origin, turns them about z by `spin` degrees, and moves them to (x, y, z)."""
    matrix = np.array(trimesh.transformations.rotation_matrix(np.radians(spin), [0, 0, 1]))
    matrix[:3, :3] *= size
    matrix[:3, 3] = x, y, z
    for part in parts:
        part.matrix = matrix @ part.matrix
    return parts


def moved(mesh: trimesh.Trimesh, *offset: float) -> trimesh.Trimesh:
    """Moves a mesh by an offset (x, y, z) and returns it."""
    return mesh.apply_translation(offset)


def lathe(*profile: tuple[float, float], sections: int = 48) -> trimesh.Trimesh:
    """Turns a profile of (radius, z) points, listed from the bottom up, about the z axis."""
    return revolve(np.array(profile), sections=sections)


def rod(start: Sequence[float] | np.ndarray, end: Sequence[float] | np.ndarray, radius: float) -> trimesh.Trimesh:
    """Makes a thin round bar between two points."""
    return cylinder(radius, segment=[start, end], sections=12)


def hull(*points: tuple) -> trimesh.Trimesh:
    """Makes the convex solid with these corners."""
    return trimesh.convex.convex_hull(np.array(points, float))


def joined(*meshes: trimesh.Trimesh) -> trimesh.Trimesh:
    """Merges meshes that share a paint."""
    return trimesh.util.concatenate(list(meshes))


def cycle(index: np.ndarray, *colours: np.ndarray) -> np.ndarray:
    """Picks colours (N, 3) by a whole-numbered index (N,), going round when it runs out."""
    return np.stack(colours)[index.astype(int) % len(colours)]


def stripes(axis: int, width: float, *colours: np.ndarray) -> Paint:
    """Bands across one axis, each `width` wide."""
    return lambda p: cycle(np.floor(p[:, axis] / width), *colours)


def gores(count: int, *colours: np.ndarray) -> Paint:
    """Segments like those of a beach ball: `count` of them round the z axis."""
    return lambda p: cycle(np.floor(np.arctan2(p[:, 1], p[:, 0]) / (2 * np.pi) * count), *colours)


def checker(width: float, *colours: np.ndarray) -> Paint:
    """Squares seen from above, `width` wide."""
    return lambda p: cycle(np.floor(p[:, 0] / width) + np.floor(p[:, 1] / width), *colours)


def rings(width: float, *colours: np.ndarray) -> Paint:
    """Rings about the z axis, each `width` wide."""
    return lambda p: cycle(np.floor(np.hypot(p[:, 0], p[:, 1]) / width), *colours)


def ground_paint(p: np.ndarray) -> np.ndarray:
    """Mown grass in two greens, then a ring of sand."""
    grass = cycle(np.floor(p[:, 1] / 0.12), rgb("79c74f"), rgb("68b844"))
    return np.where((np.hypot(p[:, 0], p[:, 1]) < 0.81)[:, None], grass, rgb("f2d694"))


def brick_paint(p: np.ndarray) -> np.ndarray:
    """House walls: two-tone brick with a door in the front (-y) and windows all round."""
    x, y, z = p.T
    front, side = y < -0.169, np.abs(x) > 0.219
    row = np.floor(z / 0.06)
    colour = cycle(np.floor((x + y) / 0.12 + row / 2), rgb("f6c26b"), rgb("f0ad4e"))
    along = np.where(side, np.abs(y), np.where(front, np.abs(np.abs(x) - 0.135), np.abs(x)))
    reach = np.maximum(along, np.abs(z - 0.16))
    colour[reach < 0.065] = WHITE
    colour[reach < 0.048] = rgb("3f7fc4")
    colour[front & (np.abs(x) < 0.055) & (z < 0.19)] = rgb("1f7a6d")
    return colour


def wood_paint(p: np.ndarray) -> np.ndarray:
    """Wood grain: stretched rings about a line along y, as in a dish turned from one block."""
    grain = np.sin(40 * np.hypot(p[:, 0] * 0.35, p[:, 2] * 1.6 + 0.5))
    return WOOD + 0.1 * grain[:, None] * np.array([1, 0.8, 0.55], np.float32)


def dots_paint(p: np.ndarray) -> np.ndarray:
    """A red cap with white dots: one on top and five round it."""
    turn = np.arctan2(p[:, 1], p[:, 0]) / (2 * np.pi) * 5
    radius = np.hypot(p[:, 0], p[:, 1])
    away = np.hypot((turn - np.round(turn)) * 2 * np.pi / 5 * radius, radius - 0.075)
    return np.where(((away < 0.026) | (radius < 0.026))[:, None], WHITE, RED)
