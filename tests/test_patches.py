"""Hard patches: which enter, which are drawn, which are forgotten, and that a batch keeps its size."""

import functools

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle

from mobiler2l_ns.data.patches import HardPatches, Patches
from mobiler2l_ns.errors import UserError


def make_patches(marks, cells: int = 2, side: int = 4) -> Patches:
    """Patches whose every number tells which one it is: pixels mark / 255, rays mark."""
    marks = torch.tensor(marks, dtype=torch.float32).view(-1, 1, 1, 1)

    def filled(rows, channels):
        return marks.expand(-1, rows, rows, channels).clone()

    rays = RayBundle(
        filled(cells, 3), -filled(cells, 3), filled(cells, 1), metadata={"directions_norm": 2 * filled(cells, 1)}
    )
    return Patches(rays, filled(side, 3) / 255)


def drawn_marks(hard: HardPatches, times: int = 50) -> set:
    """Marks of many draws, each checked to be one whole patch."""
    found = set()
    for _ in range(times):
        patches = hard.draw()
        marks = patches.rays.origins[:, 0, 0, 0]
        assert len(marks) == hard.count
        expected = make_patches(marks.tolist())
        for name in ("origins", "directions", "pixel_area"):
            assert torch.equal(getattr(patches.rays, name), getattr(expected.rays, name))
        assert torch.equal(patches.rays.metadata["directions_norm"], expected.rays.metadata["directions_norm"])
        assert torch.equal(patches.pixels, expected.pixels)
        found |= {int(mark) for mark in marks}
    return found


def test_the_worst_enter_and_are_drawn():
    hard = HardPatches(count=2, capacity=6)
    assert len(hard) == 0 and hard.nbytes == 0
    hard.add(make_patches([10, 11, 12, 13]), torch.tensor([0.1, 0.9, 0.2, 0.8]))
    assert len(hard) == 2 and drawn_marks(hard) == {11, 13}
    hard.add(make_patches([20, 21, 22, 23]), torch.tensor([0.5, 0.1, 0.0, 0.4]))
    assert len(hard) == 4 and drawn_marks(hard) == {11, 13, 20, 23}  # whatever the errors of other batches


def test_patches_without_an_error_do_not_enter():
    hard = HardPatches(count=2, capacity=6)
    hard.add(make_patches([10, 11, 12, 13]), torch.tensor([0.1, 0.2, 0.3]))
    assert drawn_marks(hard) == {11, 12}
    hard.add(make_patches([14, 15]), torch.tensor([0.1]))
    assert len(hard) == 3 and drawn_marks(hard) == {11, 12, 14}


def test_the_oldest_are_forgotten_in_the_same_memory():
    """Capacity 5 and two a batch: the slots run over the end."""
    hard = HardPatches(count=2, capacity=5)
    for batch in range(4):
        marks = [10 * batch + k for k in range(3)]
        hard.add(make_patches(marks), torch.tensor([0.2, 0.1, 0.0]))
        addresses = [tensor.data_ptr() for tensor in hard._stored]
        if batch == 0:
            first, size = addresses, hard.nbytes
    assert len(hard) == 5 and drawn_marks(hard) == {11, 20, 21, 30, 31}
    assert addresses == first
    # 5 patches of 4*4*3 bytes and 2*2 rays of 3 + 3 + 1 + 1 floats
    assert hard.nbytes == size == 5 * (48 + 4 * 8 * 4)


def test_pixels_survive_as_bytes():
    pixels = torch.arange(256).view(4, 8, 8, 1).expand(-1, -1, -1, 3).float() / 255
    rays = make_patches([0, 1, 2, 3]).rays
    hard = HardPatches(count=4, capacity=4)
    hard.add(Patches(rays, pixels), torch.arange(4.0))
    assert hard._stored[0].dtype == torch.uint8
    patches = hard.draw()
    assert patches.pixels.dtype == torch.float32
    assert torch.equal(patches.pixels, pixels[patches.rays.origins[:, 0, 0, 0].long()])


# -- in training ----------------------------------------------------------------------------------------------------


