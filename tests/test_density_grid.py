"""The density grid: lookups, and clearing of empty cells."""

import pytest
import torch

from mobiler2l_ns.teacher.density_grid import DensityGrid

RESOLUTION, RADIUS, CELL = 32, 0.25, 1 / 32
CENTRE = torch.tensor([0.55, 0.4, 0.5])


def ramp(points):
    """Tells the three axes apart."""
    return points @ torch.tensor([100.0, 10.0, 1.0])


def ball(points):
    return 100.0 * ((points - CENTRE).norm(dim=-1) < RADIUS)


def test_a_cell_holds_the_density_of_its_centre():
    grid = DensityGrid.bake(ramp, 4, "cpu")
    assert grid.densities.shape == (4, 4, 4)
    # Cell (0, 1, 3): x = 1/8, y = 3/8, z = 7/8
    assert float(grid.densities[0, 1, 3]) == pytest.approx(12.5 + 3.75 + 0.875)


def test_a_lookup_takes_the_cell_around_a_point():
    grid = DensityGrid.bake(ramp, 4, "cpu")
    points = torch.rand(5, 7, 3)
    centres = (torch.floor(points * 4) + 0.5) / 4
    torch.testing.assert_close(grid(points.movedim(-1, 0)), ramp(centres))


def test_points_outside_take_the_nearest_cell():
    grid = DensityGrid.bake(ramp, 4, "cpu")
    points = torch.tensor([[-3.0, 1.0, 7.0], [1.0, -0.01, 0.3]])
    torch.testing.assert_close(grid(points.T), torch.stack([grid.densities[0, 3, 3], grid.densities[3, 0, 1]]))


def test_cells_away_from_density_are_emptied_and_others_kept():
    """A cell is kept if it or a neighbour was hit by a random point in the ball: at most two diagonals beyond it."""
    torch.manual_seed(0)
    grid = DensityGrid(torch.ones(RESOLUTION, RESOLUTION, RESOLUTION))
    grid.clear_empty(ball, diagonal=3**0.5 * CELL)
    distance = (torch.cartesian_prod(*[(torch.arange(RESOLUTION) + 0.5) * CELL] * 3) - CENTRE).norm(dim=-1)
    kept = grid.densities.view(-1)
    assert (kept[distance < RADIUS] == 1).all()
    assert (kept[distance > RADIUS + 2 * 3**0.5 * CELL] == 0).all()
    assert set(kept.tolist()) == {0.0, 1.0}


def test_emptying_keeps_the_values_that_stay():
    torch.manual_seed(0)
    grid = DensityGrid.bake(ramp, 16, "cpu")
    before = grid.densities.clone()
    grid.clear_empty(ball, diagonal=3**0.5 / 16)
    stays = grid.densities != 0
    assert 0 < stays.sum() < stays.numel() / 2
    assert torch.equal(grid.densities[stays], before[stays])


@pytest.mark.parametrize("density, stays", [(0.04, False), (0.06, True)])
def test_what_cannot_be_seen_is_empty(density, stays):
    """Along a diagonal of 0.1 they have opacities 0.004 and 0.006; the threshold is between."""
    grid = DensityGrid(torch.ones(4, 4, 4))
    grid.clear_empty(lambda points: torch.full((len(points),), density), diagonal=0.1)
    assert bool(grid.densities.all()) == bool(grid.densities.any()) == stays
