"""New camera poses: geometry by hand, and the region in which each distribution stays."""

import math

import pytest
import torch

from mobiler2l_ns.data.poses import OrbitPoses, PathPoses, fit_poses
from mobiler2l_ns.geometry import focus_point, look_at

UP = torch.tensor([0.0, 0.0, 1.0])
CENTRE = torch.tensor([0.3, -0.2, 0.5])


def shell(azimuths, elevations, radii) -> torch.Tensor:
    """Poses (N, 3, 4) around CENTRE that look at it; angles in degrees."""
    a, e, r = (torch.as_tensor(v, dtype=torch.float32) for v in (azimuths, elevations, radii))
    a, e = a.deg2rad(), e.deg2rad()
    offset = torch.stack([e.cos() * a.cos(), e.cos() * a.sin(), e.sin().expand_as(a)], dim=-1) * r.view(-1, 1)
    return look_at(CENTRE + offset, CENTRE.expand_as(offset), UP)


def ring(count: int = 36) -> torch.Tensor:
    """Cameras all round, 20 to 60 degrees up, 3 to 4 away."""
    k = torch.arange(count)
    return shell(k * 360 / count, 20 + 40 * (k % 5) / 4, 3 + (k % 3) / 2)


def forward_facing() -> torch.Tensor:
    """A 3 x 3 grid of cameras, one apart in the plane z = 0, that all look along -z."""
    c2w = torch.eye(4)[:3].repeat(9, 1, 1)
    c2w[:, 0, 3], c2w[:, 1, 3] = torch.arange(9) % 3, torch.arange(9) // 3
    return c2w


def assert_rotations(c2w: torch.Tensor) -> None:
    rotation = c2w[:, :, :3]
    torch.testing.assert_close(rotation.transpose(1, 2) @ rotation, torch.eye(3).expand_as(rotation), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(len(c2w)), atol=1e-5, rtol=0)


def test_look_at_by_hand():
    pose = look_at(torch.tensor([[0.0, -4, 0]]), torch.zeros(1, 3), UP)[0]
    # From -y towards the origin: x stays right, z is up in the picture, and the camera's back is -y.
    assert pose.tolist() == [[1, 0, 0, 0], [0, 0, -1, -4], [0, 1, 0, 0]]


def test_look_at_is_a_rotation_that_looks_at_its_target():
    position, target = torch.randn(50, 3), torch.randn(50, 3)
    poses = look_at(position, target, UP)
    assert_rotations(poses)
    distance = (target - position).norm(dim=-1, keepdim=True)
    torch.testing.assert_close(position - distance * poses[:, :, 2], target, atol=1e-5, rtol=0)
    assert (poses[:, 2, 0].abs() < 1e-6).all() and (poses[:, 2, 1] > 0).all()  # level, and not upside down


def test_focus_point_is_where_the_axes_meet():
    torch.testing.assert_close(focus_point(ring()), CENTRE, atol=1e-4, rtol=0)


def test_focus_point_is_half_way_between_two_skew_axes():
    """Axes along x through (0, 0, 1) and along y through (0, 0, -1) come nearest at (0, 0, +-1): the middle is 0."""
    position = torch.tensor([[-5.0, 0, 1], [0, -5, -1]])
    poses = look_at(position, position + torch.tensor([[1.0, 0, 0], [0, 1, 0]]), UP)
    torch.testing.assert_close(focus_point(poses), torch.zeros(3), atol=1e-5, rtol=0)


def test_an_orbit_stays_in_its_shell():
    cameras = ring()
    sampler = OrbitPoses(cameras)
    poses = sampler.sample(2000)
    assert_rotations(poses)
    offset = poses[:, :, 3] - CENTRE
    radius = offset.norm(dim=-1)
    assert 3 - 1e-3 < radius.min() < 3.05 and 3.95 < radius.max() < 4 + 1e-3
    # Heights lie between the sines of the lowest and the highest camera, seen along the cameras' mean up.
    height = (offset / radius[:, None]) @ sampler.up
    own = cameras[:, :, 3] - CENTRE
    own_height = (own / own.norm(dim=-1, keepdim=True)) @ sampler.up
    assert own_height.min() - 1e-3 < height.min() and height.max() < own_height.max() + 1e-3
    assert height.max() - height.min() > 0.9 * (own_height.max() - own_height.min())
    # Every camera looked exactly at the centre, so every new pose does.
    torch.testing.assert_close(poses[:, :, 2], offset / radius[:, None], atol=1e-3, rtol=0)


def test_an_orbit_turns_about_any_up():
    """The same shell lying on its side (y up) keeps its heights; nothing may lean on z."""
    turn = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    sampler = OrbitPoses(turn @ ring())
    offset = sampler.sample(500)[:, :, 3] - turn @ CENTRE
    elevation = torch.rad2deg(torch.asin((offset / offset.norm(dim=-1, keepdim=True)) @ (turn @ UP)))
    assert 17 < elevation.min() and elevation.max() < 63  # up is a mean of few cameras, so not exactly y


