"""The demo scene's geometry and paint: a toy island in a dish, as triangles with procedural colours.

World axes: z is up and the grass lies at z = 0; everything fits in [-1.2, 1.2]^3. ``diorama`` puts it together.

N: points on a surface.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import trimesh
from trimesh.creation import box, cylinder, icosphere, revolve, torus

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
    matrix = trimesh.transformations.rotation_matrix(np.radians(spin), [0, 0, 1])
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


def rod(start: tuple, end: tuple, radius: float) -> trimesh.Trimesh:
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


def island() -> list[Part]:
    """A wooden dish of water with a grassy island in it."""
    side = (0, -0.3), (0.8, -0.3), (0.95, -0.26), (1.14, -0.08), (1.15, -0.02), (1.1, -0.02), (1.1, -0.1)
    land = lathe((0.97, -0.1), (0.9, -0.035), (0.83, -0.005), (0.8, 0), (0, 0), sections=96)
    water = lathe((1.105, -0.06), (0, -0.06), sections=96)
    return [
        Part(lathe(*side, sections=96), wood_paint, 0.3),
        Part(water, rings(0.06, rgb("1f8fd0"), rgb("2fa2dd")), 0.6, 300),
        Part(land, ground_paint),
    ]


def house() -> list[Part]:
    """A brick cottage with a tiled roof, a chimney and a ladder against its side."""
    profile = (-0.17, 0), (0.17, 0), (-0.17, 0.28), (0.17, 0.28), (0, 0.43)
    gable = hull(*[(x, y, z) for x in (-0.22, 0.22) for y, z in profile])
    roof = hull(*[(x, y, z) for x in (-0.27, 0.27) for y, z in ((-0.23, 0.25), (0.23, 0.25), (0, 0.46))])
    chimney = moved(box((0.08, 0.08, 0.22)), -0.13, 0.09, 0.43)
    foot, head = np.array([0.42, 0, 0]), np.array([0.28, 0, 0.42])
    near, far = np.array([0, -0.13, 0]), np.array([0, -0.02, 0])
    rungs = [foot + t * (head - foot) for t in np.linspace(0.15, 0.9, 5)]
    ladder = [rod(foot + y, head + y, 0.011) for y in (near, far)] + [rod(r + near, r + far, 0.009) for r in rungs]
    return [
        Part(gable, brick_paint),
        Part(roof, stripes(2, 0.07, rgb("c8323c"), rgb("a32634")), 0.1),
        Part(chimney, stripes(2, 0.055, rgb("9c5240"), rgb("c98f74"))),
        Part(joined(*ladder), rgb("b98a4e")),
    ]


def lighthouse() -> list[Part]:
    """A striped tower with a gallery and a lit lamp room."""
    tower = lathe((0.16, 0), (0.105, 0.62))
    top = lathe((0.105, 0.6), (0.15, 0.62), (0.15, 0.65), (0, 0.65))
    lamp = lathe((0.075, 0.65), (0.075, 0.77))
    roof = lathe((0.0, 0.76), (0.115, 0.76), (0.0, 0.9))
    return [
        Part(tower, stripes(2, 0.125, WHITE, RED), 0.15),
        Part(joined(top, roof, moved(icosphere(2, radius=0.022), 0, 0, 0.905)), DARK, 0.4),
        Part(lamp, gores(8, YELLOW, rgb("ffe98a")), 0.3, glow=0.7),
    ]


def rainbow() -> list[Part]:
    """An arch in five bands, standing across x."""
    corners = np.array([(0.2125, -0.045), (0.3845, -0.045), (0.3845, 0.045), (0.2125, 0.045), (0.2125, -0.045)])
    arch = Part(revolve(corners, angle=np.pi, sections=48), rings(0.035, RED, PURPLE, BLUE, GREEN, YELLOW), 0.3)
    arch.matrix = trimesh.transformations.rotation_matrix(np.pi / 2, [1, 0, 0])
    return [arch]


def conifer() -> list[Part]:
    """A fir of three tiers on a trunk."""
    tiers = [lathe((0, z), (r, z), (0, z + 0.2)) for z, r in ((0.09, 0.145), (0.19, 0.115), (0.29, 0.085))]
    needles = stripes(2, 0.1, rgb("12694a"), rgb("1a8059"))
    return [Part(rod((0, 0, 0), (0, 0, 0.1), 0.032), WOOD), Part(joined(*tiers), needles)]


def blossom(colour: np.ndarray) -> list[Part]:
    """A round tree whose crown is three balls of one colour."""
    balls = [(0, 0, 0.27, 0.12), (0.07, 0.04, 0.2, 0.085), (-0.06, -0.05, 0.21, 0.085)]
    crown = joined(*[moved(icosphere(3, radius=r), x, y, z) for x, y, z, r in balls])
    return [Part(rod((0, 0, 0), (0, 0, 0.2), 0.028), WOOD), Part(crown, colour)]


def mushroom() -> list[Part]:
    """A toadstool with a dotted cap."""
    angles = np.linspace(0, np.pi / 2, 10)
    cap = lathe((0, 0.1), *zip(0.11 * np.cos(angles), 0.1 + 0.085 * np.sin(angles), strict=True))
    return [Part(lathe((0.045, 0), (0.032, 0.11)), CREAM), Part(cap, dots_paint, 0.4)]


def fence() -> list[Part]:
    """White pickets with two rails, following the edge of the grass."""
    at = [(0.75 * np.cos(a), 0.75 * np.sin(a)) for a in np.radians(np.linspace(18, 102, 12))]
    posts = [rod((x, y, 0), (x, y, 0.15), 0.014) for x, y in at]
    rails = [rod((*a, z), (*b, z), 0.01) for a, b in zip(at, at[1:], strict=False) for z in (0.06, 0.115)]
    return [Part(joined(*posts, *rails), WHITE)]


def lamp_post() -> list[Part]:
    """A thin post with a glowing globe."""
    post = lathe((0, 0), (0.045, 0), (0.045, 0.02), (0.013, 0.05), (0.013, 0.42), (0.04, 0.43), (0, 0.43))
    return [Part(post, DARK, 0.4), Part(moved(icosphere(3, radius=0.05), 0, 0, 0.47), rgb("fff0a8"), glow=0.6)]


def boat() -> list[Part]:
    """A sailing boat heading along x."""
    deck = [(-0.15, -0.06, 0.075), (-0.15, 0.06, 0.075), (0.05, 0.07, 0.075), (0.05, -0.07, 0.075), (0.19, 0, 0.1)]
    keel = [(-0.12, -0.03, -0.02), (-0.12, 0.03, -0.02), (0.1, 0, -0.02)]
    sail = hull(*[(x, y, z) for y in (-0.005, 0.005) for x, z in ((-0.13, 0.12), (0.025, 0.12), (0.025, 0.42))])
    jib = hull(*[(x, y, z) for y in (-0.004, 0.004) for x, z in ((0.05, 0.14), (0.16, 0.12), (0.05, 0.34))])
    return [
        Part(hull(*deck, *keel), stripes(2, 0.04, RED, WHITE, RED), 0.3),
        Part(sail, stripes(2, 0.075, ORANGE, WHITE)),
        Part(jib, YELLOW),
        Part(rod((0.037, 0, 0.05), (0.037, 0, 0.45), 0.011), WOOD),
    ]


def duck() -> list[Part]:
    """A rubber duck that faces x."""
    body = icosphere(3).apply_scale((0.105, 0.075, 0.06))
    tail = hull((-0.06, 0.04, 0.02), (-0.06, -0.04, 0.02), (-0.05, 0, -0.02), (-0.125, 0, 0.075))
    head = moved(icosphere(3, radius=0.058), 0.06, 0, 0.095)
    bill = moved(icosphere(2).apply_scale((0.034, 0.03, 0.013)), 0.118, 0, 0.086)
    eyes = joined(*[moved(icosphere(2, radius=0.013), 0.1, y, 0.115) for y in (-0.033, 0.033)])
    return [Part(joined(body, tail, head), YELLOW, 0.6, 60), Part(bill, ORANGE, 0.5), Part(eyes, DARK, 0.8)]


def car() -> list[Part]:
    """A toy car that heads along x."""
    body = moved(box((0.3, 0.16, 0.07)), 0, 0, 0.075)
    profile = (-0.12, 0.07, 0.105), (0.08, 0.07, 0.105), (-0.09, 0.06, 0.18), (0.03, 0.06, 0.18)
    cabin = hull(*[(x, side * y, z) for x, y, z in profile for side in (-1, 1)])
    axles = [(x, y, 0.045) for x in (-0.09, 0.09) for y in (-0.08, 0.08)]
    wheels = joined(*[rod((x, y - 0.02, z), (x, y + 0.02, z), 0.045) for x, y, z in axles])
    lights = joined(*[moved(icosphere(2, radius=0.02), 0.15, y, 0.08) for y in (-0.05, 0.05)])
    return [
        Part(body, PURPLE, 0.6),
        Part(cabin, stripes(2, 0.165, rgb("a5dcf5"), WHITE), 0.6),
        Part(wheels, DARK, 0.2),
        Part(lights, YELLOW, 0.5, glow=0.4),
    ]


def balloon() -> list[Part]:
    """A hot-air balloon with its basket on four ropes."""
    angles = np.linspace(-1.05, np.pi / 2, 24)
    skin = lathe((0.055, -0.27), *zip(0.23 * np.cos(angles), 0.23 * np.sin(angles), strict=True))
    ropes = [rod((0.05 * x, 0.05 * y, -0.4), (0.075 * x, 0.075 * y, -0.22), 0.007) for x in (-1, 1) for y in (-1, 1)]
    basket = moved(box((0.12, 0.12, 0.09)), 0, 0, -0.42)
    return [
        Part(skin, gores(8, PINK, WHITE, SKY, WHITE, YELLOW, WHITE, PURPLE, WHITE), 0.3),
        Part(joined(*ropes), DARK),
        Part(basket, checker(0.04, WOOD, rgb("c08a50"))),
    ]


def ball(radius: float, paint: Paint | np.ndarray, gloss: float) -> list[Part]:
    """A ball that rests on z = 0."""
    return [Part(moved(icosphere(4, radius=radius), 0, 0, radius), paint, gloss, 120)]


def diorama() -> list[Part]:
    """The whole scene, each object at its place."""
    plaza = lathe((0.34, -0.01), (0.34, 0.012), (0, 0.012))
    path = moved(box((0.14, 0.3, 0.02)), 0, 0.15, 0)
    ring = torus(0.085, 0.034, major_sections=48, minor_sections=24)
    return [
        *island(),
        *place([Part(plaza, checker(0.085, CREAM, rgb("4a9aa8")), 0.25)], -0.1, -0.3),
        *place([Part(path, checker(0.07, CREAM, rgb("e08a5a")))], 0.08, -0.05, spin=-38),
        *place(house(), 0.31, 0.3, spin=-22),
        *place(lighthouse(), -0.46, 0.4),
        *place(rainbow(), -0.12, -0.3, spin=20),
        *place(conifer(), -0.08, 0.62, size=1.1),
        *place(conifer(), -0.7, 0.12),
        *place(conifer(), 0.68, -0.08, size=1.15),
        *place(blossom(PINK), -0.62, -0.17, spin=70),
        *place(blossom(ORANGE), -0.12, 0.33, spin=-40, size=0.9),
        *place(mushroom(), -0.34, -0.67),
        *place(mushroom(), -0.5, -0.6, size=0.7, spin=30),
        *place(mushroom(), -0.3, 0.1, size=0.8),
        *place(fence(), 0, 0),
        *place(lamp_post(), 0.3, -0.45),
        *place(car(), 0.52, -0.33, spin=-125),
        *place(boat(), 0.42, -0.94, -0.07, spin=20, size=0.95),
        *place(duck(), -0.98, -0.3, -0.03, spin=-80),
        *place([Part(ring, gores(8, RED, WHITE), 0.5, 80)], -0.55, 0.87, -0.045),
        *place(balloon(), 0.02, 0.02, 0.87),
        *place(ball(0.1, gores(6, RED, WHITE, BLUE, WHITE, YELLOW, WHITE), 0.4), 0.12, -0.83, -0.02),
        *place(ball(0.1, BLUE, 0.9), -0.1, -0.27, 0.012),
        *place(ball(0.06, PINK, 0.9), 0.08, -0.48, 0.012),
    ]
