"""Rays of the student against closed formulas and nerfstudio's rays, and images whose pixels keep their rays."""

import pytest
import torch
from builders import camera_at
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle

from mobiler2l_ns.cameras import (
    bundle_camera,
    cell_centres,
    crop_camera,
    pinhole_cameras,
    pinhole_rays,
    ray_lengths,
    rays_at,
    sphere_bounds,
    student_rays,
    student_view,
    to_camera_size,
)
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.fitting import fit_cameras, fit_image
from mobiler2l_ns.geometry import look_at
from mobiler2l_ns.student.coverage import ray_distances
from mobiler2l_ns.student.sampler import Sampler

ZERO = torch.zeros(1, dtype=torch.long)


def poses(count: int, seed: int = 0) -> torch.Tensor:
    """Random rotations (by QR, made right-handed) with random positions, (count, 3, 4)."""
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator))
    rotation[:, :, 2] *= torch.linalg.det(rotation)[:, None]
    return torch.cat([rotation, torch.randn(count, 3, 1, generator=generator)], dim=-1)


def make_camera(height: int, width: int, focal: float, cx: float, cy: float) -> Cameras:
    """One turned camera with its principal point anywhere."""
    return Cameras(poses(1), fx=focal, fy=focal, cx=cx, cy=cy, width=width, height=height)


def pixel_rays(camera: Cameras, height: int, width: int) -> torch.Tensor:
    """Student directions (height, width, 3) of all pixel centres: linear in the pixel's position."""
    return student_rays(rays_at(camera, ZERO, cell_centres(height, width, (1, 1))[None]))[1][0]


def test_directions_follow_the_pinhole_formula():
    camera = make_camera(32, 48, focal=50.0, cx=20.0, cy=13.0)
    coords = torch.tensor([[0.5, 0.5], [13.0, 20.0], [31.0, 2.25]])  # (y, x); the second is the principal point
    origins, directions = student_rays(camera.generate_rays(0, coords=coords))
    # ((x - cx)/f, -(y - cy)/f, -1) in camera axes
    by_hand = torch.tensor([[-19.5 / 50, 12.5 / 50, -1], [0, 0, -1], [-17.75 / 50, -18 / 50, -1]])
    c2w = camera.camera_to_worlds[0]
    torch.testing.assert_close(directions @ c2w[:, :3], by_hand, atol=1e-5, rtol=0)
    torch.testing.assert_close(origins, c2w[:, 3].expand(3, 3))


def test_pinhole_rays_are_those_of_nerfstudios_pinhole_cameras():
    c2w, coords = poses(4), torch.rand(4, 3, 5, 2) * torch.tensor([32.0, 48.0])
    theirs = rays_at(pinhole_cameras(c2w, 200.0, 32, 48), torch.arange(4), coords)
    ours = pinhole_rays(c2w, 200.0, 32, 48, coords)
    assert ours.shape == (4, 3, 5)
    torch.testing.assert_close(ours.origins, theirs.origins)
    torch.testing.assert_close(ours.directions, theirs.directions)
    torch.testing.assert_close(ours.metadata["directions_norm"], theirs.metadata["directions_norm"])
    # nerfstudio multiplies two differences of directions: 1 percent off at this focal length.
    torch.testing.assert_close(ours.pixel_area, theirs.pixel_area, rtol=0.02, atol=0)


