"""Patches of pictures with the rays that belong to them, and a cache that outlives its process."""

import numpy as np
import pytest
import torch

from mobiler2l_ns.cameras import pinhole_cameras, student_rays
from mobiler2l_ns.data.patches import cut_patches, random_starts
from mobiler2l_ns.data.photos import PhotoSet
from mobiler2l_ns.data.pool import NUMBER, ViewPool, from_bytes, to_bytes
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.student.sampler import DepthRange

FOCAL, UPSCALE = 30.0, 4


def coordinate_picture(height: int, width: int, mark: int = 0, corner=(0, 0)) -> torch.Tensor:
    """Each pixel's colour is (row, column, mark) / 255, counted in the whole view."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows + corner[0], columns + corner[1], torch.full_like(rows, mark)], dim=-1) / 255


def pose(mark: int) -> torch.Tensor:
    """A camera at x = mark, turned by mark radians about y."""
    angle = torch.tensor(float(mark))
    c2w = torch.eye(4)[:3]
    c2w[0, 0], c2w[0, 2], c2w[2, 0], c2w[2, 2] = angle.cos(), angle.sin(), -angle.sin(), angle.cos()
    c2w[0, 3] = mark
    return c2w


def filled_pool(views: int, capacity: int = 3, tile=(16, 24), size=(16, 24), corners=None, **options) -> ViewPool:
    """A pool with views marked 0, 1, ..."""
    pool = ViewPool(capacity, tile, size, FOCAL, UPSCALE, **options)
    for mark in range(views):
        corner = corners[mark] if corners else (0, 0)
        pool.add(coordinate_picture(*tile, mark, corner), pose(mark), corner)
    return pool


def marks(pool: ViewPool) -> list:
    return pool.images[: len(pool), 0, 0, 2].tolist()


def assert_rays_hit_their_pixels(patches, size) -> None:
    """Projects each ray into the camera its patch is marked with: it must pass the centre of its cell's pixels."""
    origins, directions = student_rays(patches.rays)
    values = patches.pixels * 255
    for b in range(len(values)):
        mark = int(values[b, 0, 0, 2].round())
        assert (values[b, ..., 2].round() == mark).all()
        torch.testing.assert_close(origins[b], pose(mark)[:, 3].expand_as(origins[b]))
        d = directions[b] @ pose(mark)[:, :3]
        projected = torch.stack([size[0] / 2 - FOCAL * d[..., 1], size[1] / 2 + FOCAL * d[..., 0]], dim=-1)
        hc, wc = d.shape[:2]
        # The mean of the s x s pixel centres of a cell is its centre; a pixel's centre is its index + .5.
        centres = values[b, ..., :2].view(hc, UPSCALE, wc, UPSCALE, 2).mean(dim=(1, 3)) + 0.5
        torch.testing.assert_close(projected, centres, atol=1e-3, rtol=0)


def test_patches_are_exact_pixels_at_any_place():
    images = torch.randint(256, (3, 12, 17, 3), dtype=torch.uint8)
    indices = torch.arange(3).repeat(100)
    pixels, corner = cut_patches(images, indices, 5, 7)
    for index, patch, (top, left) in zip(indices, pixels, corner.tolist()):
        assert torch.equal(patch, images[index, top : top + 5, left : left + 7].float() / 255)
    assert set(corner[:, 0].tolist()) == set(range(8)) and set(corner[:, 1].tolist()) == set(range(11))


def test_random_pieces_of_an_object_show_its_middle():
    """Of 11 starts inside of 20 pixels, each shows ten: pixel 0 is shown by one of them, and pixel 9 by ten."""
    torch.manual_seed(0)
    starts = random_starts(110000, 10, 10, even_borders=False)
    assert ((starts.bincount() / 10000 - 1).abs() < 0.05).all() and len(starts.bincount()) == 11


