"""The photos: their background, and which of them are held out."""

import pytest
import torch
from nerfstudio.data.datasets.base_dataset import InputDataset

from mobiler2l_ns.cameras import pinhole_cameras
from mobiler2l_ns.data.photo_source import PhotoSource
from mobiler2l_ns.data.photos import PhotoSet, load_photos, on_white
from mobiler2l_ns.student.sampler import DepthRange


def test_on_white_by_hand():
    pixel = torch.tensor([[0.8, 0.4, 0.0, 0.25]])
    torch.testing.assert_close(on_white(pixel), torch.tensor([[0.95, 0.85, 0.75]]))  # a quarter, and 3/4 of white
    assert on_white(pixel[:, :3]).equal(pixel[:, :3])


def numbered_photos(total: int) -> PhotoSet:
    """Photos whose every pixel is their number."""
    images = torch.arange(total, dtype=torch.uint8).view(total, 1, 1, 1).expand(total, 8, 8, 3)
    return PhotoSet(images, pinhole_cameras(torch.eye(4)[None, :3].repeat(total, 1, 1), 8.0, 8, 8), 8)


def test_photos_are_split_evenly():
    rest, held_out = numbered_photos(20).hold_out(2)
    assert held_out.images[:, 0, 0, 0].tolist() == [6, 13]
    assert rest.images[:, 0, 0, 0].tolist() == [n for n in range(20) if n not in (6, 13)]


@pytest.mark.parametrize("total, held", [(100, 8), (37, 3), (19, 1), (9, 1), (2, 1)])
def test_at_most_a_tenth_of_the_photos_is_held_out(total, held):
    rest, held_out = numbered_photos(total).hold_out(8)
    assert (len(rest), len(held_out)) == (total - held, held)


@pytest.mark.parametrize("total, count", [(10, 0), (1, 8)])
def test_the_last_photo_is_not_held_out(total, count):
    photos = numbered_photos(total)
    assert photos.hold_out(count) == (photos, None)


def test_photos_of_another_scale_are_left_out():
    """Of five upright photos of focal length 8 one is zoomed a little, one a lot; one across is enlarged by 4/3."""
    photos = numbered_photos(5)
    photos.cameras.fx = photos.cameras.fx.clone()
    photos.cameras.fx[:, 0] = torch.tensor([8.0, 8.3, 9.0, 8.0, 8.0 * 4 / 3])
    assert photos.of_one_scale().images[:, 0, 0, 0].tolist() == [0, 1, 3]
    same = numbered_photos(3)
    assert same.of_one_scale() is same


@pytest.mark.parametrize("own_alpha", [False, True])
def test_photos_with_the_teachers_depth(own_alpha):
    """z = 2, 3 and 6 between 2 and 4: bytes 0, 128 and 255; 0 where it is not known. A photo's own alpha stays."""
    images = torch.full((1, 2, 2, 4), 77, dtype=torch.uint8)[..., : 4 if own_alpha else 3]
    photos = PhotoSet(images, pinhole_cameras(torch.eye(4)[None, :3], 8.0, 2, 2), 1)
    z, alpha = torch.tensor([[[2.0, 3.0], [6.0, 0.0]]]), torch.tensor([[[1.0, 0.6], [1.0, 0.0]]])
    found = photos.with_geometry(alpha, z, DepthRange(2.0, 4.0))
    assert found.images.shape == (1, 2, 2, 5) and torch.equal(found.images[..., :3], images[..., :3])
    assert found.images[0, ..., 3].tolist() == ([[77, 77], [77, 77]] if own_alpha else [[255, 153], [255, 0]])
    assert found.images[0, ..., 4].tolist() == [[0, 128], [255, 0]]
    ((_, colours),) = found
    assert colours.shape == (2, 2, 3) and found.sample(3, 2, 2).pixels.shape == (3, 2, 2, 5)
    assert photos.images.shape[-1] == images.shape[-1]


@pytest.mark.parametrize(("total", "limit", "chosen"), [(7, 4, [0, 1, 3, 5]), (8, 4, [0, 2, 4, 6]), (3, 4, [0, 1, 2])])
def test_a_limit_is_kept(total, limit, chosen, stub_dataset):
    photos = load_photos(stub_dataset(total), 8, 8, 8, "cpu", limit=limit)
    assert photos.images[:, 0, 0, 0].tolist() == chosen


def test_a_run_names_the_photos_that_it_leaves_out(stub_dataset, capsys):
    dataset = stub_dataset(20)
    dataset.cameras.fx = dataset.cameras.fx.clone()
    dataset.cameras.fx[3:5] = 12.0
    dataset.metadata = {"transparent_background": False}
    source = PhotoSource(dataset, (8, 8), 8, 3, 0.5, 8, False, 0, "cpu")
    rest, held_out = source.load()
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 of 20 photos have another shape or lens than most: the student learns nothing from them." in printed
    assert (len(rest), len(held_out)) == (17, 1) and not {3, 4} & {*rest.images[:, 0, 0, 0].tolist()}
    assert len(source.load(density=2)[0]) == 17 and "photos have another" not in capsys.readouterr().out


@pytest.fixture
def stub_dataset():
    """Makes a dataset whose photo number n is n everywhere."""

    def make(total: int) -> StubDataset:
        cameras = pinhole_cameras(torch.eye(4)[None, :3].repeat(total, 1, 1), 8.0, 8, 8)
        return StubDataset(total, cameras)

    return make


class StubDataset(InputDataset):
    def __init__(self, total, cameras):
        self.total, self.cameras = total, cameras

    def __len__(self):
        return self.total

    def get_image_float32(self, index):
        return torch.full((8, 8, 3), index / 255)
