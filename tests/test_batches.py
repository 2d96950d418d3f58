"""Batches with alpha and depth: of teacher views, photos and hard patches."""

import functools

import pytest
import torch
from builders import pixel_rays

BYTE = 1 / 255


@pytest.fixture
def build(build_pipeline):
    """Pipelines of students with alpha and depth."""
    return functools.partial(build_pipeline, outputs="rgbad", patches_per_batch=30)


def check_against_the_ball(bundle, batch, stub, camera) -> None:
    """Alpha and depth of a batch's first patches, by closed form, to half a byte."""
    m = len(batch["alpha"])
    origins, directions = (part[:m] for part in pixel_rays(bundle))
    z = stub.depths(origins, directions)
    assert ((batch["alpha"] - (z > 0).float()).abs() < 0.01).float().mean() > 0.999  # a ray along the rim may differ
    near = camera.near
    m = len(batch["depth"])
    z, known = z[:m], (z[:m] > near + 0.01) & (batch["alpha"][:m] > 0)
    part = camera.depths.normalize(z)
    error = (batch["depth"] - part.clamp(0, 1))[known].abs()
    assert known.any() and (error < 0.51 * BYTE + 1e-4).float().mean() > 0.999
    assert (batch["depth"][z == 0] == 0).float().mean() > 0.999


def test_teacher_views_teach_alpha_and_depth(build, stub_teacher):
    datamanager = build(photo_share=0.0, tile_cells=3).datamanager
    bundle, batch = datamanager.next_train(0)
    assert batch["image"].shape == (30, 16, 16, 3) and batch["alpha"].shape == batch["depth"].shape == (30, 16, 16, 1)
    check_against_the_ball(bundle, batch, stub_teacher, datamanager.train_dataset.metadata["student_camera"])


def test_transparent_photos_teach_alpha(build):
    """The demo capture's photos: on white where alpha is 0, and white is rare elsewhere."""
    datamanager = build(photo_share=0.5).datamanager
    _, batch = datamanager.next_train(0)
    assert len(batch["image"]) == len(batch["alpha"]) == 30 and len(batch["depth"]) == 15
    background = batch["alpha"][15:, ..., 0] == 0
    assert 0.1 < background.float().mean() < 0.95 and (batch["image"][15:][background] == 1).all()
    assert (batch["image"][15:][~background].mean(dim=-1) < 0.99).float().mean() > 0.9
    assert datamanager.next_eval(0)[1].keys() == {"image"}


def test_opaque_photos_teach_colours_alone(build, stub_teacher, ball_capture):
    datamanager = build(photo_share=0.5, data=ball_capture).datamanager
    bundle, batch = datamanager.next_train(0)
    assert len(batch["image"]) == 30 and len(batch["alpha"]) == len(batch["depth"]) == 15
    check_against_the_ball(bundle, batch, stub_teacher, datamanager.train_dataset.metadata["student_camera"])
    datamanager.set_photo_share(1.0)
    assert datamanager.next_train(1)[1].keys() == {"image", "sources"}


def test_hard_patches_are_colours(build, stub_teacher):
    datamanager = build(photo_share=0.0, hard_share=0.2).datamanager
    datamanager.next_train(0)
    datamanager.add_hard_patches(torch.rand(30))
    bundle, batch = datamanager.next_train(1)
    assert len(batch["image"]) == 30 and len(batch["alpha"]) == len(batch["depth"]) == 24
    check_against_the_ball(bundle, batch, stub_teacher, datamanager.train_dataset.metadata["student_camera"])


@pytest.mark.parametrize("outputs", ["rgb", "rgba"])
def test_what_is_not_asked_for_is_not_kept(build, outputs):
    datamanager = build(outputs=outputs).datamanager
    _, batch = datamanager.next_train(0)
    assert batch.keys() == {"image", "alpha", "sources"} - ({"alpha"} if outputs == "rgb" else set())
    assert datamanager.pool.images.shape[-1] == datamanager.photos.images.shape[-1] == len(outputs)


def test_the_announcement_counts_channels(build, capsys):
    datamanager = build(pool_views=500).datamanager
    printed = " ".join(capsys.readouterr().out.split())
    assert f"({500 * 32 * 32 * 5 / 1e6:.1f} MB)" in printed
    assert datamanager.pool.images.numel() == 500 * 32 * 32 * 5 and datamanager.photos.nbytes == 8 * 32 * 32 * 4


def test_heads_learn_in_a_few_steps(build):
    torch.manual_seed(0)
    pipeline = build(photo_share=0.0, initial_views=4, patches_per_batch=16)
    optimizer = torch.optim.Adam(pipeline.model.network.parameters(), 1e-2)
    history = []
    for step in range(40):
        _, losses, _ = pipeline.get_train_loss_dict(step)
        assert losses.keys() == {"rgb_loss", "alpha_loss", "depth_loss"}
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    for name in ("alpha_loss", "depth_loss"):
        assert sum(h[name] for h in history[-5:]) < 0.5 * sum(h[name] for h in history[:5])
