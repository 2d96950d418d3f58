"""Properties of cameras, poses, patches, the pool and the layouts that hold for any size, pose and range.

Numbers are drawn by hypothesis. The references are written apart from the package: a projection, a list, indices.
"""

import functools
import math
import tempfile
from pathlib import Path
from typing import List, NamedTuple, Tuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from nerfstudio.cameras.cameras import Cameras
from torch.testing import assert_close

from mobiler2l_ns import cameras, fitting
from mobiler2l_ns.cameras import cell_centres, student_rays
from mobiler2l_ns.data.photos import PhotoSet
from mobiler2l_ns.data.pool import ViewPool, from_bytes, to_bytes
from mobiler2l_ns.data.poses import OrbitPoses, PathPoses
from mobiler2l_ns.geometry import look_at
from mobiler2l_ns.runtime import _copy_flat, _permute
from mobiler2l_ns.student.sampler import DepthRange, Sampler

# The clock must not decide: on a busy machine, numbers are drawn slowly.
settings.register_profile("repeatable", deadline=None, max_examples=30, derandomize=True, database=None,
                          suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
settings.load_profile("repeatable")
# What hypothesis writes stays out of the repository. It writes before any fixture runs.
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis")


def numbers(low: float, high: float):
    """Floats from low to high, made of integers below 100.

    To others, hypothesis adds constants of all imported modules, so examples would depend on the tests before.
    """
    return st.integers(0, 64).map(lambda step: low + (high - low) * step / 64)


SEEDS, CELLS, SIDES, CENTRES = st.integers(0, 99), st.integers(1, 4), st.integers(2, 16), numbers(-4, 20)
VECTORS, SHIFTS = st.tuples(*[numbers(-4, 4)] * 3), st.tuples(*[st.integers(0, 5)] * 2)
SCALES = numbers(-2, 2).map(lambda power: 2**power)
RANGES = st.builds(lambda n, x, unbounded: DepthRange(n, n * x, unbounded), SCALES, numbers(1.1, 900), st.booleans())


def rotation(turn: Tuple[float, ...]) -> torch.Tensor:
    """The rotation (3, 3), double, about a vector by its length in radians."""
    return torch.linalg.matrix_exp(torch.linalg.cross(torch.eye(3).double(), torch.tensor([turn]).double()))


class View(NamedTuple):
    """A camera of any pose and lens; pairs are (y, x), in pixels."""

    turn: Tuple[float, ...]
    position: Tuple[float, ...]
    size: Tuple[int, int]
    focal: Tuple[float, float]
    centre: Tuple[float, float]

    @property
    def c2w(self) -> torch.Tensor:
        return torch.cat([rotation(self.turn), torch.tensor([self.position]).double().T], dim=-1)

    def project(self, points: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Pixels (y, x) at which points are seen, and their z."""
        right, up, back = ((points.double() - self.c2w[:, 3]) @ self.c2w[:, :3]).unbind(-1)
        slopes = torch.stack([up, -right], dim=-1) / back[..., None]
        return slopes * torch.tensor(self.focal) + torch.tensor(self.centre), -back


VIEWS = st.builds(View, VECTORS, VECTORS, st.tuples(SIDES, SIDES), st.tuples(*[numbers(16, 80)] * 2),
                  st.tuples(CENTRES, CENTRES))  # fmt: skip


def make_cameras(*views: View) -> Cameras:
    """nerfstudio's cameras of views of one size."""
    fy, fx, cy, cx = torch.tensor([view.focal + view.centre for view in views]).T[..., None]
    return Cameras(torch.stack([view.c2w for view in views]).float(), fx, fy, cx, cy, *views[0].size[::-1])


def seen(view: View, bundle, z: float = 3.0) -> torch.Tensor:
    """The pixels (y, x) at which a view sees the points at depth z on rays."""
    origins, directions = student_rays(bundle)
    pixels, depth = view.project(origins + z * directions)
    assert_close(depth, torch.full_like(depth, z), atol=1e-5, rtol=1e-5)
    assert_close(bundle.directions.norm(dim=-1), torch.ones(bundle.shape))
    return pixels


assert_near = functools.partial(assert_close, atol=3e-3, rtol=0, check_dtype=False)  # in pixels


@given(VIEWS, st.tuples(CENTRES, CENTRES), numbers(0.5, 50))
def test_a_point_on_a_ray_is_seen_at_the_rays_pixel_and_depth(view, corner, z):
    coords = torch.tensor(corner) + cell_centres(2, 3, (1.5, 2))
    assert_near(seen(view, cameras.rays_at(make_cameras(view), torch.tensor([0]), coords[None])[0], z), coords)
    (height, width), focal = view.size, view.focal[0]
    rays = cameras.pinhole_rays(view.c2w.float()[None], focal, height, width, coords[None])
    centred = view._replace(focal=(focal, focal), centre=(height / 2, width / 2))
    assert_near(seen(centred, rays[0], z), coords)


@given(VIEWS, st.data())
def test_a_crop_sees_the_pixels_of_the_whole_view_and_is_found_from_its_rays(view, data):
    top, left = (data.draw(st.integers(0, side - 2)) for side in view.size)
    height, width = (data.draw(st.integers(2, side - start)) for side, start in zip(view.size, (top, left)))
    crop = cameras.crop_camera(make_cameras(view), top, left, height, width)
    rays = crop.generate_rays(0, keep_shape=True)
    assert_near(seen(view, rays), torch.tensor([top, left]) + cell_centres(height, width, (1, 1)))
    assert_close(cameras.ray_lengths(crop), rays.metadata["directions_norm"])
    found = cameras.bundle_camera(rays)
    assert_close(found.camera_to_worlds, crop.camera_to_worlds, atol=1e-3, rtol=0)
    for name in ("height", "width", "fy", "fx", "cy", "cx"):
        assert_close(getattr(found, name), getattr(crop, name), rtol=1e-3, atol=1e-2)


@given(VIEWS, SIDES, SIDES)
def test_a_fitted_camera_keeps_the_middle_of_the_field_of_view(view, height, width):
    camera, factor = fitting.fit_cameras(make_cameras(view), height, width)
    old, new = torch.tensor(view.size), torch.tensor([height, width]).float()
    first, last = seen(view, cameras.rays_at(camera, torch.tensor([0]), torch.stack([0 * new, new])[None, None]))[0, 0]
    # Where a new pixel is the mean of whole old ones, the crop starts at a whole pixel.
    slack = float(factor <= 1 and (1 / factor).frac() == 0)
    assert_near((first + last).clamp(old - slack, old), first + last)
    assert_near(last - first, new / factor)
    # One side keeps the whole field of view, or all but two percent in a crop, and no side goes beyond it.
    kept = float(((last - first) / old).max())
    assert (fitting.CROP_ONLY if factor == 1 else 1) - 2e-3 <= kept <= 1 + 2e-3


def capture(seed: int, count: int, arc: float) -> torch.Tensor:
    """Cameras (N, 3, 4), double, on an arc of so many degrees, that look at about one point and are about level."""
    shake = torch.randn(9, count, generator=torch.Generator().manual_seed(seed)).double()
    azimuth = torch.deg2rad(arc / count * (torch.arange(count) + 0.2 * shake[0]))
    ahead = torch.stack([azimuth.cos(), azimuth.sin(), 0.3 + 0.2 * shake[1]], dim=-1)
    return look_at((3 + 0.3 * shake[2])[:, None] * ahead, 0.2 * shake[3:6].T, 0.05 * shake[6:].T + torch.eye(3)[2])


CAPTURES = st.builds(capture, SEEDS, st.integers(4, 8), st.sampled_from([90, 180, 360]))


def move(c2w: torch.Tensor, turn: Tuple[float, ...], shift: Tuple[float, ...], scale: float) -> torch.Tensor:
    """Poses in a world that is scaled, turned and shifted."""
    moved = rotation(turn).to(c2w) @ c2w
    return torch.cat([moved[:, :, :3], scale * moved[:, :, 3:] + torch.tensor([shift]).to(c2w).T], dim=-1)


def sample(poses, count: int) -> torch.Tensor:
    """Poses of a fixed seed, each a rotation."""
    torch.manual_seed(0)
    drawn = poses.sample(count)
    turn, one = drawn[:, :, :3], torch.eye(3).to(drawn).expand(count, 3, 3)
    assert_close(turn.transpose(1, 2) @ turn, one, atol=1e-4, rtol=0)
    assert (torch.linalg.det(turn) > 0).all()
    return drawn


@given(CAPTURES, VECTORS, VECTORS, SCALES)
def test_an_orbit_keeps_its_shell_and_moves_with_its_cameras(c2w, turn, shift, scale):
    plain, drawn = OrbitPoses(c2w), sample(OrbitPoses(move(c2w, turn, (0, 0, 0), 1)), 300)
    own, new = c2w[:, :, 3] - plain.centre, drawn[:, :, 3] @ rotation(turn) - plain.centre
    own_radius, new_radius = own.norm(dim=-1), new.norm(dim=-1)
    own, new = own / own_radius[:, None], new / new_radius[:, None]
    for inner, outer in ((new_radius, own_radius), (new @ plain.up, own @ plain.up)):
        assert outer.min() - 1e-6 < inner.min() and inner.max() < outer.max() + 1e-6
    # No direction is farther from a camera's than cameras are from each other, or 10 degrees.
    reach = max(float((own @ own.T - 9 * torch.eye(len(own))).amax(dim=1).arccos().max()), math.radians(10))
    assert (new @ own.T).amax(dim=1).clamp(-1, 1).arccos().max() < reach + 1e-6
    assert (drawn[:, :, 1] @ rotation(turn)).mean(dim=0)[2] > 0  # upright as the cameras
    # Directions are drawn along the world's axes: a turned world has others, of the same distribution.
    assert_close(new.mean(0), F.normalize(sample(plain, 300)[:, :, 3] - plain.centre, dim=-1).mean(0), atol=0.2, rtol=0)
    found = sample(OrbitPoses(move(c2w, (0, 0, 0), shift, scale)), 20)
    assert_close(found, move(sample(plain, 20), (0, 0, 0), shift, scale), atol=1e-5, rtol=0)


@given(CAPTURES, VECTORS, VECTORS, SCALES, st.booleans())
def test_a_path_moves_with_its_cameras(c2w, turn, shift, scale, is_shaken):
    """Jitter is drawn along the world's axes, so it stays the same if the world is not turned."""
    c2w, turn, jitter = c2w.float(), (0, 0, 0) if is_shaken else turn, 0.25 * is_shaken
    plain = sample(PathPoses(c2w, jitter=jitter), 20)
    found = sample(PathPoses(move(c2w, turn, shift, scale), jitter=jitter), 20)
    assert_close(found, move(plain, turn, shift, scale), atol=1e-3, rtol=0)
    if not is_shaken:  # then each pose is between two cameras
        start, way = c2w[:, None, :, 3], c2w[None, :, :, 3] - c2w[:, None, :, 3]
        offset = plain[:, None, None, :, 3] - start
        along = ((offset * way).sum(-1) / (way**2).sum(-1).clamp_min(1e-9)).clamp(0, 1)
        assert (offset - along[..., None] * way).norm(dim=-1).flatten(1).amin(dim=1).max() < 1e-4


def coordinates(size: Tuple[int, ...], mark: int, corner: Tuple[int, ...] = (0, 0)) -> torch.Tensor:
    """A picture of bytes: each pixel's row, column and mark."""
    return F.pad(cell_centres(*size, (1, 1)).floor() + torch.tensor(corner), (0, 1), value=mark).to(torch.uint8)


def assert_rays_meet_their_pixels(patches, views: List[View], upscale: int) -> None:
    """The view with a patch's mark sees the ray of a cell at the mean of the cell's pixels."""
    for b, pixels in enumerate(patches.pixels * 255):
        cells = F.avg_pool2d(pixels.permute(2, 0, 1), upscale).permute(1, 2, 0)
        mark = int(cells[0, 0, 2].round())
        assert_near(cells[..., 2], torch.full(cells.shape[:2], float(mark)))
        assert_near(seen(views[mark], patches.rays[b]), cells[..., :2] + 0.5)


@given(SEEDS, CELLS, st.tuples(CELLS, CELLS), SHIFTS, SHIFTS, SHIFTS, VIEWS, VECTORS)
def test_patches_of_the_pool_have_the_rays_of_their_pixels(seed, upscale, cells, extra, first, second, view, turn):
    tile = tuple(upscale * count + more for count, more in zip(cells, extra))
    height, width = size = tile[0] + 5, tile[1] + 5
    view = view._replace(focal=view.focal[:1] * 2, centre=(height / 2, width / 2))
    views = [view, view._replace(turn=turn, position=(1.0, 2.0, 3.0))]
    pool = ViewPool(3, tile, size, view.focal[0], upscale)  # one slot stays empty
    for mark, corner in enumerate((first, second)):
        pool.add(coordinates(tile, mark, corner) / 255, views[mark].c2w.float(), corner)
    torch.manual_seed(seed)
    assert_rays_meet_their_pixels(pool.sample(6, *cells), views, upscale)


@given(SEEDS, CELLS, CELLS, CELLS, VIEWS, st.lists(VECTORS, min_size=5, max_size=6), st.booleans())
def test_patches_of_photos_have_the_rays_of_their_pixels(seed, upscale, hc, wc, view, turns, has_many):
    """The directions of one lens are kept; those of five are not."""
    view, (fy, fx) = view._replace(size=((hc + 1) * upscale, (wc + 1) * upscale)), view.focal
    views = [view._replace(turn=turn, focal=(fy, fx + mark * has_many)) for mark, turn in enumerate(turns)]
    images = torch.stack([coordinates(view.size, mark) for mark in range(len(views))])
    torch.manual_seed(seed)
    patches = PhotoSet(images, make_cameras(*views), upscale).sample(6, hc, wc)
    assert_rays_meet_their_pixels(patches, views, upscale)


@given(SEEDS, RANGES)
def test_numbers_survive_as_bytes_to_half_a_step(seed, depths):
    stored = torch.arange(256).to(torch.uint8)[None, :, None].expand(1, 256, 6)
    assert torch.equal(to_bytes(from_bytes(stored, depths), depths), stored)
    torch.manual_seed(seed)
    share = torch.rand(8, 8, 6)
    image = torch.cat([share[..., :4], depths.denormalize(share[..., 4:5]), share[..., 5:]], dim=-1)
    image[0, :, 4], image[1, :, 4] = 0.0, 0.9 * depths.near  # not known, and in front of the near plane
    stored = to_bytes(image, depths)
    share[:2, :, 4] = 0
    assert ((stored / 255 - share).abs() < 0.5 / 255 + 1e-5).all()
    assert (from_bytes(stored, depths)[:2, :, 4] == 0).all()


@given(SEEDS, CELLS, RANGES, st.lists(st.integers(0, 4), min_size=1, max_size=3))
def test_a_reopened_cache_holds_the_newest_views_in_their_slots(tmp_path_factory, seed, capacity, depths, sessions):
    options = {"cache": tmp_path_factory.mktemp("cache"), "channels": 5, "depths": depths}
    newest, num_added = {}, 0
    torch.manual_seed(seed)
    for num_views in sessions:
        pool = ViewPool(capacity, (2, 3), (40, 40), 30.0, 1, **options)
        for number in range(num_added, num_added + num_views):
            image, c2w, corner = torch.rand(2, 3, 5), torch.rand(3, 4), (number, 2 * number)
            image[..., 4] *= depths.far
            pool.add(image, c2w, corner)
            newest[number % capacity] = to_bytes(image, depths), c2w, torch.tensor(corner)
        num_added += num_views
        for held in (pool, ViewPool(capacity, (2, 3), (40, 40), 30.0, 1, **options)):
            assert (len(held), held.num_added) == (len(newest), num_added)
            for slot, view in newest.items():
                assert all(map(torch.equal, (held.images[slot], held.c2w[slot], held.corner[slot]), view))


@given(CELLS, CELLS, CELLS, st.integers(0, 4))
def test_the_channel_of_a_code_is_coordinate_times_codes_plus_code(h, w, num_points, octaves):
    count, coordinates = 2 * octaves + 1, 3 * num_points
    codes = np.arange(count * h * w * coordinates, dtype=np.float32).reshape(1, count, h * w, coordinates)
    channel = np.arange(coordinates * count)
    expected = codes[0, channel % count, :, channel // count].reshape(1, -1, h, w)
    for found in (_permute(codes, expected.shape), _copy_flat(codes, expected.shape)):
        np.testing.assert_array_equal(found, expected)


@given(RANGES, st.lists(numbers(0, 1), min_size=1, max_size=9))
def test_depth_is_normalised_evenly_and_back(depths, shares):
    z, power = [depths.denormalize(share) for share in shares], -1 if depths.unbounded else 1
    near, far = depths.near**power, depths.far**power
    assert [value**power for value in z] == pytest.approx([near + (far - near) * share for share in shares])
    assert [depths.normalize(value) for value in z] == pytest.approx(shares, abs=1e-9)
    assert [depths.denormalize(depths.normalize(value)) for value in z] == pytest.approx(z)


@given(VIEWS, CELLS, CELLS, st.integers(2, 5), RANGES, VECTORS, numbers(0.5, 4))
def test_points_lie_on_their_rays_evenly_between_the_planes(view, h, w, num_points, depths, centre, radius):
    sampler, c2w, focal = Sampler(num_points, depths.unbounded).double(), view.c2w, view.focal[0]
    sampler.set_camera(h, w, focal, depths.near, depths.far)
    if depths.unbounded:
        sampler.set_contraction(centre, radius)
    points = sampler(c2w[None, None, :, :3], c2w[None, None, None, :, 3])[0, 0]
    assert_close(points, sampler.points(c2w[:, 3], sampler.directions() @ c2w[:, :3].T))  # as in training
    points = points.view(h, w, num_points, 3)
    if depths.unbounded:  # (2 - 1/m) x/m is turned back
        size = points.abs().amax(dim=-1, keepdim=True)
        assert size.max() <= 2
        points = torch.where(size > 1, points / size / (2 - size), points) * radius + torch.tensor(centre)
    pixels, z = view._replace(focal=(focal, focal), centre=(h / 2, w / 2)).project(points)
    assert_near(pixels, cell_centres(h, w, (1, 1))[:, :, None].expand_as(pixels))
    assert_near(depths.normalize(z), torch.linspace(0, 1, num_points).expand_as(z), atol=1e-6)
