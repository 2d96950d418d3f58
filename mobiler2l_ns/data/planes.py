"""Near and far plane of a student: those of the option, else measured on what the teacher renders.

N: surfaces that the teacher renders.
"""

from contextlib import suppress
from typing import Callable, Optional, Tuple

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from mobiler2l_ns.cameras import pinhole_cameras
from mobiler2l_ns.data.poses import PoseSampler
from mobiler2l_ns.errors import UserError

PROBE_SIDE = 32  # pixels of the longer side of the views that the planes are measured on
NUM_PROBES = 24
ENOUGH = 0.5  # share of the surfaces that has to lie between the planes of the option


def probe_cameras(poses: PoseSampler, size: Tuple[int, int], focal: float) -> Cameras:
    """Small cameras at sampled poses, through which the planes are measured."""
    scale = PROBE_SIDE / max(size)
    return pinhole_cameras(poses.sample(NUM_PROBES), focal * scale, *(round(side * scale) for side in size))


def choose_near_far(
    option: Optional[Tuple[float, float]], surface_depths: Callable[[Cameras], Float[Tensor, "N"]], poses: PoseSampler,
    size: Tuple[int, int], focal: float, unbounded: bool,
) -> Tuple[float, float]:  # fmt: skip
    """Near and far plane, world units.

    Args:
        option: The planes of the command line. A warning is printed if most surfaces lie elsewhere.
        surface_depths: Renders z of the surfaces that a camera (1,) sees.
        poses: Where small cameras stand, through which the planes are measured.
        size: H and W of the student's view.
        focal: Its focal length in pixels.
        unbounded: The kind of scene.

    Raises:
        UserError: The option's planes are in the wrong order. Or there is no option, and the teacher renders no surface
            or no depth.
    """

    def probe() -> Float[Tensor, "N"]:
        cameras = probe_cameras(poses, size, focal)
        return torch.cat([surface_depths(cameras[i : i + 1]).cpu() for i in range(len(cameras))])

    if option is not None:
        check_near_far(option)
        with suppress(UserError):  # a teacher without depth needs planes, and they cannot be checked
            warn_of_missed_content(option, probe(), unbounded)
        return option
    near, far = depth_range(probe(), unbounded)
    CONSOLE.print(f"Content lies between z = {near:.3f} and {far:.3f} ({poses.kind} poses)")
    return near, far


def check_near_far(near_far: Tuple[float, float]) -> None:
    """Raises UserError for planes in the wrong order."""
    near, far = near_far
    if not 0 < near < far:
        raise UserError(f"--pipeline.datamanager.near-far needs 0 < near < far, not {near} {far}.")


def warn_of_missed_content(near_far: Tuple[float, float], depths: Float[Tensor, "N"], unbounded: bool) -> None:
    """Prints a warning if less than half of the surfaces at ``depths`` lies between the planes."""
    measured = depth_range(depths, unbounded)
    share = float(((depths >= near_far[0]) & (depths <= near_far[1])).float().mean())
    if share < ENOUGH:
        CONSOLE.print(
            f"Warning: only {share:.0%} of what the teacher renders lies between the planes z = {near_far[0]:g} and "
            f"{near_far[1]:g}, and the student shows the rest blurred. Content lies between z = {measured[0]:.3f} and "
            f"{measured[1]:.3f}: pass --pipeline.datamanager.near-far None to measure the planes.",
            style="yellow",
        )


def depth_range(depths: Float[Tensor, "N"], unbounded: bool = False) -> Tuple[float, float]:
    """Near and far plane, tight around surfaces.

    One percent of the surfaces on either side is left out (floaters, sky). Then the range grows by 3 percent: in z for
    bounded scenes, in 1/z for unbounded ones, whose far plane at most doubles.

    Args:
        depths: z of the surfaces.
        unbounded: The kind of scene.

    Raises:
        UserError: There is no surface.
    """
    if len(depths) == 0:
        raise UserError("the teacher's views are empty: train it longer, or pass another one with "
                        "--pipeline.datamanager.teacher.load-config.")  # fmt: skip
    near, far = torch.quantile(depths[torch.randperm(len(depths))[: 1 << 20]], torch.tensor([0.01, 0.99])).tolist()
    if unbounded:
        margin = 0.03 * (1 / near - 1 / far)
        return 1 / (1 / near + margin), 1 / max(1 / far - margin, 0.5 / far)
    margin = 0.03 * (far - near) + 1e-3 * far
    return max(near - margin, 0.05 * near), far + margin
