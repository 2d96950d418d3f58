"""The demo scene's objects: a toy island in a dish of water.

World axes: z is up and the grass lies at z = 0; everything fits in [-1.2, 1.2]^3. ``diorama`` puts it together.
"""

import numpy as np
import trimesh
from trimesh.creation import box, icosphere, revolve, torus

from demo_scene.shapes import (
    BLUE,
    CREAM,
    DARK,
    GREEN,
    ORANGE,
    PINK,
    PURPLE,
    RED,
    SKY,
    WHITE,
    WOOD,
    YELLOW,
    Paint,
    Part,
    brick_paint,
    checker,
    dots_paint,
    gores,
    ground_paint,
    hull,
    joined,
    lathe,
    moved,
    place,
    rgb,
    rings,
    rod,
    stripes,
    wood_paint,
)


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
    arch.matrix = np.array(trimesh.transformations.rotation_matrix(np.pi / 2, [1, 0, 0]))
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
