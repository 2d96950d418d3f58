"""Geometry of a set of cameras: their common focus and up direction, and poses that look at a point.

Poses are camera-to-world (3, 4), OpenGL axes (x right, y up, looking down -z), as in nerfstudio.
"""

import math
from typing import Tuple, Union

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def look_at(
    position: Float[Tensor, "B 3"], target: Float[Tensor, "B 3"], up: Union[Float[Tensor, "3"], Float[Tensor, "B 3"]]
) -> Float[Tensor, "B 3 4"]:
    """Poses at ``position`` that look at ``target``, with ``up`` upwards in the image.

    Args:
        position: Camera centres.
        target: Points that lie on the optical axes.
        up: Directions of any length, not parallel to an optical axis; one for all poses, or one per pose.
    """
    back = F.normalize(position - target, dim=-1)
    right = F.normalize(torch.linalg.cross(up.expand_as(back), back), dim=-1)
    return torch.stack([right, torch.linalg.cross(back, right), back, position], dim=-1)


def focus_point(c2w: Float[Tensor, "N 3 4"]) -> Float[Tensor, "3"]:
    """The point nearest to all optical axes, in the least-squares sense."""
    axes = -c2w[:, :, 2]
    # Each projects onto the plane perpendicular to an axis.
    projections = torch.eye(3, device=c2w.device) - axes[:, :, None] * axes[:, None, :]
    right_side = (projections @ c2w[:, :, 3:]).mean(0)
    return torch.linalg.lstsq(projections.mean(0), right_side).solution[:, 0]


def up_direction(c2w: Float[Tensor, "N 3 4"]) -> Float[Tensor, "3"]:
    """The unit vector most perpendicular to the right axes of all cameras: the vertical, if cameras are held level.

    The mean of the cameras' up axes is biased where a scene was photographed from above on one side only. So it only
    decides the sign, and the direction where all cameras look the same way.
    """
    right, mean = c2w[:, :, 0], F.normalize(c2w[:, :, 1].mean(0), dim=-1)
    spread = right.T @ right / len(right) - 1e-3 * mean[:, None] * mean
    up = torch.linalg.eigh(spread).eigenvectors[:, 0]
    return up * torch.sign(up @ mean)


def cameras_cube(c2w: Float[Tensor, "N 3 4"], smallest: float) -> Tuple[Float[Tensor, "3"], float]:
    """Centre and half side of the axis-aligned cube that contains all camera centres, world units.

    Args:
        c2w: Poses of the capture.
        smallest: Lower limit of the half side.
    """
    low, high = c2w[:, :, 3].amin(0), c2w[:, :, 3].amax(0)
    return (low + high) / 2, max(float((high - low).max()) / 2, smallest)


def across(offset: Float[Tensor, "N 3"], up: Float[Tensor, "3"]) -> Float[Tensor, "N 3"]:
    """The component of each vector that is perpendicular to ``up``, a unit vector."""
    return offset - (offset @ up)[:, None] * up


def azimuths(
    offset: Float[Tensor, "N 3"], up: Float[Tensor, "3"], start: Float[Tensor, "3"]
) -> Tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """Angles of vectors around ``up``, ascending, and the gap from each angle to the next, radians.

    Args:
        offset: The vectors.
        up: The axis, a unit vector.
        start: The direction of angle 0.

    Returns:
        Angles, and gaps; the last gap is that from the last angle to the first.
    """
    flat, start = across(offset, up), F.normalize(start, dim=-1)
    angles = torch.atan2(flat @ torch.linalg.cross(up, start), flat @ start).sort().values
    return angles, torch.cat([angles.diff(), angles[:1] + 2 * math.pi - angles[-1:]])