def test_rays_at_equals_each_cameras_own_rays_with_lens_distortion():
    distortion = torch.tensor([[0.1, -0.05, 0, 0, 0.01, 0.0], [0] * 6, [-0.2, 0.1, 0, 0, 0, 0.02]])
    focal = torch.tensor([[40.0], [50.0], [60.0]])
    cameras = Cameras(poses(3), fx=focal, fy=focal, cx=24.0, cy=16.0, width=48, height=32, distortion_params=distortion)
    indices = torch.tensor([2, 0, 2, 1])
    coords = torch.rand(4, 3, 5, 2) * torch.tensor([32.0, 48.0])
    bundle = rays_at(cameras, indices, coords)
    assert bundle.shape == (4, 3, 5)
    for b, index in enumerate(indices):
        own = cameras[index : index + 1].generate_rays(0, coords=coords[b])
        torch.testing.assert_close(bundle.origins[b], own.origins)
        torch.testing.assert_close(bundle.directions[b], own.directions)
        torch.testing.assert_close(bundle.metadata["directions_norm"][b], own.metadata["directions_norm"])
    straight = rays_at(Cameras(poses(3), focal, focal, 24.0, 16.0, 48, 32), indices, coords)
    assert (bundle.directions[0] - straight.directions[0]).abs().max() > 1e-3  # the lens does bend


def test_cell_centres_by_hand():
    expected = [[[4, 1], [4, 3], [4, 5]], [[12, 1], [12, 3], [12, 5]]]
    assert cell_centres(2, 3, (8, 2)).tolist() == expected