@pytest.fixture
def build(build_pipeline):
    """Pipelines with ten patches a batch."""
    return functools.partial(build_pipeline, patches_per_batch=10)


def rows(bundle: RayBundle) -> list:
    """Something that tells patches apart."""
    return [tuple(ray) for ray in torch.cat([bundle.origins, bundle.directions], dim=-1)[:, 0, 0].tolist()]


@pytest.mark.parametrize("photo_share", [0.0, 0.5])
def test_a_batch_ends_with_hard_patches_of_the_batches_before(build, photo_share):
    datamanager = build(hard_share=0.3, photo_share=photo_share).datamanager
    bundle, batch = datamanager.next_train(0)
    first, pixels = rows(bundle), batch["image"]
    datamanager.mixer.add_hard_patches(torch.tensor([0.0, 0.9, 0, 0, 0.8, 0, 0, 0, 0, 0.7]))
    hard = {first[index]: pixels[index] for index in (1, 4, 9)}
    for step in range(1, 4):
        bundle, batch = datamanager.next_train(step)
        assert bundle.shape == (10, 2, 2) and batch["image"].shape == (10, 16, 16, 3)
        assert datamanager.mixer._last[1] == 7
        for row, patch in zip(rows(bundle)[7:], batch["image"][7:]):
            assert torch.equal(patch, hard[row])
    assert datamanager.get_train_rays_per_batch() == 10 * 16 * 16


def test_a_patch_that_was_drawn_again_does_not_enter_again(build):
    """However badly it was rendered: of the second batch the worst new ones enter."""
    datamanager = build(hard_share=0.3).datamanager
    datamanager.next_train(0)
    datamanager.mixer.add_hard_patches(torch.zeros(10))
    bundle, _ = datamanager.next_train(1)
    datamanager.mixer.add_hard_patches(torch.tensor([0.0, 0.1, 0.2, 0.3, 0, 0, 0, 1, 1, 1]))
    stored = datamanager.mixer.hard_patches._stored[1][3:6, 0, 0]
    assert {tuple(origin) for origin in stored.tolist()} == {tuple(row[:3]) for row in rows(bundle)[1:4]}


def test_the_pipeline_hands_over_each_patches_error(build, monkeypatch):
    pipeline = build(hard_share=0.2)
    heard = []
    monkeypatch.setattr(pipeline.datamanager.mixer, "add_hard_patches", heard.append)
    outputs, losses, metrics = pipeline.get_train_loss_dict(0)
    assert heard[0].shape == (10,) and not heard[0].requires_grad
    torch.testing.assert_close(heard[0].mean(), losses["rgb_loss"].detach())
    patches, num_new = pipeline.datamanager.mixer._last
    assert num_new == 10 and "psnr" in metrics
    by_hand = [float(((outputs["rgb"][b] - patches.pixels[b]) ** 2).mean()) for b in range(10)]
    assert heard[0].tolist() == pytest.approx(by_hand)


def test_hard_patches_fill_up_while_training(build):
    pipeline = build(hard_share=0.2)
    for step in range(3):
        pipeline.get_train_loss_dict(step)
    hard = pipeline.datamanager.mixer.hard_patches
    assert (len(hard), hard.count, hard.capacity) == (6, 2, 200)
    # 200 patches of 16*16*3 bytes and 2*2 rays of 8 floats, beside 4 views and 8 photos.
    assert hard.nbytes == 200 * (768 + 128)
    assert pipeline.datamanager.statistics()["bytes"] == hard.nbytes + 4 * (32 * 32 * 3 + 48 + 16) + 8 * 32 * 32 * 3


def test_without_a_share_nothing_is_kept(build):
    pipeline = build(hard_share=0.0)
    for step in range(2):
        pipeline.get_train_loss_dict(step)
    assert pipeline.datamanager.mixer.hard_patches is None and pipeline.datamanager.mixer._last is None
    pipeline.datamanager.mixer.add_hard_patches(torch.ones(10))
    assert pipeline.datamanager.mixer.hard_patches is None


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_leaves_nothing_new_is_refused(build, share):
    with pytest.raises(UserError, match="--pipeline.datamanager.hard-share"):
        build(hard_share=share)
