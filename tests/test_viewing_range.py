"""Where a student may be looked at from: ranges of known cameras, and poses inside them."""

import math

import pytest
import torch
from builders import UP, ring

from mobiler2l_ns.geometry import look_at
from mobiler2l_ns.student.viewing_range import fit_range


def test_a_full_orbit_has_its_ranges_and_no_azimuth():
    found = fit_range(ring(range(0, 360, 30), (10.0, 50.0), (2.0, 3.0), centre=(1.0, 2.0, 0.5)))
    assert found.azimuth is None
    assert found.centre.tolist() == pytest.approx([1.0, 2.0, 0.5], abs=1e-4)
    assert found.up.tolist() == pytest.approx([0, 0, 1], abs=1e-5)
    assert found.radius == pytest.approx((2.0, 3.0), abs=1e-4)
    assert [math.degrees(e) for e in found.elevation] == pytest.approx([10, 50], abs=1e-2)


def test_part_of_an_orbit_stays_a_part():
    """Cameras from 300 over 0 to 60 degrees: the gap of 240 degrees is not crossed."""
    cameras = ring((300, 330, 0, 30, 60))
    found = fit_range(cameras, torch.zeros(3))
    low, high = found.azimuth
    assert math.degrees(high - low) == pytest.approx(120, abs=1e-2)
    ends = torch.stack([found.pose(low, 0.0, 2.0), found.pose(high, 0.0, 2.0)])
    expected = ring((300, 60))
    assert torch.allclose(ends, expected, atol=1e-4) or torch.allclose(ends.flip(0), expected, atol=1e-4)


def test_its_poses_are_the_cameras_of_those_angles():
    """East is azimuth 0 and north = up x east; the picture's up is the orbit's."""
    found = fit_range(ring(range(0, 360, 45), (0.0, 60.0)))
    azimuth = math.degrees(math.atan2(float(found.east[1]), float(found.east[0])))
    expected = ring((azimuth + 40.0,), (25.0,), (3.0,))[0]
    assert torch.allclose(found.pose(math.radians(40), math.radians(25), 3.0), expected, atol=1e-4)


def test_samples_lie_inside_and_repeat():
    cameras = ring((300, 330, 0, 30, 60), (10.0, 40.0), (2.0, 4.0))
    found = fit_range(cameras, torch.zeros(3))
    poses = found.sample(50, seed=3)
    assert torch.equal(poses, found.sample(50, seed=3)) and not torch.equal(poses, found.sample(50, seed=4))
    radius = poses[:, :, 3].norm(dim=-1)
    assert 2.0 <= float(radius.min()) < float(radius.max()) <= 4.0
    elevation = torch.asin(poses[:, 2, 3] / radius).rad2deg()
    assert 9.9 <= float(elevation.min()) and float(elevation.max()) <= 40.1
    assert float(poses[:, 0, 3].min()) > 0  # within 60 degrees of azimuth 0
    assert torch.allclose(-poses[:, :, 2] * radius[:, None] + poses[:, :, 3], torch.zeros(3), atol=1e-5)


def test_cameras_that_look_outwards_get_a_centre_in_front_of_them():
    """Side by side and slightly apart: their axes meet behind them."""
    position = torch.tensor([[-1.0, 0, 0], [0, 0, 0], [1.0, 0, 0]])
    target = torch.tensor([[-1.5, 5.0, 0], [0, 5.0, 0], [1.5, 5.0, 0]])
    found = fit_range(look_at(position, target, UP))
    assert found.centre.tolist() == pytest.approx([0.0, 2.0, 0.0], abs=1e-4)
    assert found.azimuth is not None and found.radius[0] == pytest.approx(2.0, abs=1e-4)
