"""The range of camera poses that a student was trained for: limits for viewers, and poses to verify exports with.

A student renders only views near its training cameras correctly. The range of these cameras is described as an orbit:
a centre, and ranges of distance, elevation and azimuth. Poses are camera-to-world (3, 4), OpenGL axes (x right, y up,
looking down -z), in the student's world.
"""

import math
from dataclasses import dataclass
from typing import Dict, Optional, Protocol, Tuple, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mobiler2l_ns.geometry import across, azimuths, focus_point, look_at, up_direction
from mobiler2l_ns.student.coverage import Coverage
from mobiler2l_ns.student.sampler import Sampler

# A larger gap between the cameras' azimuths limits the range; smaller ones do not.
MAX_AZIMUTH_GAP = math.radians(90)


@runtime_checkable
class TrainedStudent(Protocol):
    """The part of a MobileR2LModel that tells which cameras it was trained with."""

    sampler: Sampler
    coverage: Coverage


@dataclass
class ViewingRange:
    """An orbit around a centre.

    The direction from the centre to a camera is
    cos(elevation) (cos(azimuth) east + sin(azimuth) north) + sin(elevation) up, with north = up x east.
    """

    centre: Float[Tensor, "3"]
    up: Float[Tensor, "3"]
    east: Float[Tensor, "3"]
    radius: Tuple[float, float]
    """Distances from the centre, world units."""
    elevation: Tuple[float, float]
    """Angles above the plane perpendicular to ``up``, radians."""
    azimuth: Optional[Tuple[float, float]]
    """Angles around ``up``, radians, the second not less than the first; None: the full circle."""

    def pose(self, azimuth: float, elevation: float, radius: float) -> Float[Tensor, "3 4"]:
        """The pose at these angles (radians) and distance that looks at the centre; they are not clamped."""
        north = torch.linalg.cross(self.up, self.east)
        flat = math.cos(azimuth) * self.east + math.sin(azimuth) * north
        direction = math.cos(elevation) * flat + math.sin(elevation) * self.up
        position = self.centre + radius * direction
        return look_at(position[None], self.centre[None], self.up)[0]

    def middle(self) -> Tuple[float, float, float]:
        """Azimuth, elevation and radius in the middle of the ranges: the viewers' start view."""
        azimuth = 0.0 if self.azimuth is None else sum(self.azimuth) / 2
        return azimuth, sum(self.elevation) / 2, sum(self.radius) / 2

    def sample(self, count: int, seed: int = 0) -> Float[Tensor, "{count} 3 4"]:
        """Poses drawn uniformly from the ranges; equal seeds give equal poses."""
        generator = torch.Generator().manual_seed(seed)
        ranges = (self.azimuth or (-math.pi, math.pi), self.elevation, self.radius)
        drawn = torch.rand(count, 3, generator=generator)
        return torch.stack(
            [self.pose(*(low + (high - low) * float(x) for x, (low, high) in zip(row, ranges))) for row in drawn]
        )

    def to_dict(self) -> Dict[str, object]:
        """All fields as numbers and lists, for JSON."""
        azimuth, elevation, radius = self.middle()
        return {
            "centre": self.centre.tolist(), "up": self.up.tolist(), "east": self.east.tolist(),
            "radius": self.radius, "elevation": self.elevation, "azimuth": self.azimuth,
            "start": {"azimuth": azimuth, "elevation": elevation, "radius": radius},
        }  # fmt: skip


def viewing_range(model: TrainedStudent) -> ViewingRange:
    """The range of the cameras that a student was trained with.

    Args:
        model: A MobileR2LModel. Without recorded viewpoints, the range is an orbit around the origin at distance
            (near + far) / 2, the camera position of Snap's template.
    """
    c2w = model.coverage.viewpoints.detach().cpu().float()
    if not bool(c2w.any()):
        radius = float(model.sampler.near + model.sampler.far) / 2
        up, east = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])
        return ViewingRange(torch.zeros(3), up, east, (radius, radius), (-math.pi / 3, math.pi / 3), None)
    return fit_range(c2w, model.coverage.focus.detach().cpu() if model.coverage.has_focus else None)


def fit_range(c2w: Float[Tensor, "N 3 4"], centre: Optional[Float[Tensor, "3"]] = None) -> ViewingRange:
    """The smallest orbit that contains the given cameras.

    Args:
        c2w: Poses of the cameras.
        centre: Centre of the orbit. None: the point nearest to all optical axes; if this point is behind one of the
            cameras, a point in front of the mean camera.
    """
    up = up_direction(c2w)
    axes = -c2w[:, :, 2]
    if centre is None:
        centre = focus_point(c2w)
        if bool((((centre - c2w[:, :, 3]) * axes).sum(-1) <= 0).any()):
            spread = (c2w[:, :, 3] - c2w[:, :, 3].mean(0)).norm(dim=-1).max()
            centre = c2w[:, :, 3].mean(0) + F.normalize(axes.mean(0), dim=-1) * (2 * spread).clamp_min(1e-3)
    offset = c2w[:, :, 3] - centre
    radius = offset.norm(dim=-1)
    elevation = torch.asin(((offset / radius[:, None]) @ up).clamp(-1, 1))
    flat = across(offset, up)
    # Azimuth 0 is at the camera farthest from the axis: the azimuth of a camera on the axis is not defined.
    east = F.normalize(flat[flat.norm(dim=-1).argmax()], dim=-1)
    azimuth, gaps = azimuths(offset, up, east)
    widest = int(gaps.argmax())
    bounds = None
    if float(gaps[widest]) > MAX_AZIMUTH_GAP:
        low = float(azimuth[(widest + 1) % len(azimuth)])
        bounds = (low, low + 2 * math.pi - float(gaps[widest]))
    return ViewingRange(
        centre, up, east, (float(radius.min()), float(radius.max())),
        (float(elevation.min()), float(elevation.max())), bounds,
    )  # fmt: skip
