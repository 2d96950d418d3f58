"""The benchmark of the surface code: equal networks on both sides, and figures of both."""

import json
import sys

import pytest
from bench import surface_cost
from bench.surface_cost import Shape

from mobiler2l_ns.model import MobileR2LModelConfig
from mobiler2l_ns.student.network import NetworkConfig, count_macs


def test_a_tiny_comparison(tmp_path, monkeypatch):
    model = MobileR2LModelConfig(
        network=NetworkConfig(depth=6, width=16, sr_widths=(16, 8, 8)), num_points=4, num_frequencies=2,
        surface_octaves=9, surface_refinements=2,
    )  # fmt: skip
    shape = Shape(3, model)
    monkeypatch.setattr(surface_cost, "SHAPES", {"small": shape})
    path = tmp_path / "cost.json"
    monkeypatch.setattr(
        sys, "argv", ["surface_cost.py", "--rounds", "3", "--octaves", "3", "--shapes", "small", "--json", str(path)]
    )
    surface_cost.main()
    found = json.loads(path.read_text())["small"]
    plain, surface = (surface_cost.student(shape, {"surface_octaves": octaves}) for octaves in (0, 3))
    # 60 codes of four points, or their 12 coordinates and 21 codes of the surface.
    assert (plain.network.in_channels, surface.network.in_channels) == (60, 33)
    assert count_macs(plain.network.body, 3, 3) == count_macs(surface.network.body, 3, 3)
    # The head, two refinements from 39 codes and 64 features, and the difference of the networks' first layers.
    extra = 9 * (60 * 64 + 4 * 64 * 64 + 64 * 4 + 2 * (103 * 64 + 64 * 64 + 64) - (60 - 33) * 16)
    whole = count_macs(plain.network, 3, 3)
    assert found["ratio_work"] == pytest.approx((whole + extra) / whole, abs=1e-3)
    assert found["points"] == "K 4, L 2, S 3" and found["surface"] == "R 2, 64 channels"
    times = found["milliseconds"]
    assert found["ratio_latency"] == pytest.approx(times["with"] / times["without"], rel=0.05)
