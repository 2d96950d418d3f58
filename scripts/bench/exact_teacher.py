"""A scene of triangles as a teacher: ray-traced exactly instead of rendered by a trained run."""

from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Tuple

import numpy as np
import torch
from demo_scene.island import diorama
from demo_scene.shapes import Part
from demo_scene.tracer import Scene
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from torch import Tensor

from mobiler2l_ns.cameras import cell_centres, rays_at
from mobiler2l_ns.teacher.adoption import Adoption
from mobiler2l_ns.teacher.frozen import TeacherConfig


class ExactTeacher:
    """A scene as a teacher.

    Args:
        seed: Of the places inside the pixels where rays go.
        side: Each pixel gets side x side rays.
        parts: The scene; the demo scene if left out.
    """

    def __init__(self, seed: int, side: int = 1, parts: Optional[List[Part]] = None):
        self.scene, self.rng, self.side = Scene(parts or diorama()), np.random.default_rng(seed), side

    def render(self, camera: Cameras) -> Float[Tensor, "H W 3"]:
        """The view of one camera, on white."""
        return self.render_all(camera)[..., :3]

    def render_all(self, camera: Cameras) -> Float[Tensor, "H W 5"]:
        """The same, its alpha, and z: the mean of a pixel's rays that meet something, 0 where none does."""
        height, width, n = int(camera.height), int(camera.width), self.side**2
        part = cell_centres(self.side, self.side, (1 / self.side, 1 / self.side)).view(n, 1, 1, 2)
        inside = torch.from_numpy(self.rng.uniform(size=(n, height, width, 2)) - 0.5).float() / self.side
        origin, directions, norm = self._rays(camera, cell_centres(height, width, (1, 1)) - 0.5 + part + inside)
        face, weights = self.scene.hits(origin, directions)
        hit, values = face >= 0, np.zeros((len(face), 5), np.float32)
        values[:, :3] = 1
        values[hit, :3] = self.scene.colours(origin, directions[hit], face[hit], weights[hit])
        values[hit, 3], values[hit, 4] = 1, self.scene.distance(origin, directions[hit], face[hit]) / norm[hit]
        view = torch.from_numpy(values).view(n, height, width, 5).mean(0)
        view[..., 4] /= view[..., 3].clamp_min(1 / n)
        return view.to(camera.device)

    def surface_depths(self, camera: Cameras) -> Float[Tensor, "N"]:
        """z of the surfaces that pixel centres see."""
        origin, directions, norm = self._rays(camera, cell_centres(int(camera.height), int(camera.width), (1, 1))[None])
        face, _ = self.scene.hits(origin, directions)
        hit = face >= 0
        return torch.from_numpy(self.scene.distance(origin, directions[hit], face[hit]) / norm[hit]).float()

    @staticmethod
    def _rays(camera: Cameras, coords: Float[Tensor, "S H W 2"]) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Origin (3,), unit directions (S * H * W, 3) and the lengths that they had at unit depth (S * H * W,)."""
        bundle = rays_at(camera.to("cpu"), torch.zeros(len(coords), dtype=torch.long), coords).flatten()
        norm = bundle.metadata["directions_norm"][:, 0].numpy()
        return bundle.origins[0].double().numpy(), bundle.directions.double().numpy(), norm


@dataclass
class ExactTeacherConfig(TeacherConfig):
    """Plugs the demo scene into the student's datamanager; there is no run to look for."""

    def setup(self, device) -> ExactTeacher:
        """A teacher with the seed of the run."""
        return ExactTeacher(int(torch.initial_seed() % 2**31))

    def find(self, data: Path, dataparser: DataParserConfig, device) -> Adoption:
        """The student's own data parser."""
        return Adoption(dataparser, is_of_other_data=False)
