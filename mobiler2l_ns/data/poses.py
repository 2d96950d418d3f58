"""New camera poses from the distribution of a capture's own cameras.

A student renders only views like those it was trained on. So teacher views are rendered from the region that the photos
were taken from. Poses are camera-to-world (3, 4), OpenGL axes (x right, y up, looking down -z), as in nerfstudio.
"""

import math
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mobiler2l_ns.geometry import across, azimuths, focus_point, look_at, up_direction

PoseKind = Literal["auto", "orbit", "path"]


@runtime_checkable
class PoseSampler(Protocol):
    """A distribution of camera poses."""

    kind: str

    def sample(self, count: int) -> Float[Tensor, "count 3 4"]:
        """Draws poses with torch's global random numbers (so that ranks of a distributed run differ)."""
        ...


class OrbitPoses:
    """A spherical shell around the object: for captures that walk around what they look at.

    Directions are uniform on the sphere between the lowest and the highest camera, but never farther from a real
    camera than the capture's own largest gap between neighbours, so a half orbit stays a half orbit.

    Args:
        c2w: Poses of the capture.
    """

    kind = "orbit"

    def __init__(self, c2w: Float[Tensor, "N 3 4"]):
        self.up = up_direction(c2w)
        self.centre = focus_point(c2w)
        offset = c2w[:, :, 3] - self.centre
        radius = offset.norm(dim=-1)
        self.directions = offset / radius[:, None]
        self.radius = (radius.min(), radius.max())
        height = self.directions @ self.up
        self.height = (height.min(), height.max())
        # What each camera really looks at, beside the common centre: drawn anew for each pose.
        axes = -c2w[:, :, 2]
        self.targets = c2w[:, :, 3] - axes * (offset * axes).sum(-1, keepdim=True)
        cosines = (self.directions @ self.directions.T).fill_diagonal_(-1).clamp(-1, 1)
        gaps = torch.arccos(cosines.max(dim=1).values) if len(c2w) > 1 else torch.zeros(1)
        self.reach = max(float(gaps.max()), math.radians(10))
        tilted = self.up.roll(1) + torch.tensor([0.3, 0.2, 0.1]).to(self.up)
        self.east = F.normalize(torch.linalg.cross(self.up, tilted), dim=-1)
        self.north = torch.linalg.cross(self.up, self.east)

    def sample(self, count: int) -> Float[Tensor, "count 3 4"]:
        accepted = []
        while sum(map(len, accepted)) < count:
            drawn = self._draw_directions(4 * count)
            nearest = (drawn @ self.directions.T).max(dim=1).values.clamp(-1, 1)
            accepted.append(drawn[torch.arccos(nearest) <= self.reach])
        directions = torch.cat(accepted)[:count]
        radius = _uniform(count, *self.radius).to(directions)
        targets = self.targets[torch.randint(len(self.targets), (count,), device=directions.device)]
        return look_at(self.centre + directions * radius[:, None], targets, self.up)

    def _draw_directions(self, count: int) -> Float[Tensor, "count 3"]:
        height = _uniform(count, *self.height).to(self.up)  # uniform height is uniform area on a sphere
        azimuth = torch.rand(count, device=self.up.device) * 2 * math.pi
        flat = azimuth.cos()[:, None] * self.east + azimuth.sin()[:, None] * self.north
        return height[:, None] * self.up + (1 - height**2).clamp_min(0).sqrt()[:, None] * flat


class PathPoses:
    """Between neighbouring cameras, with a little jitter: for forward-facing captures and walks through a scene.

    Args:
        c2w: Poses of the capture.
        num_neighbours: How many nearest cameras one may be blended with.
        jitter: Standard deviation of the shift, as a fraction of the distance between the two cameras.
    """

    kind = "path"

    def __init__(self, c2w: Float[Tensor, "N 3 4"], num_neighbours: int = 4, jitter: float = 0.25):
        self.c2w, self.jitter = c2w, jitter
        distances = torch.cdist(c2w[:, :, 3], c2w[:, :, 3])
        # Cameras that look elsewhere are no neighbours, however near they stand.
        apart = 1 - (c2w[:, :, 2] @ c2w[:, :, 2].T)
        scale = distances.median().clamp_min(1e-6)
        order = (distances + scale * apart).argsort(dim=1)
        self.neighbours = order[:, 1 : 1 + num_neighbours] if len(c2w) > 1 else order

    def sample(self, count: int) -> Float[Tensor, "count 3 4"]:
        device = self.c2w.device
        first = torch.randint(len(self.c2w), (count,), device=device)
        pick = torch.randint(self.neighbours.shape[1], (count,), device=device)
        a, b = self.c2w[first], self.c2w[self.neighbours[first, pick]]
        blend = torch.rand(count, 1, device=device)
        spread = (a[:, :, 3] - b[:, :, 3]).norm(dim=-1, keepdim=True) * self.jitter
        position = torch.lerp(a[:, :, 3], b[:, :, 3], blend) + spread * torch.randn(count, 3, device=device)
        back = F.normalize(torch.lerp(a[:, :, 2], b[:, :, 2], blend), dim=-1)
        up = torch.lerp(a[:, :, 1], b[:, :, 1], blend)
        return look_at(position, position - back, up)


def fit_poses(c2w: Float[Tensor, "N 3 4"], kind: PoseKind = "auto") -> PoseSampler:
    """The pose distribution of a capture.

    auto takes an orbit where all cameras look at one region from around it (axes pass within a quarter of the median
    radius of one point in front of every camera, and no azimuth gap exceeds 120 degrees), else a path.
    """
    if kind == "auto":
        kind = "orbit" if _is_orbit(c2w) else "path"
    return OrbitPoses(c2w) if kind == "orbit" else PathPoses(c2w)


def _is_orbit(c2w: Float[Tensor, "N 3 4"]) -> bool:
    if len(c2w) < 4:
        return False
    offset = c2w[:, :, 3] - focus_point(c2w)
    axes = -c2w[:, :, 2]
    in_front = -(offset * axes).sum(-1)
    miss = (offset + axes * in_front[:, None]).norm(dim=-1)
    up = up_direction(c2w)
    largest_gap = azimuths(offset, up, across(offset, up)[0])[1].max()
    near_focus = miss.median() < 0.25 * offset.norm(dim=-1).median()
    return bool((in_front > 0).all() and near_focus and largest_gap < math.radians(120))


def _uniform(count: int, low: Tensor, high: Tensor) -> Tensor:
    return low + (high - low) * torch.rand(count, device=low.device)
