"""Positional codes against closed formulas."""

import math

import pytest
import torch

from mobiler2l_ns.student.embedder import Embedder, to_network_input


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
