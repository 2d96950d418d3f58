"""The network: number of parameters and operations, output shape, and options that are refused."""

import pytest
import torch

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.student.network import MobileR2LNetwork, NetworkConfig, ResidualBlock, count_macs, count_parameters

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


def test_the_user_gets_one_sentence_for_a_bad_shape(student_config):
    student_config.pipeline.model.network.depth = 7
    with pytest.raises(UserError, match="--pipeline.model.network"):
        student_config.pipeline.model.setup(scene_box=None, num_train_data=1, metadata={})
