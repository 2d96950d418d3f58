"""The camera that a student is built for: size, focal length, depth range, and where it may be viewed from.

ns-train derives it from the capture and the teacher; afterwards it travels in the student's buffers.

H, W: pixels of the student's view.
"""

from dataclasses import dataclass
from typing import Literal, Optional, Tuple

from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from mobiler2l_ns.data.poses import OrbitPoses, PoseSampler
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.fitting import fit_cameras
from mobiler2l_ns.geometry import cameras_cube
from mobiler2l_ns.student.coverage import spread_viewpoints
from mobiler2l_ns.student.sampler import DepthRange, Points

MAX_ENLARGEMENT = 1.05  # of photos, above which a run warns


@dataclass(frozen=True)
class StudentCamera:
    """Values of the student's buffers, set before training."""

    height: int
    """H."""
    width: int
    """W."""
    focal: float
    """Focal length in pixels."""
    near: float
    """z of the first point on a ray, world units."""
    far: float
    """z of the last point on a ray, world units."""
    points: Points = "bounded"
    """Where the points lie."""
    cube_centre: Optional[Float[Tensor, "3"]] = None
    """Centre of the cube that the contraction of unbounded points leaves as it is, world units."""
    cube_radius: float = 1.0
    """Half the side of that cube, world units."""
    focus: Optional[Float[Tensor, "3"]] = None
    """The point that an orbit goes around; None for a path."""
    focus_depths: Optional[Tuple[float, float]] = None
    """Smallest and largest z of the focus in the cameras of the capture."""
    viewpoints: Optional[Float[Tensor, "N 3 4"]] = None
    """Poses of the capture that stand for all of them."""

    @property
    def depths(self) -> DepthRange:
        """Near and far plane."""
        return DepthRange(self.near, self.far, self.points == "unbounded")


def fit_student_camera(
    cameras: Cameras, poses: PoseSampler, size: Tuple[int, int], focal: float, near_far: Tuple[float, float],
    points: Points,
) -> StudentCamera:  # fmt: skip
    """The student's camera for a capture.

    Args:
        cameras: The training cameras (N,).
        poses: Their pose distribution.
        size: H and W.
        focal: Focal length in pixels, see ``student_focal``.
        near_far: Near and far plane, world units.
        points: Where the points lie.
    """
    c2w, (near, far) = cameras.camera_to_worlds, near_far
    cube_centre, cube_radius = cameras_cube(c2w, near)
    focus, focus_depths = None, None
    if isinstance(poses, OrbitPoses):
        focus = poses.centre.to(c2w)
        depths = ((focus - c2w[:, :, 3]) * -c2w[:, :, 2]).sum(-1)
        focus_depths = float(depths.min()), float(depths.max())
    return StudentCamera(
        *size, focal, near, far, points, cube_centre, cube_radius, focus, focus_depths,
        spread_viewpoints(c2w),
    )  # fmt: skip


def student_focal(cameras: Cameras, size: Tuple[int, int]) -> float:
    """Focal length in pixels of a student with views of (H, W): the median of the photos' at that size."""
    return float(fit_cameras(cameras, *size)[0].fx.median())


def student_size(dataset: InputDataset, image_size: Optional[Tuple[int, int]], upscale: int) -> Tuple[int, int]:
    """(H, W) of the student's view: the given width and height, or the size that most photos have.

    Raises:
        UserError: The size is not divisible by the upscale factor.
    """
    sizes = list(zip(dataset.cameras.width[:, 0].tolist(), dataset.cameras.height[:, 0].tolist()))
    photo = max(dict.fromkeys(sizes), key=sizes.count)  # the first of equals
    width, height = image_size or photo
    if width < upscale or height < upscale or width % upscale or height % upscale:
        near_w, near_h = (max(upscale, upscale * (n // upscale)) for n in (width, height))
        named = "--pipeline.datamanager.image-size"
        source = named if image_size else str(dataset.image_filenames[sizes.index((width, height))])
        raise UserError(
            f"{source} is {width}x{height}, which the network's upscale factor {upscale} does not divide: "
            f"pass --pipeline.datamanager.image-size {near_w} {near_h}."
        )
    if max(width / photo[0], height / photo[1]) > MAX_ENLARGEMENT:
        CONSOLE.print(
            f"Warning: the photos are {photo[0]}x{photo[1]} pixels, and the student's view of {width}x{height} shows "
            "them enlarged and blurred: pass a smaller --pipeline.datamanager.image-size, or train teacher and student "
            "with larger photos (nerfstudio-data --downscale-factor).",
            style="yellow",
        )
    return height, width


def check_pinholes(dataset: InputDataset) -> None:
    """Raises UserError, naming the photo, for fisheye cameras and panoramas: their rays have no unit depth."""
    other = (dataset.cameras.camera_type[:, 0] != CameraType.PERSPECTIVE.value).nonzero()
    if len(other):
        name = dataset.image_filenames[int(other[0])]
        raise UserError(
            f"{name} is a fisheye photo or a panorama, but a student renders pinhole cameras only: undistort the "
            "photos (e.g. with `colmap image_undistorter`), or cut panoramas into flat images with "
            "`ns-process-data images --camera-type equirectangular`."
        )


def find_points(option: Literal["auto", "bounded", "unbounded"], dataset: InputDataset) -> Points:
    """Where the points lie: as the option says; for auto bounded if the photos have a transparent background."""
    if option != "auto":
        return option
    return "bounded" if dataset.metadata["transparent_background"] else "unbounded"
