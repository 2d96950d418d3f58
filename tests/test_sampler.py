"""Points on rays against closed formulas."""

import pytest
import torch

from mobiler2l_ns.student.sampler import DepthRange, Sampler


def make_sampler(num_points: int = 3, near: float = 2.0, far: float = 6.0) -> Sampler:
    sampler = Sampler(num_points)
    sampler.set_camera(2, 4, focal=5.0, near=near, far=far)
    return sampler


def test_points_by_hand():
    """Depths 2, 4, 6 along (0.5, -1, -1) from (1, 2, 3); column 3k + axis."""
    points = make_sampler().points(torch.tensor([[1.0, 2, 3]]), torch.tensor([[0.5, -1, -1]]))
    assert points.tolist() == [[2, 0, 1, 3, -2, -1, 4, -4, -3]]


def test_each_ray_may_have_depths_of_its_own():
    origins, directions = torch.zeros(2, 3), torch.tensor([[0.0, 0, -1], [1, 0, -1]])
    points = make_sampler().points(origins, directions, torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
    assert points.tolist() == [[0, 0, -1, 0, 0, -2, 0, 0, -3], [4, 0, -4, 5, 0, -5, 6, 0, -6]]


def test_directions_by_hand():
    """2 x 4 cells, focal 5: x = (j + .5 - 2)/5, y = -(i + .5 - 1)/5, row by row, top first."""
    x, y = [-0.3, -0.1, 0.1, 0.3], [0.1, -0.1]
    expected = torch.tensor([[column, row, -1] for row in y for column in x])
    torch.testing.assert_close(make_sampler().directions(), expected)


def test_forward_places_the_camera():
    sampler = make_sampler()
    rotation, _ = torch.linalg.qr(torch.randn(3, 3))
    position = torch.tensor([1.0, -2, 0.5])
    points = sampler(rotation[None, None], position.view(1, 1, 1, 3))
    assert points.shape == (1, 1, 8, 9)
    directions = sampler.directions() @ rotation.T
    expected = torch.cat([position + z * directions for z in (2.0, 4.0, 6.0)], dim=-1)
    torch.testing.assert_close(points[0, 0], expected, atol=1e-5, rtol=0)


def make_unbounded(near: float = 2.0, far: float = 6.0) -> Sampler:
    """Half the side of the cameras' cube is 2, its centre (1, 0, 0)."""
    sampler = Sampler(3, unbounded=True)
    sampler.set_camera(2, 4, focal=5.0, near=near, far=far)
    sampler.set_contraction((1.0, 0.0, 0.0), 2.0)
    return sampler


def test_unbounded_depths_are_even_in_one_over_z():
    """1/2, 1/3, 1/6: the middle one is the mean of the others."""
    assert make_unbounded().depths.tolist() == pytest.approx([2, 3, 6])
    assert make_unbounded(0.5, 1000.0).depths.tolist() == pytest.approx([0.5, 2 / 2.001, 1000])
    depths = DepthRange(2.0, 6.0, unbounded=True)
    assert [depths.normalize(z) for z in (2.0, 3.0, 6.0)] == pytest.approx([0, 0.5, 1])


def test_contraction_by_hand():
    """In units of the cube (x - 1, y, z) / 2. Outside, at m = 4, a point is shrunk by (2 - 1/4) / 4 = 7/16."""
    inside, outside, far = [2.0, -1.0, 1.0], [3.0, 4.0, -8.0], [1.0, 1e9, 0.0]
    found = make_unbounded().contract(torch.tensor([inside, outside, far]), axis=-1)
    assert found.tolist()[0] == pytest.approx([0.5, -0.5, 0.5])
    assert found.tolist()[1] == pytest.approx([7 / 16, 2 * 7 / 16, -4 * 7 / 16])
    assert found.tolist()[2] == pytest.approx([0, 2, 0])
    assert Sampler(3).contract(torch.tensor([outside]), axis=-1).tolist() == [outside]


def test_an_unbounded_forward_agrees_with_training():
    """forward, which is exported, against points, which is used in training; inside the cube and far outside."""
    torch.manual_seed(0)
    sampler = make_unbounded(0.1, 500.0)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3))
    position = torch.tensor([1.0, -0.5, 0.5])
    directions = sampler.directions() @ rotation.T
    expected = sampler.points(position, directions)
    assert expected.abs().max() > 1.9 and expected[:, :3].abs().max() < 1
    torch.testing.assert_close(sampler(rotation[None, None], position.view(1, 1, 1, 3))[0, 0], expected)


def test_jittered_depths_stay_in_their_strata():
    """Even depths 2, 4, 6 have strata 2..3, 3..5, 5..6."""
    torch.manual_seed(0)
    depths = make_sampler().jittered_depths(torch.zeros(50, 40, 3))
    assert depths.shape == (50, 40, 3)
    lower, upper = torch.tensor([2.0, 3, 5]), torch.tensor([3.0, 5, 6])
    assert (lower <= depths).all() and (depths <= upper).all() and (depths.diff(dim=-1) >= 0).all()
    torch.testing.assert_close(depths.mean(dim=(0, 1)), (lower + upper) / 2, atol=0.05, rtol=0)


def test_camera_and_depths_are_saved_with_the_weights():
    copied = Sampler(3)
    copied.load_state_dict(make_sampler().state_dict())
    assert copied.depths.tolist() == [2, 4, 6] and copied.grid.tolist() == [2, 4] and float(copied.focal) == 5
    unbounded = Sampler(3, unbounded=True)
    unbounded.load_state_dict(make_unbounded().state_dict())
    assert unbounded.centre.tolist() == [1, 0, 0] and float(unbounded.radius) == 2


def test_a_bounded_sampler_has_no_buffers_for_the_contraction():
    assert list(make_sampler().state_dict()) == ["grid", "focal", "near", "far"]