def test_sampler_directions_equal_the_rays_of_a_centred_pinhole():
    sampler = Sampler(2)
    sampler.set_camera(3, 5, focal=37.0 / 8, near=1.0, far=2.0)
    camera = pinhole_cameras(torch.eye(4)[None, :3], 37.0, 24, 40)
    _, directions = student_rays(rays_at(camera, ZERO, cell_centres(3, 5, (8, 8))[None]))
    torch.testing.assert_close(sampler.directions(), directions.view(-1, 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "old, new, border",
    [((60, 80), (32, 32), 1), ((60, 80), (30, 40), 0), ((31, 47), (24, 32), 1), ((20, 24), (40, 48), 1)],
)
def test_fitted_pixels_stay_on_their_rays(old, new, border):
    """A picture of the rays themselves is linear in the pixels, so resampled it shows the fitted camera's rays."""
    camera = make_camera(*old, focal=70.0, cx=old[1] / 2 - 3, cy=old[0] / 2 + 2)
    fitted, factor = fit_cameras(camera, *new)
    assert (int(fitted.height), int(fitted.width)) == new
    assert float(factor) == pytest.approx(max(new[0] / old[0], new[1] / old[1]))
    picture = fit_image(pixel_rays(camera, *old), *new)
    inner = slice(border, -border or None)
    torch.testing.assert_close(picture[inner, inner], pixel_rays(fitted, *new)[inner, inner], atol=2e-5, rtol=0)


def test_fit_takes_one_factor_and_the_middle():
    camera = make_camera(60, 80, focal=70.0, cx=40.0, cy=30.0)
    fitted, factor = fit_cameras(camera, 30, 30)
    # 30/60 covers both sides; 40 scaled columns remain, of which the middle 30 are kept.
    assert float(factor) == 0.5
    assert [float(v) for v in (fitted.fx, fitted.fy, fitted.cx, fitted.cy)] == [35, 35, 15, 15]


@pytest.mark.parametrize("times", [2, 3, 5])
@pytest.mark.parametrize("height, width", [(8, 16), (24, 40), (56, 48)])
def test_whole_factors_are_box_filters(height, width, times):
    picture = torch.rand(height * times, width * times, 3)
    boxes = picture.view(height, times, width, times, 3).mean(dim=(1, 3))
    torch.testing.assert_close(fit_image(picture, height, width), boxes, atol=1e-5, rtol=0)


def test_equal_size_is_the_identity():
    camera, picture = make_camera(31, 47, focal=70.0, cx=20.0, cy=15.0), torch.rand(31, 47, 3)
    assert torch.equal(fit_image(picture, 31, 47), picture)
    fitted, factor = fit_cameras(camera, 31, 47)
    assert float(factor) == 1
    for name in ("fx", "fy", "cx", "cy", "width", "height"):
        assert torch.equal(getattr(fitted, name), getattr(camera, name)), name


@pytest.mark.parametrize("new, corner", [((816, 1232), (3, 2)), ((822, 1232), (0, 2)), ((806, 1213), (8, 12))])
def test_an_image_that_is_a_little_too_large_is_cropped_at_whole_pixels(new, corner):
    """Resampled by 0.996 or moved by half a pixel, a photo of mip-NeRF 360 would lose its finest detail."""
    (height, width), (top, left) = new, corner
    picture, camera = torch.rand(822, 1237, 3), make_camera(822, 1237, focal=900.0, cx=610.0, cy=420.0)
    assert torch.equal(fit_image(picture, *new), picture[top : top + height, left : left + width])
    fitted, factor = fit_cameras(camera, *new)
    assert float(factor) == 1
    assert [float(v) for v in (fitted.fx, fitted.fy, fitted.cx, fitted.cy)] == [900, 900, 610 - left, 420 - top]


@pytest.mark.parametrize("new", [(816, 1232), (822, 1232), (400, 616), (411, 618), (900, 1300)], ids=str)
def test_denser_photos_have_the_same_field_of_view(new):
    """The teacher's depth of a photo is laid over a photo of twice its pixels."""
    picture, camera = torch.rand(822, 1237, 3), make_camera(822, 1237, focal=900.0, cx=610.0, cy=420.0)
    (once, factor), (twice, doubled) = (fit_cameras(camera, *new, density) for density in (1, 2))
    assert float(doubled) == 2 * float(factor)
    for name in ("fx", "fy", "cx", "cy", "width", "height"):
        assert float(getattr(twice, name)) == pytest.approx(2 * float(getattr(once, name)))
    dense = fit_image(pixel_rays(camera, 822, 1237), *new, 2)
    assert dense.shape[:2] == (2 * new[0], 2 * new[1]) and fit_image(picture, *new).shape[:2] == new
    inner = slice(2, -2)
    expected = pixel_rays(twice, 2 * new[0], 2 * new[1])[inner, inner]
    torch.testing.assert_close(dense[inner, inner], expected, atol=2e-5, rtol=0)


def test_an_image_that_is_larger_by_more_is_resampled():
    assert float(fit_cameras(make_camera(800, 800, focal=900.0, cx=400.0, cy=400.0), 776, 776)[1]) < 0.971


def test_a_crop_has_the_rays_of_its_pixels():
    camera = make_camera(32, 48, focal=50.0, cx=20.0, cy=13.0)
    crop = crop_camera(camera, top=5, left=11, height=16, width=24).generate_rays(0, keep_shape=True)
    whole = camera.generate_rays(0, keep_shape=True)[5:21, 11:35]
    assert crop.shape == (16, 24)
    torch.testing.assert_close(crop.directions, whole.directions)
    torch.testing.assert_close(crop.origins, whole.origins)


def test_the_trained_view_is_neither_cropped_nor_resized():
    camera = make_camera(32, 48, focal=50.0, cx=24.0, cy=16.0)
    view = student_view(camera, 50.0, 8)
    cells = rays_at(camera, ZERO, cell_centres(4, 6, (8, 8))[None])
    torch.testing.assert_close(view.rays.directions, cells.directions, atol=0, rtol=0)
    assert view[1:] == (32, 48, 32, 48)
    picture = torch.rand(3, 32, 48)
    assert torch.equal(to_camera_size(picture, view), picture.permute(1, 2, 0))


@pytest.mark.parametrize("fx, fy", [(1000.0, 999.25), (1003.0, 1000.0), (996.9, 1000.0)], ids=str)
def test_nearly_the_trained_focal_length_resizes_nothing(fx, fy):
    """The student has one focal length, photos have two, and each camera has its own: 1280 columns change by 4."""
    camera = make_camera(720, 1280, focal=fx, cx=640.0, cy=360.0)
    camera.fy[:] = fy
    view = student_view(camera, 1000.0, 8)
    cells = rays_at(camera, ZERO, cell_centres(90, 160, (8, 8))[None])
    torch.testing.assert_close(view.rays.directions, cells.directions, atol=0, rtol=0)
    assert view[1:] == (720, 1280, 720, 1280)


def test_another_focal_length_is_resized():
    assert student_view(make_camera(720, 1280, focal=990.0, cx=640.0, cy=360.0), 1000.0, 8)[1:3] == (727, 1293)


def test_an_odd_size_is_cropped_from_whole_cells():
    view = student_view(make_camera(30, 53, focal=50.0, cx=26.5, cy=15.0), 50.0, 8)
    assert view.rays.shape == (1, 4, 7)  # 30/8 and 53/8 rounded up
    picture = torch.rand(3, 32, 56)
    assert torch.equal(to_camera_size(picture, view), picture[:, :30, :53].permute(1, 2, 0))


def test_rays_of_another_focal_length_hit_the_cell_centres():
    """Twice the focal length: a student's cell of 8 pixels spans 16 of the camera's, centres at 8, 24, ..."""
    camera = make_camera(64, 96, focal=100.0, cx=50.0, cy=30.0)
    view = student_view(camera, 50.0, 8)
    y, x = torch.meshgrid(torch.arange(8.0, 64, 16), torch.arange(8.0, 96, 16), indexing="ij")
    expected = torch.stack([(x - 50) / 100, -(y - 30) / 100, -torch.ones_like(x)], dim=-1)
    directions = student_rays(view.rays)[1][0] @ camera.camera_to_worlds[0, :, :3]
    torch.testing.assert_close(directions, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("height, width, focal", [(30, 53, 31.0), (61, 108, 90.0), (288, 102, 300.0), (16, 16, 50.0)])
def test_pictures_of_any_camera_stay_on_their_rays(height, width, focal):
    """A student that draws its own rays (linear within and across cells) must draw the camera's after resizing."""
    camera, s = make_camera(height, width, focal, cx=width / 2, cy=height / 2), 8
    view = student_view(camera, 50.0, s)
    cells = student_rays(view.rays)[1][0]
    h, w = cells.shape[:2]
    # Directions at the student's pixels, extended linearly from the first cell: (k + .5)/s cells from the corner.
    rows, columns = ((torch.arange(n * s) + 0.5) / s - 0.5 for n in (h, w))
    down, right = (cells[1, 0] - cells[0, 0]), (cells[0, 1] - cells[0, 0])
    drawn = cells[0, 0] + rows[:, None, None] * down + columns[None, :, None] * right
    picture = to_camera_size(drawn.permute(2, 0, 1), view)
    border = 2 + round(focal / 50)
    inner = slice(border, -border)
    error = (picture - pixel_rays(camera, height, width))[inner, inner].abs().max() * focal  # in pixels
    assert error < 0.06  # an antialiased resize weighs its taps by whole pixels, so it is not exact


# -- bounds of a sphere -----------------------------------------------------------------------------------------------


def test_sphere_bounds_by_hand():
    """A ball of radius 2.4 seen from 4: its tangents are at asin(0.6), tan = 0.75, so 45 pixels at focal 60."""
    camera = camera_at(4.0, focal=60.0, height=200, width=300)
    assert sphere_bounds(camera, torch.zeros(3), 2.4) == pytest.approx((55, 105, 90, 90), abs=1)
    assert sphere_bounds(camera, torch.zeros(3), 2.4, margin=10) == pytest.approx((45, 95, 110, 110), abs=1)
    assert sphere_bounds(camera, torch.zeros(3), 4.5) == (0, 0, 200, 300)  # from inside
    assert sphere_bounds(camera, camera.camera_to_worlds[0] @ torch.tensor([0.0, 1.0, 9.0, 1.0]), 9.5) == (
        0,
        0,
        200,
        300,
    )
    assert 0 in sphere_bounds(camera, 2 * camera.camera_to_worlds[0, :, 3], 1.0)[2:]  # behind


@pytest.mark.parametrize("aim", [(0.0, 0.0, 0.0), (1.0, -0.5, 0.3), (0.0, 3.0, 0.0)])
def test_sphere_bounds_contain_every_ray_that_meets_the_sphere(aim):
    camera = camera_at(4.0, focal=20.0, height=80, width=100)
    y, x = torch.meshgrid(torch.arange(80) + 0.5, torch.arange(100) + 0.5, indexing="ij")
    rays = rays_at(camera, torch.zeros(1, dtype=torch.long), torch.stack([y, x], -1)[None])
    meets = ray_distances(rays.origins, rays.directions, torch.tensor(aim))[0] <= 0.9
    top, left, height, width = sphere_bounds(camera, torch.tensor(aim), 0.9)
    rows, columns = meets.any(1).nonzero()[:, 0], meets.any(0).nonzero()[:, 0]
    # The window is as small as it can be: a pixel at most on each side.
    assert 0 <= rows[0] - top <= 1 and 0 <= top + height - 1 - rows[-1] <= 1
    assert 0 <= columns[0] - left <= 1 and 0 <= left + width - 1 - columns[-1] <= 1


def test_ray_lengths_are_nerfstudios():
    camera = camera_at(4.0, height=24, width=40)
    camera.cx += 3  # a crop's
    exact = camera.generate_rays(0, keep_shape=True).metadata["directions_norm"]
    torch.testing.assert_close(ray_lengths(camera), exact)
    camera.distortion_params = torch.tensor([[0.1, 0, 0, 0, 0, 0]])
    bent = ray_lengths(camera)
    assert (bent - exact).abs().max() > 1e-4
    torch.testing.assert_close(bent, camera.generate_rays(0, keep_shape=True).metadata["directions_norm"])


# -- a camera out of its rays -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 2), (24, 40), (61, 33)])
def test_a_pinhole_is_recovered_from_its_rays(shape):
    height, width = shape
    c2w = look_at(torch.tensor([[3.0, -1.0, 2.0]]), torch.zeros(1, 3), torch.tensor([0.0, 0.0, 1.0]))
    camera = Cameras(c2w, fx=70.0, fy=55.0, cx=11.5, cy=20.25, width=width, height=height)
    found = bundle_camera(camera.generate_rays(0, keep_shape=True))
    torch.testing.assert_close(found.camera_to_worlds, c2w, atol=1e-5, rtol=0)
    for name, value in {"fx": 70, "fy": 55, "cx": 11.5, "cy": 20.25, "width": width, "height": height}.items():
        assert float(getattr(found, name)) == pytest.approx(value, abs=2e-3), name


def distorted():
    camera = camera_at(4.0)
    camera.distortion_params = torch.tensor([[0.1, 0, 0, 0, 0, 0]])
    return camera.generate_rays(0, keep_shape=True)


def moving_origins():
    rays = camera_at(4.0).generate_rays(0, keep_shape=True)
    rays.origins = rays.origins + torch.linspace(0, 1, 48)[None, :, None]
    return rays


def mirrored():
    rays = camera_at(4.0).generate_rays(0, keep_shape=True)
    return rays[:, torch.arange(47, -1, -1)]


def parallel():
    ones = torch.ones(4, 5, 3) / 3**0.5
    return RayBundle(0 * ones, ones, ones[..., :1], metadata={"directions_norm": torch.ones(4, 5, 1)})


@pytest.mark.parametrize("make", [distorted, moving_origins, mirrored, parallel, lambda: distorted().flatten()])
def test_rays_of_no_pinhole_are_refused(make):
    with pytest.raises(UserError, match="pinhole cameras, not single rays: add --texture-method"):
        bundle_camera(make())


def test_panoramas_are_refused():
    camera = camera_at(4.0)
    camera.camera_type = torch.full_like(camera.camera_type, CameraType.EQUIRECTANGULAR.value)
    with pytest.raises(UserError, match="panoramas"):
        student_view(camera, 60.0, 8)