@pytest.mark.parametrize("side, length", [(320, 64), (320, 160), (800, 80), (100, 90), (64, 64)])
def test_random_pieces_show_all_pixels_of_an_image_about_as_often(side, length):
    """Pieces that start inside at random would show the border 1/length times as often as the middle."""
    torch.manual_seed(0)
    starts = random_starts(100000, side - length, length, even_borders=True)
    assert 0 <= int(starts.min()) and int(starts.max()) == side - length
    shown = sum(torch.roll(starts.bincount(minlength=side), shift) for shift in range(length)).double()
    assert shown.sum() == 100000 * length
    assert shown.min() > 0.5 * shown.mean() and shown.max() < 2 * shown.mean()
    torch.testing.assert_close(shown, shown.flip(0), rtol=0.05, atol=0)


def test_a_new_view_takes_the_oldests_place():
    pool = filled_pool(2)
    assert (len(pool), marks(pool)) == (2, [0, 1])
    pool = filled_pool(5)
    assert (len(pool), pool.num_added, marks(pool)) == (3, 5, [3, 4, 2])
    assert pool.c2w[:, 0, 3].tolist() == [3, 4, 2]


def test_nbytes_by_hand():
    # 3 views of 16 x 24 x 3 bytes, 12 floats and 2 longs each
    assert filled_pool(0).nbytes == 3 * (16 * 24 * 3 + 12 * 4 + 2 * 8)


def test_sampled_rays_belong_to_their_pixels():
    pool = filled_pool(2)  # not full: the empty slot must not be drawn
    patches = pool.sample(40, 2, 3)
    assert patches.rays.shape == (40, 2, 3) and patches.pixels.shape == (40, 8, 12, 3)
    assert_rays_hit_their_pixels(patches, (16, 24))
    assert set((patches.pixels[:, 0, 0, 2] * 255).round().tolist()) == {0, 1}


def test_tiles_keep_their_place_in_the_view():
    corners = [(0, 0), (24, 5), (7, 40)]
    pool = filled_pool(3, tile=(16, 16), size=(40, 56), corners=corners)
    patches = pool.sample(40, 3, 2)
    assert patches.pixels[..., 1].max() * 255 > 40
    assert_rays_hit_their_pixels(patches, (40, 56))


def test_photo_rays_belong_to_their_pixels():
    images = torch.stack([(coordinate_picture(16, 24, mark) * 255).round().byte() for mark in range(3)])
    cameras = pinhole_cameras(torch.stack([pose(mark) for mark in range(3)]), FOCAL, 16, 24)
    photos = PhotoSet(images, cameras, UPSCALE)
    assert (len(photos), photos.nbytes) == (3, 3 * 16 * 24 * 3)
    patches = photos.sample(40, 4, 5)
    assert patches.pixels.shape == (40, 16, 20, 3)
    assert_rays_hit_their_pixels(patches, (16, 24))


def test_a_cache_restores_the_pool(tmp_path):
    corners = [(0, 0), (24, 5), (7, 40), (1, 2), (3, 4)]
    options = {"tile": (16, 16), "size": (40, 56), "cache": tmp_path / "new" / "cache", "identity": "teacher A"}
    written = filled_pool(5, corners=corners, **options)
    restored = filled_pool(0, **options)
    assert restored.num_added == 5
    for name in ("images", "c2w", "corner"):
        assert torch.equal(getattr(restored, name), getattr(written, name)), name
    restored.add(coordinate_picture(16, 16, 9), pose(9))
    assert marks(restored) == [3, 4, 9]  # 2 was the oldest


def test_a_partly_filled_cache_goes_on_where_it_ended(tmp_path):
    filled_pool(2, cache=tmp_path)
    restored = filled_pool(0, cache=tmp_path)
    assert marks(restored) == [0, 1]
    restored.add(coordinate_picture(16, 24, 7), pose(7))
    assert marks(restored) == [0, 1, 7]


def test_a_view_that_a_kill_cut_short_is_replaced(tmp_path):
    filled_pool(4, cache=tmp_path)  # slots 3, 1, 2
    records = np.load(tmp_path / "records.npy", mmap_mode="r+")
    views = np.load(tmp_path / "views.npy", mmap_mode="r+")
    records[1], views[1, 5:] = np.nan, 255  # killed while view 4 was written over view 1
    records.flush(), views.flush()
    restored = filled_pool(0, cache=tmp_path)
    assert marks(restored) == [3, 3, 2] and restored.num_added == 4
    assert torch.equal(restored.images[1], restored.images[0]) and torch.equal(restored.c2w[1], pose(3))
    restored.add(coordinate_picture(16, 24, 8), pose(8))
    assert marks(restored) == [3, 8, 2]


