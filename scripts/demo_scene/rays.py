"""Which triangle a ray meets first, with embreex or, where that is not installed, with numpy.

Letters in array shapes: N rays or points, F triangles, P pairs of a point and a triangle, C cells.
"""

import sys
from typing import Protocol

import numpy as np
import trimesh

CELLS = 192  # a side of NumpyRays' grids
CHUNK = 1 << 15  # points that are tested at a time, which bounds the memory


class Rays(Protocol):
    """What the demo scene needs of a ray tracer."""

    def first_hits(self, origin: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The triangle (N,) that unit rays (N, 3) from one origin (3,) meet first, -1 for none.

        Also the weights (N, 3) of its corners at that point; they mean nothing where there is no triangle.
        """
        ...

    def reach_light(self, points: np.ndarray) -> np.ndarray:
        """Whether (N,) nothing lies between the points (N, 3) and a light at infinity."""
        ...


def make_rays(mesh: trimesh.Trimesh, light: np.ndarray) -> Rays:
    """The fastest ray tracer at hand.

    Args:
        mesh: The whole scene.
        light: Unit vector (3,) toward the light.
    """
    try:
        return EmbreeRays(mesh, light)
    except ImportError:
        print(
            "embreex is not installed (it has no wheel for Linux on ARM): numpy traces the rays, which gives the same "
            "images and takes minutes instead of seconds.",
            file=sys.stderr,
        )
        return NumpyRays(mesh, light)


class EmbreeRays:
    """Rays with Intel's Embree, in single precision.

    Args:
        mesh: The whole scene.
        light: Unit vector (3,) toward the light.

    Raises:
        ImportError: embreex is not installed.
    """

    def __init__(self, mesh: trimesh.Trimesh, light: np.ndarray):
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene

        self.scene, self.light = EmbreeScene(), light.astype(np.float32)
        TriangleMesh(self.scene, mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32))

    def first_hits(self, origin: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        start = np.broadcast_to(origin.astype(np.float32), directions.shape)
        found = self.scene.run(np.ascontiguousarray(start), directions.astype(np.float32), output=True)
        u, v = found["u"], found["v"]
        return found["primID"], np.stack([1 - u - v, u, v], axis=1)

    def reach_light(self, points: np.ndarray) -> np.ndarray:
        rays = np.ascontiguousarray(np.broadcast_to(self.light, points.shape))
        return self.scene.run(points, rays, query="OCCLUDED") < 0


class NumpyRays:
    """Rays with numpy, in double precision.

    Rays of one camera, and rays toward one light, are points of a plane once triangles and rays are projected on it. A
    grid in this plane finds the few triangles that can contain a point.

    Args:
        mesh: The whole scene.
        light: Unit vector (3,) toward the light.
    """

    def __init__(self, mesh: trimesh.Trimesh, light: np.ndarray):
        self.triangles = np.asarray(mesh.triangles, np.float64)
        self.normals = np.asarray(mesh.face_normals, np.float64)
        self.light = light.astype(np.float64)
        self.light_plane = frame(self.light)[:, :2]
        self.light_grid = TriangleGrid(self.triangles @ self.light_plane)

    def first_hits(self, origin: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See ``Rays``.

        Raises:
            ValueError: A part of the scene is beside or behind the origin.
        """
        axes = frame(directions.mean(axis=0))
        corners = (self.triangles - origin) @ axes
        if corners[..., 2].min() <= 0:
            raise ValueError("numpy traces rays of cameras outside of the scene only: move the camera away from it.")
        local = directions @ axes
        grid = TriangleGrid(corners[..., :2] / corners[..., 2:])
        faces, weights = np.full(len(directions), -1), np.zeros((len(directions), 3))
        for ray, face in grid.find(local[:, :2] / local[:, 2:]):
            t = self._distance(np.broadcast_to(origin, (len(ray), 3)), directions[ray], face)
            order = np.lexsort((t, ray))
            ray, nearest = np.unique(ray[order], return_index=True)
            face, t = face[order][nearest], t[order][nearest]
            faces[ray] = face
            weights[ray] = self._weights(origin + t[:, None] * directions[ray], face)
        return faces, weights

    def reach_light(self, points: np.ndarray) -> np.ndarray:
        free = np.ones(len(points), bool)
        for point, face in self.light_grid.find(points @ self.light_plane):
            free[point[self._distance(points[point], self.light, face) > 0]] = False
        return free

    def _distance(self, origins: np.ndarray, directions: np.ndarray, face: np.ndarray) -> np.ndarray:
        """Distance (P,) from origins (P, 3) along unit rays (P, 3) or (3,) to the planes of faces (P,)."""
        normal = self.normals[face]
        return ((self.triangles[face, 0] - origins) * normal).sum(1) / (directions * normal).sum(1)

    def _weights(self, points: np.ndarray, face: np.ndarray) -> np.ndarray:
        """Barycentric weights (N, 3) of points (N, 3) on faces (N,)."""
        a, b, c = self.triangles[face].swapaxes(0, 1)
        normal = np.cross(b - a, c - a)
        area = (normal**2).sum(1)
        second = (np.cross(points - a, c - a) * normal).sum(1) / area
        third = (np.cross(b - a, points - a) * normal).sum(1) / area
        return np.stack([1 - second - third, second, third], axis=1)


class TriangleGrid:
    """Triangles in a plane, sorted into the cells of a square grid.

    Args:
        triangles: Corners (F, 3, 2).
    """

    def __init__(self, triangles: np.ndarray):
        self.triangles = triangles
        self.low = triangles.min(axis=(0, 1))
        self.scale = CELLS / np.maximum(triangles.max(axis=(0, 1)) - self.low, 1e-9)
        low, high = self._cells(triangles.min(axis=1)), self._cells(triangles.max(axis=1))
        spans = high - low + 1
        face, nth = expand(spans.prod(axis=1))
        cell = low[face] + np.stack([nth % spans[face, 0], nth // spans[face, 0]], axis=1)
        keep = self._overlaps(face, cell)
        face, index = face[keep], cell[keep, 1] * CELLS + cell[keep, 0]
        order = np.argsort(index, kind="stable")
        self.faces = face[order]
        self.starts = np.searchsorted(index[order], np.arange(CELLS**2 + 1))

    def find(self, points: np.ndarray):
        """Yields pairs of points and triangles that contain them, as two index arrays (P,), for a part of the points.

        Args:
            points: (N, 2)
        """
        for first in range(0, len(points), CHUNK):
            part = points[first : first + CHUNK]
            cell = self._cells(part)
            start = self.starts[cell[:, 1] * CELLS + cell[:, 0]]
            point, nth = expand(self.starts[cell[:, 1] * CELLS + cell[:, 0] + 1] - start)
            face = self.faces[start[point] + nth]
            edges = edge_values(self.triangles[face], part[point])
            inside = ((edges >= 0).all(axis=1) | (edges <= 0).all(axis=1)) & (edges.sum(axis=1) != 0)
            yield first + point[inside], face[inside]

    def _cells(self, points: np.ndarray) -> np.ndarray:
        """Column and row (N, 2) of the cells that contain points (N, 2); the nearest cell for points outside."""
        return np.clip(np.floor((points - self.low) * self.scale), 0, CELLS - 1).astype(np.int64)

    def _overlaps(self, face: np.ndarray, cell: np.ndarray) -> np.ndarray:
        """Whether (P,) faces (P,) can touch cells (P, 2): no edge has the whole cell on its outer side."""
        corners = self.triangles[face]
        values = edge_values(corners, self.low + (cell + 0.5) / self.scale)
        sides = np.abs(corners[:, [1, 2, 0]] - corners)
        reach = (sides * (0.5 + 1e-6) / self.scale[::-1]).sum(axis=2)
        turn = np.sign(values.sum(axis=1, keepdims=True))
        return (turn * values >= -reach).all(axis=1)


def frame(forward: np.ndarray) -> np.ndarray:
    """A matrix (3, 3) whose columns are two axes across a direction (3,), and the direction as a unit vector."""
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, np.eye(3)[np.argmin(np.abs(forward))])
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward], axis=1)


def expand(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each index its number of repetitions (N,): all repeated indices (P,), and 0, 1, ... within each (P,)."""
    index = np.repeat(np.arange(len(counts)), counts)
    return index, np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)


def edge_values(triangles: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Twice the signed areas (P, 3) that points (P, 2) make with the edges of triangles (P, 3, 2)."""
    sides = triangles[:, [1, 2, 0]] - triangles
    away = points[:, None] - triangles
    return sides[..., 0] * away[..., 1] - sides[..., 1] * away[..., 0]
