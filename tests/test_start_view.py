"""The first view of nerfstudio's viewer."""

import math
from types import SimpleNamespace

import pytest
from builders import ORBIT, make_model, orbit_cameras

from mobiler2l_ns.viewer.start_view import StartView


def test_the_viewer_opens_where_the_photos_were_taken():
    """Photos from azimuth 30 to 150, 20 to 60 degrees up, 2 to 3 away from the origin: the middle of all three."""
    client = SimpleNamespace(camera=SimpleNamespace())
    StartView(make_model(**ORBIT, viewpoints=orbit_cameras())).place(client)
    up = math.radians(40)
    assert client.camera.position == pytest.approx([0, 25 * math.cos(up), 25 * math.sin(up)], abs=0.05)
    assert client.camera.look_at == pytest.approx([0, 0, 0], abs=1e-6)
    assert client.camera.up_direction == pytest.approx([0, 0, 1], abs=1e-2)