def test_an_orbit_keeps_near_its_cameras_and_a_half_orbit_stays_half():
    # Gaps of 15 degrees on a circle 40 degrees up: chord 2 sin(7.5) cos(40) = 0.2 is 11.5 degrees.
    cameras = shell(torch.arange(0, 181, 15), 40.0, 3.0)
    sampler = OrbitPoses(cameras)
    assert math.degrees(sampler.reach) == pytest.approx(11.48, abs=0.05)
    # All cameras stand equally high, yet up leans to where they stand: heights are relative to it.
    offset = sampler.sample(1000)[:, :, 3] - sampler.centre
    directions = offset / offset.norm(dim=-1, keepdim=True)
    nearest = (directions @ sampler.directions.T).max(dim=1).values.clamp(-1, 1).arccos()
    assert nearest.max() <= sampler.reach + 1e-3
    azimuth = torch.rad2deg(torch.atan2(offset[:, 1], offset[:, 0]))
    # 11.48 degrees on the sphere are at most asin(sin(11.48) / cos(40)) = 15.1 of azimuth beside a camera.
    beyond = torch.where(azimuth < -90, azimuth + 360, azimuth)
    assert -25 < beyond.min() and beyond.max() < 205
    assert beyond.min() < 20 and beyond.max() > 160


def two_cameras() -> torch.Tensor:
    c2w = torch.eye(4)[:3].repeat(2, 1, 1)
    c2w[1, 0, 3] = 2.0
    return c2w


def test_a_path_without_jitter_lies_between_neighbours():
    poses = PathPoses(two_cameras(), jitter=0).sample(400)
    x, y, z = poses[:, :, 3].unbind(-1)
    assert (y == 0).all() and (z == 0).all()
    assert 0 <= x.min() < 0.1 and 1.9 < x.max() <= 2
    torch.testing.assert_close(poses[:, :, :3], torch.eye(3).expand(400, 3, 3))


def test_jitter_is_a_fraction_of_the_neighbours_distance():
    poses = PathPoses(two_cameras(), jitter=0.25).sample(4000)
    assert poses[:, 1:, 3].std(dim=0).tolist() == pytest.approx([0.5, 0.5], rel=0.1)  # a quarter of 2


def test_a_path_begins_and_ends_at_cameras(monkeypatch):
    cameras = ring(12)
    for blend in (torch.zeros, torch.ones):
        monkeypatch.setattr(torch, "rand", blend)
        poses = PathPoses(cameras, jitter=0).sample(50)
        monkeypatch.undo()
        nearest = (poses[:, None] - cameras).abs().amax(dim=(2, 3)).min(dim=1).values
        assert nearest.max() < 1e-5


def test_path_poses_are_rotations_within_the_hull_and_its_jitter():
    poses = PathPoses(forward_facing()).sample(1000)
    assert_rotations(poses)
    # Neighbours of a 3 x 3 grid are at most 2 apart: the hull 0..2 grows by five deviations of at most 0.5.
    assert poses[:, :2, 3].min() > -2.5 and poses[:, :2, 3].max() < 4.5
    torch.testing.assert_close(poses[:, :, 2], torch.tensor([0.0, 0, 1]).expand(1000, 3))


def test_a_camera_with_another_direction_is_no_neighbour():
    # Two pairs back to back: the nearest camera of each looks the other way.
    position = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 0.5, 0], [1, 0.5, 0]])
    facing = torch.tensor([[0.0, -1, 0], [0, -1, 0], [0, 1, 0], [0, 1, 0]])
    sampler = PathPoses(look_at(position, position + facing, UP), num_neighbours=1)
    assert sampler.neighbours[:, 0].tolist() == [1, 0, 3, 2]


def test_auto_knows_an_orbit_from_a_path():
    assert fit_poses(ring()).kind == "orbit"
    assert fit_poses(forward_facing()).kind == "path"
    assert fit_poses(shell(torch.arange(0, 181, 15), 40.0, 3.0)).kind == "path"  # a gap of 180 degrees
    outwards = ring()
    outwards[:, :, [0, 2]] *= -1  # the same places, looking out
    assert fit_poses(outwards).kind == "path"
    assert fit_poses(ring(), "path").kind == "path" and fit_poses(forward_facing(), "orbit").kind == "orbit"


@pytest.mark.parametrize("cameras", [ring(), forward_facing()], ids=["orbit", "path"])
def test_poses_follow_the_global_seed(cameras):
    def draw(seed):
        torch.manual_seed(seed)
        return fit_poses(cameras).sample(5)

    assert torch.equal(draw(1), draw(1))
    assert (draw(1) - draw(2)).abs().amin(dim=0).max() > 1e-3
    assert draw(3).shape == (5, 3, 4)


@pytest.mark.parametrize("kind", ["auto", "orbit", "path"])
def test_one_camera_gives_finite_poses(kind):
    poses = fit_poses(ring()[:1], kind).sample(20)
    assert poses.isfinite().all()
    assert_rotations(poses)
