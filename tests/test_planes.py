"""Near and far plane: measured tight around what the teacher renders, or given, with a warning where they miss it."""

import pytest
import torch

from mobiler2l_ns.cameras import pinhole_cameras
from mobiler2l_ns.data.planes import choose_near_far, depth_range
from mobiler2l_ns.data.poses import PathPoses
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.geometry import look_at


def test_depth_range_by_hand(stub_teacher):
    """One camera at distance D = 4. A ray at tangent t meets the ball at z = (4 - sqrt(16 - 15(1 + t^2))) / (1 + t^2).

    Seen pixels are spread evenly over t^2 < 1/15. At 1 percent, t^2 = 0.01/15: z = (4 - sqrt 0.99) / 1.000667 = 3.0030.
    At 99 percent: z = (4 - sqrt 0.01) / 1.066 = 3.6585. The margin is 0.03 * 0.6555 + 0.0037 = 0.0233.
    """
    pose = look_at(torch.tensor([[0.0, -4, 0]]), torch.zeros(1, 3), torch.tensor([0.0, 0, 1]))
    near, far = depth_range(stub_teacher.surface_depths(pinhole_cameras(pose, 700.0, 400, 400)))
    assert near == pytest.approx(2.9797, abs=0.001)
    assert far == pytest.approx(3.6818, abs=0.01)


def test_a_teacher_that_shows_nothing_is_refused():
    with pytest.raises(UserError, match="the teacher's views are empty.*--pipeline.datamanager.teacher"):
        depth_range(torch.zeros(0))


# -- planes of the command line ---------------------------------------------------------------------------------------


def chosen(near_far, depths, capsys):
    """The planes of a run whose teacher renders surfaces at these depths, and what is printed."""
    poses = PathPoses(look_at(torch.tensor([[0.0, -4, 0], [1, -4, 0]]), torch.zeros(2, 3), torch.tensor([0.0, 0, 1])))
    found = choose_near_far(near_far, lambda camera: torch.tensor(depths), poses, (36, 64), 60.0, True)
    return found, " ".join(capsys.readouterr().out.split())


def test_planes_that_miss_most_of_the_content_are_named(capsys):
    """The published planes on a capture: one surface of five lies between 2 and 6.

    The measured planes are 0.5 and 2.6, and 3 percent of 1/z farther: 1 / 0.5 - 1 / 2.6 = 1.6154, so
    1 / (2 + 0.0485) = 0.488 and 1 / (0.3846 - 0.0485) = 2.975.
    """
    planes, printed = chosen((2.0, 6.0), [0.5, 1.0, 1.3, 1.7, 2.6], capsys)
    assert planes == (2.0, 6.0)
    assert "Warning: only 20% of what the teacher renders lies between the planes z = 2 and 6" in printed
    assert "Content lies between z = 0.488 and 2.975: pass --pipeline.datamanager.near-far None" in printed


@pytest.mark.parametrize("near_far", [(0.9, 6.0), (1.0, 1.3)], ids=str)
def test_planes_that_hold_half_of_the_content_or_more(near_far, capsys):
    assert chosen(near_far, [0.5, 1.0, 1.3, 1.7], capsys) == (near_far, "")


def test_planes_of_a_teacher_without_surfaces_are_taken(capsys):
    assert chosen((2.0, 6.0), [], capsys) == ((2.0, 6.0), "")


def test_without_planes_the_measured_ones_are_printed(capsys):
    planes, printed = chosen(None, [0.5, 1.0, 1.3, 1.7, 2.6], capsys)
    assert planes == pytest.approx((0.4882, 2.9748), abs=1e-3)
    assert printed == "Content lies between z = 0.488 and 2.975 (path poses)"
