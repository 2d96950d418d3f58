"""Ray-traces a toy island as a small capture in the NeRF-synthetic ("blender") format.

The scene is built from triangles and procedural paint, so nothing has to be downloaded and the exact depth is known.
World axes: z is up and the grass lies at z = 0; lengths are in scene units and everything fits in [-1.2, 1.2]^3.
Cameras follow Blender: x right, y up, looking along -z. Image row i grows downward and column j to the right.

Letters in array shapes: N rays or points, F triangles, H and W image height and width, S samples per pixel.

    python scripts/make_demo_scene.py --output data/demo
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import trimesh
import tyro
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from PIL import Image
from rich.progress import track
from toy_island import Part, diorama

CAMERA_ANGLE_X = 0.6911112  # horizontal field of view in radians, as in NeRF-synthetic
TARGET = np.array([0.0, 0.0, 0.1])  # the point that every camera looks at
FORMAT = 1  # raised whenever the scene itself changes, so that an older capture is not taken for the present one

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
        self.embree = EmbreeScene()
        TriangleMesh(self.embree, self.mesh.vertices.astype(np.float32), self.mesh.faces.astype(np.int32))
        self.gloss, self.shininess, self.glow = (
            np.array([getattr(p, name) for p in parts], np.float32) for name in ("gloss", "shininess", "glow")
        )

    def distance(self, origin: np.ndarray, directions: np.ndarray, face: np.ndarray) -> np.ndarray:
        """Distance (N,) along unit rays (N, 3) to the planes of the faces (N,) they hit, in double precision."""
        normal = self.face_normals[face]
        return ((self.triangles[face, 0] - origin) * normal).sum(1) / (directions * normal).sum(1)

    def hits(self, origin: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Traces unit rays (N, 3) from one origin (3,): the face hit (N,), -1 for none, and its weights (N, 3)."""
        start = np.broadcast_to(origin.astype(np.float32), directions.shape)
        found = self.embree.run(np.ascontiguousarray(start), directions.astype(np.float32), output=True)
        u, v = found["u"], found["v"]
        return found["primID"], np.stack([1 - u - v, u, v], axis=1)

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
        rays = np.ascontiguousarray(np.broadcast_to(SUN, (len(toward), 3)))
        lit[toward] = self.embree.run(points[toward], rays, query="OCCLUDED") < 0
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


def render(scene: Scene, matrix: np.ndarray, resolution: int, samples: int, rng: np.random.Generator) -> np.ndarray:
    """One picture (H, W, 4), uint8 sRGB with straight alpha, from one random ray in each cell of a square grid."""
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


def write_split(scene: Scene, folder: Path, split: str, count: int, settings: dict) -> None:
    """Renders one split into `folder`, with its transforms file; the test split also gets depth."""
    rng = np.random.default_rng([settings["seed"], ("train", "val", "test").index(split)])
    (folder / split).mkdir()
    frames = []
    shots = list(enumerate(cameras(count, split == "train", rng)))
    for k, matrix in track(shots, description=f"{split:>5}"):
        name = f"{split}/r_{k:03d}"
        picture = render(scene, matrix, settings["resolution"], settings["samples"], rng)
        Image.fromarray(picture).save(folder / f"{name}.png")
        if split == "test":
            np.save(folder / f"{name}_depth.npy", centre_depth(scene, matrix, settings["resolution"]))
        frames.append({"file_path": f"./{name}", "transform_matrix": matrix.tolist()})
    transforms = {"camera_angle_x": CAMERA_ANGLE_X, "frames": frames}
    (folder / f"transforms_{split}.json").write_text(json.dumps(transforms, indent=1))


def is_done(output: Path, settings: dict, overwrite: bool) -> bool:
    """Whether `output` already holds this capture; raises FileExistsError if it holds what must not be replaced."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    record = output / "scene.json"
    if not record.is_file():
        raise FileExistsError(f"{output} exists and is not a demo scene: choose another --output.")
    if record.read_text() == json.dumps(settings):
        return True
    if not overwrite:
        raise FileExistsError(f"{output} holds a demo scene with other settings: pass --overwrite to replace it.")
    return False


def make_demo_scene(
    output: Path,
    resolution: int = 160,
    num_train: Annotated[int, tyro.conf.arg(name="train")] = 120,
    num_val: Annotated[int, tyro.conf.arg(name="val")] = 8,
    num_test: Annotated[int, tyro.conf.arg(name="test")] = 16,
    samples: int = 4,
    seed: int = 0,
    overwrite: bool = False,
) -> bool:
    """Renders a toy island in the NeRF-synthetic format, unless it is there already.

    Args:
        output: Folder to make.
        resolution: Width and height of the square pictures, in pixels.
        num_train: Number of training views, spread evenly.
        num_val: Number of validation views, at random.
        num_test: Number of test views, at random, with depth.
        samples: Rays per pixel, a square number.
        seed: Seed of camera positions and sub-pixel jitter.
        overwrite: Replace a demo scene that has other settings.

    Returns:
        Whether anything was rendered.

    Raises:
        FileExistsError: If `output` holds something else and may not be replaced.
        ValueError: If `samples` is not a square number.
    """
    if samples < 1 or round(samples**0.5) ** 2 != samples:
        raise ValueError(f"--samples must be a square number such as 1, 4 or 9, not {samples}.")
    counts = {"train": num_train, "val": num_val, "test": num_test}
    settings = {"format": FORMAT, "resolution": resolution, **counts, "samples": samples, "seed": seed}
    output = Path(output).resolve()
    if is_done(output, settings, overwrite):
        print(f"{output} is already there with these settings.")
        return False
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        scene = Scene(diorama())
        scene.mesh.export(partial / "geometry.ply")
        for split, count in counts.items():
            write_split(scene, partial, split, count, settings)
        (partial / "scene.json").write_text(json.dumps(settings))
        if output.exists():
            shutil.rmtree(output)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{output} is ready.")
    return True


def main() -> int:
    """Reads the command line; returns the exit code."""
    try:
        tyro.cli(make_demo_scene)
    except (FileExistsError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
