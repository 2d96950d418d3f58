"""Where a student may be looked at from: what a viewer's controls need, and poses to check exported files with.

A student shows what it was shown, so everyone who moves a camera around it must know the region of its photos. It is
described as an orbit: a centre, and ranges of distance, elevation and azimuth. Poses are camera-to-world (3, 4), OpenGL
axes (x right, y up, looking down -z), in the student's world.
"""

import math
from dataclasses import dataclass
from typing import Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mobiler2l_ns.geometry import across, azimuths, focus_point, look_at, up_direction

NUM_VIEWPOINTS = 32
ALL_ROUND = math.radians(90)  # a gap between azimuths that is larger than this is not crossed


@dataclass
class ViewingRange:
    """An orbit around a centre.

    Directions from it: cos(elevation) (cos(azimuth) east + sin(azimuth) north) + sin(elevation) up, north = up x east.
    """

    centre: Float[Tensor, "3"]
    up: Float[Tensor, "3"]
    east: Float[Tensor, "3"]
    radius: Tuple[float, float]
    """Distances from the centre, world units."""
    elevation: Tuple[float, float]
    """Angles above the plane across ``up``, radians."""
    azimuth: Optional[Tuple[float, float]]
    """Angles about ``up``, radians, the second at least the first; None: all round."""

    def pose(self, azimuth: float, elevation: float, radius: float) -> Float[Tensor, "3 4"]:
        """The pose at these angles that looks at the centre; nothing is clamped."""
        north = torch.linalg.cross(self.up, self.east)
        flat = math.cos(azimuth) * self.east + math.sin(azimuth) * north
        direction = math.cos(elevation) * flat + math.sin(elevation) * self.up
        position = self.centre + radius * direction
        return look_at(position[None], self.centre[None], self.up)[0]

    def middle(self) -> Tuple[float, float, float]:
        """Azimuth, elevation and radius of a first view."""
        azimuth = 0.0 if self.azimuth is None else sum(self.azimuth) / 2
        return azimuth, sum(self.elevation) / 2, sum(self.radius) / 2

    def sample(self, count: int, seed: int = 0) -> Float[Tensor, "count 3 4"]:
        """Poses drawn evenly from the ranges; the same ones for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        ranges = (self.azimuth or (-math.pi, math.pi), self.elevation, self.radius)
        drawn = torch.rand(count, 3, generator=generator)
        return torch.stack(
            [self.pose(*(low + (high - low) * float(x) for x, (low, high) in zip(row, ranges))) for row in drawn]
        )

    def to_dict(self) -> Dict[str, object]:
        """Everything as plain numbers, for JSON."""
        azimuth, elevation, radius = self.middle()
        return {
            "centre": self.centre.tolist(), "up": self.up.tolist(), "east": self.east.tolist(),
            "radius": self.radius, "elevation": self.elevation, "azimuth": self.azimuth,
            "start": {"azimuth": azimuth, "elevation": elevation, "radius": radius},
        }  # fmt: skip


def viewing_range(model) -> ViewingRange:
    """The range of a student: that of the cameras it was trained with.

    Args:
        model: A MobileR2LModel. One that recorded no viewpoints gets an orbit around the origin at (near + far) / 2,
            where Snap's template puts its camera.
    """
    c2w = model.viewpoints.detach().cpu().float()
    if not bool(c2w.any()):
        radius = float(model.sampler.near + model.sampler.far) / 2
        up, east = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])
        return ViewingRange(torch.zeros(3), up, east, (radius, radius), (-math.pi / 3, math.pi / 3), None)
    return fit_range(c2w, model.focus.detach().cpu() if model.has_focus else None)


def fit_range(c2w: Float[Tensor, "N 3 4"], centre: Optional[Float[Tensor, "3"]] = None) -> ViewingRange:
    """The ranges that cameras cover.

    Args:
        c2w: Their poses.
        centre: What they go around; left out: the point nearest to all optical axes, or, where that is behind one of
            the cameras, one in front of the mean camera.
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
    # Azimuth 0 is that of the camera farthest from the axis: one straight above has none.
    east = F.normalize(flat[flat.norm(dim=-1).argmax()], dim=-1)
    azimuth, gaps = azimuths(offset, up, east)
    widest = int(gaps.argmax())
    bounds = None
    if float(gaps[widest]) > ALL_ROUND:
        low = float(azimuth[(widest + 1) % len(azimuth)])
        bounds = (low, low + 2 * math.pi - float(gaps[widest]))
    return ViewingRange(
        centre, up, east, (float(radius.min()), float(radius.max())),
        (float(elevation.min()), float(elevation.max())), bounds,
    )  # fmt: skip


def spread_viewpoints(c2w: Float[Tensor, "N 3 4"]) -> Float[Tensor, "32 3 4"]:
    """A fixed number of a capture's cameras, evenly spread over its order, for a student's checkpoint."""
    return c2w[torch.linspace(0, len(c2w) - 1, NUM_VIEWPOINTS).round().long().to(c2w.device)]