@pytest.mark.parametrize("damage", ["pixel", "pose", "number"])
def test_a_view_that_was_changed_on_disk_is_not_trusted(tmp_path, damage):
    filled_pool(3, cache=tmp_path)
    records, views = (np.load(tmp_path / name, mmap_mode="r+") for name in ("records.npy", "views.npy"))
    if damage == "pixel":
        views[1, 5, 7, 2] ^= 1
    else:
        records[1, 3 if damage == "pose" else NUMBER] += 1
    records.flush(), views.flush()
    restored = filled_pool(0, cache=tmp_path)
    assert marks(restored) == [0, 2, 2] and restored.num_added == 3


def test_the_space_of_a_cache_is_taken_at_once(tmp_path):
    filled_pool(1, cache=tmp_path)
    for path in tmp_path.glob("*.npy"):
        assert path.stat().st_blocks * 512 >= path.stat().st_size, path


def test_an_empty_or_wholly_lost_cache_starts_anew(tmp_path):
    filled_pool(2, cache=tmp_path)
    np.load(tmp_path / "records.npy", mmap_mode="r+")[:] = np.nan
    assert len(filled_pool(0, cache=tmp_path)) == 0


def test_a_record_is_nan_while_its_picture_is_written(tmp_path, monkeypatch):
    pool = filled_pool(3, cache=tmp_path)
    views, records = pool._cache
    seen = []

    class Watched:
        def __setitem__(self, slot, value):
            seen.append(np.load(tmp_path / "records.npy")[slot, -1])
            views[slot] = value

        def flush(self):
            views.flush()

    monkeypatch.setattr(pool, "_cache", (Watched(), records))
    pool.add(coordinate_picture(16, 24, 3), pose(3))
    assert np.isnan(seen).all() and len(seen) == 1
    assert np.load(tmp_path / "records.npy")[0, NUMBER] == 3


@pytest.mark.parametrize("other", [{"identity": "teacher B"}, {"tile": (8, 8)}, {"capacity": 7}], ids=str)
def test_a_cache_of_something_else_is_refused(tmp_path, other):
    filled_pool(2, cache=tmp_path, identity="teacher A")
    with pytest.raises(UserError, match="another teacher, size, capacity or other outputs") as caught:
        filled_pool(0, cache=tmp_path, **{"identity": "teacher A", **other})
    assert str(tmp_path) in str(caught.value) and "--pipeline.datamanager.cache-dir" in str(caught.value)
    assert marks(filled_pool(0, cache=tmp_path, identity="teacher A")) == [0, 1]  # and is left alone


DAMAGES = {
    "cut header": ("pool.json", b"{"),
    "a list": ("pool.json", b"[]"),
    "a number": ("pool.json", b"7"),
    "no planes": ("pool.json", b'{"version": 2}'),
    "planes of text": ("pool.json", b'{"depths": 7}'),
    "no array": ("views.npy", b"{"),
    "a missing array": ("records.npy", None),
}


