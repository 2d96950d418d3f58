"""The fast hash grid against nerfstudio's own: same features, same gradients, same parameters."""

import copy

import pytest
import torch
from nerfstudio.field_components.encodings import HashEncoding

from mobiler2l_ns.teacher.hash_encoding import accelerate_hash_grids


def make_pair(**options):
    """nerfstudio's encoding and an accelerated copy, with values of size one."""
    torch.manual_seed(0)
    options = {"num_levels": 4, "min_res": 4, "max_res": 64, "log2_hashmap_size": 8, **options}
    own = HashEncoding(implementation="torch", hash_init_scale=1.0, **options)
    fast = copy.deepcopy(own)
    assert accelerate_hash_grids(fast) == 1
    return own, fast


def assert_same(own, fast, positions) -> None:
    """Features and the table's gradient under a random loss agree."""
    expected, found = own(positions), fast(positions)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    assert own.hash_table.grad.abs().max() > 0.1
    torch.testing.assert_close(fast.hash_table.grad, own.hash_table.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("num_levels, features", [(1, 2), (2, 1), (4, 2), (8, 4), (16, 2)])
def test_random_points(num_levels, features):
    own, fast = make_pair(num_levels=num_levels, features_per_level=features, max_res=512)
    assert_same(own, fast, torch.rand(300, 3))


def test_points_on_cell_boundaries():
    """Where floor equals ceil; with 4 cells a side, quarters (0 and 1 among them) are boundaries of level 0."""
    own, fast = make_pair()
    axis = torch.linspace(0, 1, 5)
    assert_same(own, fast, torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).view(-1, 3))


def test_products_that_overflow_32_bits():
    """Cell 1023 times the prime 2654435761 needs 42 bits: only the low ones may count."""
    own, fast = make_pair(num_levels=2, min_res=512, max_res=1024, log2_hashmap_size=19)
    assert_same(own, fast, 1 - 0.01 * torch.rand(300, 3))


def test_shape_follows_the_input():
    own, fast = make_pair()
    positions = torch.rand(2, 3, 5, 3)
    assert fast(positions).shape == own(positions).shape == (2, 3, 5, 8)
    torch.testing.assert_close(fast(positions), own(positions))


def test_a_point_at_a_corner_returns_that_corners_row():
    """The origin's hash is 0 ^ 0 ^ 0: row 0 of each level's part of the table."""
    _, fast = make_pair(num_levels=3)
    assert torch.equal(fast(torch.zeros(1, 3))[0], fast.hash_table[[0, 256, 512]].flatten())


def test_parameters_stay_interchangeable():
    own, fast = make_pair()
    assert list(fast.state_dict()) == list(own.state_dict())
    other, _ = make_pair()
    other.load_state_dict(fast.state_dict(), strict=True)
    positions = torch.rand(10, 3)
    torch.testing.assert_close(other(positions), fast(positions))


def test_every_grid_inside_a_model_is_found():
    model = torch.nn.Sequential(make_pair()[0], torch.nn.Linear(8, 3), torch.nn.ModuleList([make_pair()[0]]))
    assert accelerate_hash_grids(model) == 2
    assert accelerate_hash_grids(torch.nn.Linear(3, 3)) == 0
