"""Renders the demo scene: shading of ray hits, whole images and exact depth.

Letters in array shapes: N rays or points, F triangles, H and W image height and width, S samples per pixel.
"""

import numpy as np
import trimesh

from demo_scene.cameras import pixel_rays
from demo_scene.rays import make_rays
from demo_scene.shapes import Part

SUN = np.array([-0.48, -0.50, 0.72], np.float32)  # a unit vector toward the sun
SUN /= np.linalg.norm(SUN)
SUNLIGHT = np.array([0.95, 0.88, 0.74], np.float32)
SKYLIGHT = np.array([0.42, 0.48, 0.58], np.float32)
GROUNDLIGHT = np.array([0.25, 0.22, 0.18], np.float32)
CREASE = np.radians(40)  # edges sharper than this are shaded as edges


class Scene:
    """The parts as flat arrays over triangles, and the ray-tracing index over them."""

    def __init__(self, parts: list[Part]):
        self.parts = parts
        meshes = [trimesh.graph.smooth_shade(p.mesh, angle=CREASE, facet_minarea=None) for p in parts]
        worlds = [mesh.copy().apply_transform(part.matrix) for mesh, part in zip(meshes, parts, strict=True)]
        self.mesh = trimesh.util.concatenate(worlds)
        self.part_of_face = np.repeat(np.arange(len(parts)), [len(m.faces) for m in meshes])
        own = np.concatenate([m.triangles for m in meshes])
        normals = np.concatenate([m.vertex_normals[m.faces] for m in worlds])
        # One (F, 3, 6) table of each corner's own coordinates and world normal: a single look-up serves both.
        self.corners = np.concatenate([own, normals], axis=2).astype(np.float32)
        self.triangles = np.asarray(self.mesh.triangles)
        self.face_normals = np.asarray(self.mesh.face_normals)
        self.rays = make_rays(self.mesh, SUN)
        self.gloss, self.shininess, self.glow = (
            np.array([getattr(p, name) for p in parts], np.float32) for name in ("gloss", "shininess", "glow")
        )

    def distance(self, origin: np.ndarray, directions: np.ndarray, face: np.ndarray) -> np.ndarray:
        """Distance (N,) along unit rays (N, 3) to the planes of the faces (N,) they hit, in double precision."""
        normal = self.face_normals[face]
        return ((self.triangles[face, 0] - origin) * normal).sum(1) / (directions * normal).sum(1)

    def hits(self, origin: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Traces unit rays (N, 3) from one origin (3,): the face hit (N,), -1 for none, and its weights (N, 3)."""
        return self.rays.first_hits(origin, directions)

    def colours(self, origin: np.ndarray, directions: np.ndarray, face: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Shades hits (N,) of unit rays (N, 3); returns sRGB colours (N, 3) in 0..1."""
        corner = np.einsum("nc,nck->nk", weights, self.corners[face])
        normal = corner[:, 3:] / np.linalg.norm(corner[:, 3:], axis=1, keepdims=True)
        part = self.part_of_face[face]
        albedo = np.empty((len(face), 3), np.float32)
        for k in np.unique(part):
            mask, paint = part == k, self.parts[k].paint
            albedo[mask] = paint(corner[mask, :3]) if callable(paint) else paint
        albedo **= 2.2
        flat = self.face_normals[face].astype(np.float32)
        directions = directions.astype(np.float32)
        points = (origin + directions * self.distance(origin, directions, face)[:, None]).astype(np.float32)
        lit = self.lit(points + 2e-3 * flat, flat @ SUN)
        # Ground and neighbours hide more of the sky near the foot of a wall than higher up.
        open_sky = 1 - 0.45 * (1 - np.abs(normal[:, 2])) * np.exp(-np.maximum(points[:, 2], 0) / 0.08)
        up = (0.5 + 0.5 * normal[:, 2:]) * open_sky[:, None]
        light = SUNLIGHT * (lit * np.maximum(normal @ SUN, 0))[:, None] + GROUNDLIGHT + (SKYLIGHT - GROUNDLIGHT) * up
        colour = albedo * (light + self.glow[part, None])
        return np.clip(colour + self.shine(directions, normal, part, lit), 0, 1) ** (1 / 2.2)

    def lit(self, points: np.ndarray, facing: np.ndarray) -> np.ndarray:
        """1 where the sun reaches the points (N, 3), else 0; `facing` (N,) is the cosine of sun and true normal."""
        lit = np.zeros(len(points), np.float32)
        toward = np.flatnonzero(facing > 0)
        lit[toward] = self.rays.reach_light(points[toward])
        return lit

    def shine(self, directions: np.ndarray, normal: np.ndarray, part: np.ndarray, lit: np.ndarray) -> np.ndarray:
        """The sun's highlight (Blinn-Phong) and a faint mirrored sky (Schlick's Fresnel), linear (N, 3)."""
        half = SUN - directions
        half /= np.linalg.norm(half, axis=1, keepdims=True)
        spot = lit * np.maximum((normal * half).sum(1), 0) ** self.shininess[part]
        facing = np.clip(-(normal * directions).sum(1), 0, 1)
        mirrored_z = directions[:, 2] + 2 * facing * normal[:, 2]
        sky = (0.04 + 0.5 * (1 - facing) ** 5) * np.clip(0.5 + mirrored_z, 0, 1)
        return self.gloss[part, None] * (0.7 * spot[:, None] * SUNLIGHT + sky[:, None] * np.array([0.8, 0.9, 1.0]))


def render(scene: Scene, matrix: np.ndarray, resolution: int, samples: int, rng: np.random.Generator) -> np.ndarray:
    """One image (H, W, 4), uint8 sRGB with straight alpha, from one random ray in each cell of a square grid."""
    side = round(samples**0.5)
    cells = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 1, 1, 2)
    rays = pixel_rays(matrix, resolution, (cells + rng.uniform(size=(samples, resolution, resolution, 2))) / side)
    face, weights = scene.hits(matrix[:3, 3], rays)
    hit = face >= 0
    layers = np.zeros((len(rays), 4), np.float32)
    layers[hit, :3] = scene.colours(matrix[:3, 3], rays[hit], face[hit], weights[hit])
    layers[hit, 3] = 1
    # Averaged after the sRGB curve, because that is where readers of the format blend with a background.
    image = layers.reshape(samples, resolution, resolution, 4).mean(axis=0)
    image[..., :3] /= np.maximum(image[..., 3:], 1 / samples)
    return np.round(255 * image).astype(np.uint8)


def centre_depth(scene: Scene, matrix: np.ndarray, resolution: int) -> np.ndarray:
    """Distance (H, W) float32 along the unit ray through each pixel's centre; +inf where it hits nothing."""
    rays = pixel_rays(matrix, resolution, np.full((1, resolution, resolution, 2), 0.5))
    face, _ = scene.hits(matrix[:3, 3], rays)
    depth = np.full(len(rays), np.inf, np.float32)
    depth[face >= 0] = scene.distance(matrix[:3, 3], rays[face >= 0], face[face >= 0])
    return depth.reshape(resolution, resolution)
