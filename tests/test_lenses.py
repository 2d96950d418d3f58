"""The rays of photos against nerfstudio's own, whatever lens each photo has."""

import pytest
import torch
from builders import ring
from nerfstudio.cameras.cameras import Cameras, CameraType

from mobiler2l_ns.cameras import cell_centres, rays_at, student_rays
from mobiler2l_ns.data.lenses import MAX_LENSES, Lenses

HEIGHT, WIDTH = 24, 36


def cameras(count: int, lenses: int) -> Cameras:
    """Cameras of one size, of which each lens takes every ``lenses``-th."""
    lens = torch.arange(count) % lenses
    distortion = torch.tensor([0.03, -0.01, 0.0, 0.0, 0.003, -0.002]) * (1 + lens[:, None])
    return Cameras(
        ring(range(0, 360, 360 // count), (20.0,), (4.0,)), fx=30.0 + lens[:, None].float(), fy=29.0, cx=18.5, cy=11.0,
        width=WIDTH, height=HEIGHT, distortion_params=distortion, camera_type=CameraType.PERSPECTIVE,
    )  # fmt: skip


@pytest.mark.parametrize("lenses", [1, 3, MAX_LENSES + 2])
@pytest.mark.parametrize("cell", [3, 4])
def test_rays_are_nerfstudios(lenses, cell):
    """Cells of an even number of pixels have their centre at a corner of pixels, others at a pixel's centre."""
    photos = cameras(6, lenses)
    kept = Lenses(photos, offset=cell / 2 % 1)
    indices = torch.tensor([5, 0, 3])
    corner = torch.tensor([[0, 0], [HEIGHT - 5 * cell, WIDTH - 2 * cell], [4, 7]])
    coords = corner[:, None, None] + cell_centres(5, 2, (cell, cell))
    ours, theirs = kept.rays(indices, coords), rays_at(photos, indices, coords)
    for mine, other in zip(student_rays(ours), student_rays(theirs)):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.directions.norm(dim=-1), torch.ones(3, 5, 2))
    torch.testing.assert_close(ours.metadata["directions_norm"], theirs.metadata["directions_norm"], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.pixel_area, theirs.pixel_area, atol=0, rtol=0.2)


def test_cameras_in_double_precision_have_rays_in_single_precision():
    """The Blender data parser's."""
    photos = cameras(6, 1)
    for name in ("camera_to_worlds", "fx", "fy", "cx", "cy"):
        setattr(photos, name, getattr(photos, name).double())
    bundle = Lenses(photos, offset=0.0).rays(torch.tensor([1, 2]), cell_centres(2, 3, (4, 4))[None].repeat(2, 1, 1, 1))
    parts = bundle.origins, bundle.directions, bundle.pixel_area, bundle.metadata["directions_norm"]
    assert {part.dtype for part in parts} == {torch.float32}


@pytest.mark.parametrize("lenses", [2, MAX_LENSES + 2])
def test_directions_of_a_whole_photo(lenses):
    photos = cameras(6, lenses)
    photos.camera_to_worlds[:] = torch.eye(4)[:3]
    kept = Lenses(photos)
    for index in range(6):
        _, expected = student_rays(photos[index : index + 1].generate_rays(0, keep_shape=True))
        torch.testing.assert_close(kept.directions(index).permute(1, 2, 0), expected, atol=1e-5, rtol=0)
    assert kept.nbytes == (lenses * 3 * 4 * HEIGHT * WIDTH if lenses <= MAX_LENSES else 0)
