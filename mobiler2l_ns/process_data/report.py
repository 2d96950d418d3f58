"""What was found: the figures of a model, and a picture of its cameras and points."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.camera_utils import auto_orient_and_center_poses

from mobiler2l_ns.process_data.photos import Photo
from mobiler2l_ns.training.progress import log_line

# Points of the picture; more make it no clearer.
MAX_POINTS = 20_000
# Share of posed photos below which the advice is printed.
NEARLY_ALL = 0.9


@dataclass
class PoseReport:
    """Figures of a model.

    Attributes:
        posed: Number of photos with a pose.
        unposed: Names of the other photos, as the user knows them.
        reprojection_error: Mean distance of a feature from its point's projection, in pixels.
        points: Number of points.
    """

    posed: int
    unposed: List[str]
    reprojection_error: float
    points: int

    @classmethod
    def of(cls, figures: Dict[str, Any], photos: List[Photo]) -> "PoseReport":
        """The report of a model, given what ``Reconstructor.find_poses`` returns."""
        posed = set(figures["posed"])
        unposed = [photo.source for photo in photos if photo.name not in posed]
        return cls(len(posed), unposed, figures["reprojection_error"], figures["points"])

    def print(self, exhaustive: bool) -> None:
        """The figures, and advice if few photos have a pose.

        Args:
            exhaustive: All pairs of photos were matched.
        """
        total = self.posed + len(self.unposed)
        log_line(
            f"{self.posed} of {total} photos have a pose; mean reprojection error {self.reprojection_error:.2f} "
            f"pixels; {self.points} points."
        )
        if self.unposed:
            log_line(f"Without a pose: {', '.join(self.unposed)}")
        if self.posed < NEARLY_ALL * total:
            log_line(
                ("" if exhaustive else "Try --matching-method exhaustive first. ")
                + "Take more photos between these and the others, overlapping by three quarters, with something "
                "patterned in view (docs/capture.md, step 1)."
            )


def draw_poses(capture: Path, target: Path) -> None:
    """A picture of the cameras and points of ``transforms.json``, from above and from the side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    poses, points, colours = upright_scene(capture)
    centre = np.median(points, axis=0) if len(points) else poses[:, :3, 3].mean(0)
    reach = 1.3 * np.abs(poses[:, :3, 3] - centre).max()
    figure = Figure(figsize=(12, 6.3), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, right, up) in zip(figure.subplots(1, 2), (("from above", 0, 1), ("from the side", 0, 2))):
        axes.scatter(points[:, right], points[:, up], s=1, c=colours / 255, linewidths=0)
        position, forward = poses[:, :3, 3], -0.12 * reach * poses[:, :3, 2]
        axes.quiver(position[:, right], position[:, up], forward[:, right], forward[:, up], color="tab:red",
                    angles="xy", scale_units="xy", scale=1, width=0.003)  # fmt: skip
        axes.scatter(position[:, right], position[:, up], s=12, c="tab:red")
        axes.set(title=f"{len(poses)} cameras and {len(points)} points {name}", aspect="equal")
        axes.set(xlim=centre[right] + reach * np.array([-1, 1]), ylim=centre[up] + reach * np.array([-1, 1]))
    figure.savefig(target, dpi=100)


def upright_scene(
    capture: Path,
) -> Tuple[Float[np.ndarray, "N 3 4"], Float[np.ndarray, "P 3"], Float[np.ndarray, "P 3"]]:
    """Camera-to-world poses, points and their colours (0 to 255), with z up as nerfstudio orients them."""
    transforms = json.loads((capture / "transforms.json").read_text())
    matrices = torch.tensor([frame["transform_matrix"] for frame in transforms["frames"]])
    poses, to_upright = auto_orient_and_center_poses(matrices, method="up", center_method="poses")
    with (capture / transforms["ply_file_path"]).open() as ply:
        while next(ply).strip() != "end_header":
            pass
        rows = np.loadtxt(ply, ndmin=2).reshape(-1, 6)
    rows = rows[:: max(1, len(rows) // MAX_POINTS)]
    rotation, shift = to_upright[:, :3].numpy(), to_upright[:, 3].numpy()
    return poses.numpy(), rows[:, :3] @ rotation.T + shift, rows[:, 3:]
