"""The occupancy grid against a ball whose entry and exit points are known."""

import pytest
import torch

from mobiler2l_ns.occupancy import OccupancyGrid

RESOLUTION, RADIUS = 32, 0.5
CENTRE = torch.tensor([0.1, -0.2, 0.05])
BOX = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
# Cells are 2/32 wide. A cell counts if it or a neighbour holds density, so marks reach two cells' diagonals beyond it;
# the march through the box (at most its diagonal) takes 64 steps.
REACH = 2 * 3**0.5 * 2 / RESOLUTION
STEP = 2 * 3**0.5 / (2 * RESOLUTION)


def ball(points: torch.Tensor) -> torch.Tensor:
    return 100.0 * ((points - CENTRE).norm(dim=-1, keepdim=True) < RADIUS)


@pytest.fixture(scope="module")
def grid():
    torch.manual_seed(0)
    return OccupancyGrid.from_density(ball, BOX, RESOLUTION)


@pytest.fixture(scope="module")
def rays():
    """Unit rays from 3 away, aimed at places in the box."""
    generator = torch.Generator().manual_seed(1)
    origins = torch.nn.functional.normalize(torch.randn(4000, 3, generator=generator), dim=-1) * 3
    targets = torch.rand(4000, 3, generator=generator) * 2 - 1
    return origins, torch.nn.functional.normalize(targets - origins, dim=-1)


def crossing(origins, directions, radius):
    """Distance from the ball's centre to the rays, and where they enter and leave a ball of some radius."""
    middle = ((CENTRE - origins) * directions).sum(-1)
    miss = (origins + middle[:, None] * directions - CENTRE).norm(dim=-1)
    half = (radius**2 - miss**2).clamp_min(0).sqrt()
    return miss, middle - half, middle + half


def test_rays_that_hit_are_hit_and_rays_that_miss_are_not(grid, rays):
    miss, _, _ = crossing(*rays, RADIUS)
    _, _, hit = grid.intersect(*rays)
    assert 500 < (miss < RADIUS).sum() and 500 < (miss > RADIUS + REACH).sum()
    assert hit[miss < RADIUS].all()
    assert not hit[miss > RADIUS + REACH].any()


def test_near_and_far_enclose_the_ball_tightly(grid, rays):
    near, far, hit = grid.intersect(*rays)
    assert near.shape == far.shape == (4000, 1)
    miss, enter, leave = crossing(*rays, RADIUS)
    through = miss < RADIUS
    assert (near[through, 0] <= enter[through] + 1e-5).all() and (far[through, 0] >= leave[through] - 1e-5).all()
    _, first, last = crossing(*rays, RADIUS + REACH)
    assert (near[hit, 0] >= first[hit] - STEP).all() and (far[hit, 0] <= last[hit] + STEP).all()


def test_an_axis_aligned_ray_by_hand(grid):
    """Straight down from z = 3 through the centre: in at 3 - .55 = 2.45, out at 3.45; the box's top is at 2."""
    origin = torch.tensor([[0.1, -0.2, 3.0]])
    near, far, hit = grid.intersect(origin, torch.tensor([[0.0, 0, -1]]))
    assert hit.all()
    # Two cells and one step of 2/64 more, at most.
    assert 2.45 - 0.125 - 0.032 <= float(near) <= 2.45
    assert 3.45 <= float(far) <= 3.45 + 0.125 + 0.032


def test_distances_are_in_units_of_the_direction(grid, rays):
    origins, directions = rays
    near, far, hit = grid.intersect(origins, directions)
    near2, far2, hit2 = grid.intersect(origins, directions * 4)
    assert (hit == hit2).float().mean() > 0.999
    both = hit & hit2
    assert ((near2 * 4 - near)[both].abs() < 1e-4).float().mean() > 0.99
    assert ((far2 * 4 - far)[both].abs() < 1e-4).float().mean() > 0.99


def test_what_lies_behind_or_beside_is_not_seen(grid):
    origins = torch.tensor([[0.0, 0, 3], [2, 0, 3], [0.1, -0.2, -3]])
    directions = torch.tensor([[0.0, 0, 1], [0, 0, -1], [0, 0, -1]])  # away, past the box, away
    assert not grid.intersect(origins, directions)[2].any()


def test_a_camera_inside_starts_at_zero(grid):
    near, far, hit = grid.intersect(CENTRE[None], torch.tensor([[1.0, 0, 0]]))
    assert hit.all() and float(near) == 0 and RADIUS <= float(far) <= RADIUS + 0.125 + 0.032


def test_faint_density_is_empty():
    """One cell's diagonal is 0.108: density 0.05 there has opacity 0.0054, below the threshold of 0.01."""

    def faint(points):
        return torch.full((len(points), 1), 0.05)

    assert not OccupancyGrid.from_density(faint, BOX, RESOLUTION).occupied.any()
    assert OccupancyGrid.from_density(faint, BOX, RESOLUTION, threshold=0.005).occupied.all()


def test_axes_are_not_swapped():
    """Density only at large x: a ray along z sees it there and not at large z."""
    grid = OccupancyGrid.from_density(lambda p: 100.0 * (p[:, :1] > 0.5), BOX, 16)
    origins = torch.tensor([[0.8, 0, 3], [-0.8, 0, 3], [0, 0.8, 3]])
    assert grid.intersect(origins, torch.tensor([[0.0, 0, -1]]).expand(3, 3))[2].tolist() == [True, False, False]


def test_a_full_grid_is_its_box():
    """From z = 3 the box spans 2..4; cells next to the first or last occupied one add nothing."""
    origin, direction = torch.tensor([[0.1, 0.1, 3.0]]), torch.tensor([[0.0, 0, -1]])
    near, far, _ = OccupancyGrid(torch.ones(8, 8, 8, dtype=torch.bool), BOX).intersect(origin, direction)
    assert (float(near), float(far)) == pytest.approx((2, 4))
    occupied = torch.zeros(8, 8, 8, dtype=torch.bool)
    occupied[4, 4, 2:5] = True  # cells of 0.25: z from -0.5 to 0.25, and x, y from 0 to 0.25
    near, far, _ = OccupancyGrid(occupied, BOX).intersect(origin, direction)
    assert (float(near), float(far)) == pytest.approx((2.75, 3.5))
