"""The network's size and shape, and the layout of sampler, embedder and network input by hand."""

import math

import pytest
import torch

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.student.embedder import Embedder, to_network_input
from mobiler2l_ns.student.network import MobileR2LNetwork, NetworkConfig, ResidualBlock, count_macs, count_parameters
from mobiler2l_ns.student.sampler import DepthRange, Sampler

SMALL = {"depth": 6, "width": 16, "sr_widths": (8, 8, 8)}


def make_network(in_channels: int = 12, **options) -> MobileR2LNetwork:
    torch.manual_seed(0)
    return MobileR2LNetwork(in_channels, NetworkConfig(**{**SMALL, **options}))


def test_size_of_the_full_network():
    """D60 W256 on 312 channels.

    Head 312*256 + 256 = 80,128. 29 blocks of 2 (256*256 + 256) = 3,815,936. Transposed 4x4 convolutions
    256*64*16 + 64, 64*64*16 + 64, 64*16*16 + 16 = 344,208 in all. Their blocks 2*2*(64*64 + 64) twice and
    2*2*(16*16 + 16): 34,368. Output 16*3 + 3 = 51. Multiplications at 100 x 100 cells:
    10^4 (79,872 + 3,801,088 + 262,144) + 4*10^4 (16,384 + 65,536) + 16*10^4 (16,384 + 16,384) + 64*10^4 (1,024 + 48).
    """
    network = MobileR2LNetwork(312, NetworkConfig())
    assert 80_128 + 3_815_936 + 344_208 + 34_368 + 51 == 4_274_691
    assert count_parameters(network) == 4_274_691
    assert count_macs(network, 100, 100) == 50_636_800_000


def test_size_of_r2l():
    """D88 W256 without super-resolution on 16 points * 3 coordinates * (2 * 10 + 1) codes = 1008 channels.

    Head 1008*256 + 256 = 258,304. 43 blocks of 2 (256*256 + 256) = 2 * 65,792. Output 256*3 + 3 = 771. A ray costs
    the weights without the biases: 258,048 + 86 * 65,536 + 768 = 5,894,912.
    """
    network = MobileR2LNetwork(16 * 3 * 21, NetworkConfig(depth=88, sr_widths=(), sr_strides=(), activation="relu"))
    assert len(network.body) == 43 and network.config.upscale == 1
    assert count_parameters(network) == 258_304 + 86 * 65_792 + 771 == 5_917_187
    assert count_macs(network, 20, 30) == 600 * 5_894_912


def test_without_super_resolution_a_ray_is_a_pixel():
    network = make_network(sr_widths=(), sr_strides=())
    codes = torch.randn(2, 12, 3, 5)
    image = network(codes)
    assert image.shape == (2, 3, 3, 5)
    codes[1, :, 2, 4] += 1
    assert (network(codes) != image).any(dim=1).nonzero().tolist() == [[1, 2, 4]]


@pytest.mark.parametrize("strides, s", [((2, 2, 2), 8), ((2, 2, 3), 12), ((3, 2, 2), 12), ((3, 3, 3), 27)])
def test_upscale(strides, s):
    network = make_network(sr_strides=strides)
    assert network.config.upscale == s
    image = network(torch.randn(2, 12, 3, 5))
    assert image.shape == (2, 3, 3 * s, 5 * s)
    assert 0 < image.min() and image.max() < 1


def test_each_cell_gets_its_own_pixels():
    """Only super-resolution mixes cells, and only near ones: a change reaches the pixels around its cell alone."""
    network = make_network()
    codes = torch.randn(1, 12, 5, 5)
    changed = codes.clone()
    changed[..., 0, 4] += 1
    rows, columns = (network(changed) != network(codes)).any(dim=1)[0].nonzero().unbind(-1)
    # Each transposed 4x4 convolution reaches one pixel of its own beyond the cell: 8 + 4 + 2 + 1 = 15 pixels.
    assert (int(rows.min()), int(columns.max())) == (0, 39)
    assert 8 <= int(rows.max()) < 15 and 40 - 15 <= int(columns.min()) < 32


