"""The photos: their background, and which of them are held out."""

import torch

from mobiler2l_ns.cameras import pinhole_cameras
from mobiler2l_ns.data.photos import PhotoSet, on_white


def test_on_white_by_hand():
    pixel = torch.tensor([[0.8, 0.4, 0.0, 0.25]])
    torch.testing.assert_close(on_white(pixel), torch.tensor([[0.95, 0.85, 0.75]]))  # a quarter, and 3/4 of white
    assert on_white(pixel[:, :3]).equal(pixel[:, :3])


def test_photos_are_split_evenly():
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 8, 8, 3)
    cameras = pinhole_cameras(torch.eye(4)[None, :3].repeat(10, 1, 1), 8.0, 8, 8)
    rest, held_out = PhotoSet(images, cameras, 8).hold_out(2)
    assert held_out.images[:, 0, 0, 0].tolist() == [3, 6]
    assert rest.images[:, 0, 0, 0].tolist() == [0, 1, 2, 4, 5, 7, 8, 9]
