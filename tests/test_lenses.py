"""The rays of photos against nerfstudio's own, whatever lens each photo has."""

import pytest
import torch
from builders import ring
from nerfstudio.cameras.cameras import Cameras, CameraType

from mobiler2l_ns.cameras import cell_centres, rays_at, student_rays
from mobiler2l_ns.data.lenses import MAX_LENSES, Lenses

HEIGHT, WIDTH = 24, 36


def cameras(count: int, lenses: int, distortion: float = 1.0) -> Cameras:
    """Cameras of one size, of which each lens takes every ``lenses``-th; distortion 0: pinholes."""
    lens = torch.arange(count) % lenses
    bent = distortion * torch.tensor([0.03, -0.01, 0.0, 0.0, 0.003, -0.002]) * (1 + lens[:, None])
    return Cameras(
        ring(range(0, 360, 360 // count), (20.0,), (4.0,)), fx=30.0 + lens[:, None].float(), fy=29.0, cx=18.5, cy=11.0,
        width=WIDTH, height=HEIGHT, distortion_params=bent, camera_type=CameraType.PERSPECTIVE,
    )  # fmt: skip


@pytest.mark.parametrize("lenses", [1, 3, MAX_LENSES + 2])
@pytest.mark.parametrize("cell", [3, 4])
@pytest.mark.parametrize("distortion", [0.0, 1.0])
def test_rays_are_nerfstudios(lenses, cell, distortion):
    """Cells of an even number of pixels have their centre at a corner of pixels, others at a pixel's centre."""
    photos = cameras(6, lenses, distortion)
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


@pytest.mark.parametrize("distortion", [0.0, 1.0])
@pytest.mark.parametrize("lenses", [2, MAX_LENSES + 2])
def test_directions_of_whole_photos(lenses, distortion):
    photos = cameras(6, lenses, distortion)
    photos.camera_to_worlds[:] = torch.eye(4)[:3]
    kept = Lenses(photos)
    indices = torch.tensor([4, 0, 1, 5])
    for index, found in zip(indices, kept.directions(indices)):
        _, expected = student_rays(photos[index : index + 1].generate_rays(0, keep_shape=True))
        torch.testing.assert_close(found.permute(1, 2, 0), expected, atol=1e-5, rtol=0)
    assert kept.nbytes == (lenses * 3 * 4 * HEIGHT * WIDTH if lenses <= MAX_LENSES else 0)