def test_inner_widths():
    network = make_network(inner_widths=(4, 9))
    assert [block.conv1.weight.shape[:2] for block in network.body] == [(4, 16), (9, 16)]
    assert network(torch.randn(1, 12, 2, 2)).shape == (1, 3, 16, 16)
    # A pruned channel costs 16 weights in, one bias and 16 weights out.
    assert count_parameters(make_network()) - count_parameters(network) == (32 - 13) * 33


def test_blocks_start_close_to_the_identity():
    torch.manual_seed(0)
    block = ResidualBlock(64, 64, NetworkConfig())
    x = torch.randn(1, 64, 8, 8)
    change = (block(x) - x).norm() / x.norm()
    assert 1e-4 < change < 0.05
    wild = ResidualBlock(64, 64, NetworkConfig(batch_norm=True))
    assert (wild(x) - x).norm() / x.norm() > 0.5  # batch norm gives each block's branch unit size


def test_activation_and_batch_norm_are_what_the_config_says():
    relu = make_network(activation="relu", batch_norm=True)
    kinds = [type(module).__name__ for module in relu.modules()]
    # Head, 2 body blocks and 6 in super-resolution; two norms a block.
    assert (kinds.count("ReLU"), kinds.count("GELU"), kinds.count("BatchNorm2d")) == (9, 0, 16)
    kinds = [type(module).__name__ for module in make_network().modules()]
    assert (kinds.count("ReLU"), kinds.count("GELU"), kinds.count("BatchNorm2d")) == (0, 9, 0)


BAD = [
    ({"depth": 7}, "depth"),
    ({"depth": 2}, "depth"),
    ({"inner_widths": (4,)}, "inner_widths"),
    ({"sr_widths": (8, 8)}, "sr_widths"),
    ({"sr_strides": (2, 2, 4)}, "sr_strides"),
]


@pytest.mark.parametrize("options, name", BAD, ids=lambda value: str(value))
def test_a_shape_that_cannot_be_built_names_its_field(options, name):
    with pytest.raises(ValueError, match=f"network.{name}"):
        make_network(**options)


def test_a_bad_shape_is_one_sentence_for_the_user(student_config):
    student_config.pipeline.model.network.depth = 7
    with pytest.raises(UserError, match="--pipeline.model.network"):
        student_config.pipeline.model.setup(scene_box=None, num_train_data=1, metadata={})


# -- embedder -------------------------------------------------------------------------------------------------------


def test_codes_by_hand():
    x = 0.7
    codes = Embedder(2)(torch.full((1, 1, 1, 1), x)).flatten()
    expected = [math.sin(x), math.sin(2 * x), math.cos(x), math.cos(2 * x), x]
    assert codes.tolist() == pytest.approx(expected)
    assert Embedder(6).num_codes == 13


def test_channel_is_coordinate_times_codes_plus_code():
    h, w, coordinates, codes = 2, 3, 6, 5
    values = torch.arange(2.0 * codes * h * w * coordinates).view(2, codes, h * w, coordinates)
    image = to_network_input(values, h, w)
    assert image.shape == (2, coordinates * codes, h, w)
    for b, coordinate, code, row, column in [(0, 0, 0, 0, 0), (1, 4, 2, 1, 0), (0, 5, 4, 1, 2), (1, 2, 3, 0, 1)]:
        assert image[b, coordinate * codes + code, row, column] == values[b, code, row * w + column, coordinate]


# -- sampler --------------------------------------------------------------------------------------------------------


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


def test_an_unbounded_forward_is_what_training_codes():
    """The exported arithmetic of channels against the plain one, from inside the cube to far outside."""
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


def test_camera_and_depths_travel_with_the_weights():
    copied = Sampler(3)
    copied.load_state_dict(make_sampler().state_dict())
    assert copied.depths.tolist() == [2, 4, 6] and copied.grid.tolist() == [2, 4] and float(copied.focal) == 5
    unbounded = Sampler(3, unbounded=True)
    unbounded.load_state_dict(make_unbounded().state_dict())
    assert unbounded.centre.tolist() == [1, 0, 0] and float(unbounded.radius) == 2


def test_a_bounded_sampler_loads_what_was_saved_before_there_was_another():
    assert list(make_sampler().state_dict()) == ["grid", "focal", "near", "far"]