@pytest.mark.parametrize("damage", [*DAMAGES, "another shape", "objects", "file"])
def test_a_damaged_cache_is_one_sentence(tmp_path, damage):
    folder = tmp_path / "cache"
    if damage == "file":
        folder.write_text("not a folder")
    else:
        filled_pool(2, cache=folder)
    if damage in DAMAGES:
        name, content = DAMAGES[damage]
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    elif damage == "another shape":
        np.save(folder / "views.npy", np.zeros((3, 4, 5, 3), np.uint8))
    elif damage == "objects":  # a pickle
        np.save(folder / "views.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be used") as caught:
        filled_pool(0, cache=folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_mean_age_follows_the_ring():
    pool = ViewPool(3, (16, 24), (16, 24), FOCAL, UPSCALE)
    assert pool.mean_age(5) == 0
    for step in (10, 20):
        pool.add(coordinate_picture(16, 24), pose(0), step=step)
    assert pool.mean_age(30) == 15  # 20 and 10 steps
    for step in (30, 40):
        pool.add(coordinate_picture(16, 24), pose(0), step=step)
    assert pool.mean_age(40) == 10  # the one of step 10 is gone: 20, 10 and 0


# -- alpha and depth --------------------------------------------------------------------------------------------------


def pool_with_depth(depths, cache=None, views=0) -> ViewPool:
    """A pool of 2 x 3 pixel views at z = 2, 3, 6 and, in the second row, where there is none."""
    pool = ViewPool(2, (2, 3), (2, 3), 10.0, 1, "cpu", cache, channels=5, depths=DepthRange(*depths))
    view = torch.zeros(2, 3, 5)
    view[0, :, 3], view[0, :, 4] = 1.0, torch.tensor([2.0, 3.0, 6.0])
    for _ in range(views):
        pool.add(view, torch.eye(4)[:3])
    return pool


def test_depth_is_kept_between_the_planes():
    pool = pool_with_depth((2.0, 4.0), views=1)
    # Nothing of z = 2 is behind the near plane, 3 is half-way (127.5, rounded to even), 6 is behind the far plane.
    assert pool.images[0, :, :, 4].tolist() == [[0, 128, 255], [0, 0, 0]]
    assert pool.images[0, :, :, 3].tolist() == [[255] * 3, [0] * 3]
    assert pool.nbytes == 2 * (2 * 3 * 5 + 12 * 4 + 2 * 8)
    # Between 1/2 and 1/4, 1/3 is two thirds of the way.
    assert pool_with_depth((2.0, 4.0, True), views=1).images[0, :, :, 4].tolist() == [[0, 170, 255], [0, 0, 0]]
    assert pool.sample(7, 2, 3).pixels.shape == (7, 2, 3, 5)


def test_a_cache_keeps_depth_in_world_units(tmp_path):
    """Another run's near and far differ a little; the cached views must not move with them."""
    pool_with_depth((1.0, 5.0), tmp_path, views=1)
    restored = pool_with_depth((0.0, 8.0), tmp_path)
    # z = 2, 3 and 5 (6 was behind the far plane): bytes 64, 128 and 255 of 1..5 are z 2.004, 3.008 and 5.
    expected = [[2.004 / 8 * 255, 3.008 / 8 * 255, 5 / 8 * 255], [0, 0, 0]]
    torch.testing.assert_close(restored.images[0, :, :, 4].float(), torch.tensor(expected), atol=0.6, rtol=0)
    restored.add(torch.full((2, 3, 5), 4.0).clamp(max=torch.tensor([1, 1, 1, 1, 4.0])), torch.eye(4)[:3])
    again = pool_with_depth((1.0, 5.0), tmp_path)
    assert again.images[0, :, :, 4].tolist() == [[64, 128, 255], [0, 0, 0]]
    assert (again.images[1, :, :, 4] == 191).all()  # 3/4 of 255


def test_six_channels_survive_as_bytes():
    """Colours, alpha, z between the planes and what is known; z = 0 stays 0."""
    depths = DepthRange(2.0, 4.0, True)
    view = torch.tensor([[[0.2, 0.4, 0.6, 1.0, 3.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]])
    stored = to_bytes(view, depths)
    # 1/3 is two thirds of the way from 1/2 to 1/4.
    assert stored.tolist() == [[[51, 102, 153, 255, 170, 255], [0, 0, 0, 0, 0, 0]]]
    torch.testing.assert_close(from_bytes(stored, depths), view)
    pool = ViewPool(2, (1, 2), (1, 2), 10.0, 1, channels=6, depths=depths)
    pool.add(view, torch.eye(4)[:3])
    pixels = pool.sample(3, 1, 2).pixels
    assert pixels.shape == (3, 1, 2, 6) and pixels[:, 0, :, 5].tolist() == [[1.0, 0.0]] * 3


def test_a_cache_with_other_outputs_is_refused(tmp_path):
    pool_with_depth((1.0, 5.0), tmp_path)
    with pytest.raises(UserError, match="other outputs"):
        ViewPool(2, (2, 3), (2, 3), 10.0, 1, "cpu", tmp_path)
