"""Batches with alpha and depth: of teacher views, reprojected views, photos and hard patches."""

import functools

import pytest
import torch
from builders import one_sentence, pixel_rays
from nerfstudio.utils import comms

from mobiler2l_ns.errors import UserError

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
    datamanager.mixer.add_hard_patches(torch.rand(30))
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


# -- reprojected views ------------------------------------------------------------------------------------------------


REPROJECTED = {"reprojected_share": 0.5, "reprojected_views": 20}


def test_a_batch_has_its_share_of_reprojected_views(build, stub_teacher, ball_capture):
    """12 of 30 patches are photos; half of the others are reprojected."""
    datamanager = build(photo_share=0.4, data=ball_capture, **REPROJECTED).datamanager
    bundle, batch = datamanager.next_train(0)
    assert batch.keys() == {"image", "alpha", "depth", "known", "sources"} and batch["sources"] == [9, 9, 12, 0]
    assert len(batch["image"]) == len(batch["alpha"]) == len(batch["depth"]) == 30
    known = batch["known"][..., 0]
    assert known.dtype == torch.bool and known[:9].all() and known[18:].all()
    assert 0.02 < known[9:18].float().mean() < 0.9 and (batch["alpha"][9:18][..., 0] == known[9:18]).all()
    expected = stub_teacher.colours(*pixel_rays(bundle))
    ball = stub_teacher.depths(*pixel_rays(bundle))[..., 0] > 0
    error = (batch["image"] - expected).abs().amax(dim=-1)
    assert (error[:9] <= 0.5 / 255 + 1e-4).float().mean() > 0.999
    assert (error[18:] <= 0.5 / 255 + 1e-4).float().mean() > 0.999
    assert error[9:18][known[9:18] & ball[9:18]].mean() < 0.05  # photos have 32 pixels a side
    datamanager.set_photo_share(1.0)
    _, batch = datamanager.next_train(1)
    assert batch["sources"] == [0, 0, 30, 0] and "known" not in batch


def test_photos_teach_depth(build, stub_teacher, ball_capture):
    """With depth, photos are taught like teacher views; nothing is unknown without reprojected views."""
    datamanager = build(photo_share=0.5, data=ball_capture, photo_depth=True).datamanager
    bundle, batch = datamanager.next_train(0)
    assert batch["sources"] == [15, 0, 15, 0] and "known" not in batch and datamanager.reprojected is None
    assert len(batch["alpha"]) == len(batch["depth"]) == 30
    check_against_the_ball(bundle, batch, stub_teacher, datamanager.train_dataset.metadata["student_camera"])


def test_reprojected_views_without_photos_in_the_batch(build):
    """The photos are loaded for them alone."""
    datamanager = build(photo_share=0.0, **{**REPROJECTED, "reprojected_share": 0.9}).datamanager
    _, batch = datamanager.next_train(0)
    assert batch["sources"] == [3, 27, 0, 0] and len(batch["known"]) == 30
    _, batch = datamanager.mixer.draw(0.5)
    assert batch["sources"] == [1, 14, 15, 0] and len(batch["depth"]) == 30  # photos with depth


@pytest.mark.parametrize("rank, sources", [(0, [2, 2, 3, 0]), (1, [2, 2, 3, 0]), (2, [2, 2, 2, 0])])
def test_each_process_has_its_share(build, monkeypatch, rank, sources):
    """20 patches for three processes are refused elsewhere; here 8 photos and 12 others among 7, 7 and 6 patches."""
    datamanager = build(photo_share=0.4, **REPROJECTED).datamanager
    datamanager.next_train(0)
    monkeypatch.setattr(comms, "get_rank", lambda: rank)
    monkeypatch.setattr(comms, "get_world_size", lambda: 3)
    datamanager.mixer.patches_per_batch = 20
    _, batch = datamanager.mixer.draw(0.4)
    assert batch["sources"] == sources and len(batch["image"]) == sum(sources) == len(batch["known"])


def test_memory_includes_what_is_reprojected(build, capsys):
    """Photos of twice the resolution, depths, and the reprojected views themselves."""
    datamanager = build(pool_views=500, **{**REPROJECTED, "reprojected_views": 200}).datamanager
    printed = " ".join(capsys.readouterr().out.split())
    # 200 views of 6 bytes a pixel; 8 photos of 4 * 4 bytes, z and a mark; directions of 4 * 12 bytes
    size = 32 * 32 * (200 * 6 + 8 * (16 + 5) + 48)
    assert (
        f"+ photos ({8 * 32 * 32 * 5 / 1e6:.1f} MB) + reprojected views and their photos ({size / 1e6:.1f} MB)"
        in printed
    )
    datamanager.next_train(0)
    drawn, pool = datamanager.reprojected.reprojector, datamanager.reprojected.pool
    tensors = [drawn.images, drawn.depths, drawn.known, drawn.lenses._kept, pool.images]
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors) == size
    poses = 700 * (48 + 16)
    assert datamanager.statistics()["bytes"] == size + poses + 32 * 32 * (500 * 5 + 8 * 5)


@pytest.mark.parametrize("outputs, line", [("rgb", 1), ("rgbad", 0)])
def test_a_student_without_depth_is_told(build, capsys, outputs, line):
    datamanager = build(outputs=outputs, **REPROJECTED).datamanager
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("No view is reprojected, because the student learns no depth") == line
    assert (datamanager.reprojected is None) == (line == 1)
    assert datamanager.next_train(0)[1]["sources"][1] == (0 if line else 8)


def test_a_teacher_without_depth_is_told(build, stub_teacher, monkeypatch, capsys):
    monkeypatch.setattr(stub_teacher, "depths", lambda origins, directions: torch.zeros_like(origins[..., :1]))
    datamanager = build(near_far=(2.0, 6.0), **REPROJECTED).datamanager
    assert "The teacher renders no depth: photos teach none, and no view is reprojected." in " ".join(
        capsys.readouterr().out.split()
    )
    _, batch = datamanager.next_train(0)
    assert batch["sources"] == [15, 0, 15, 0] and "known" not in batch and len(batch["depth"]) == 15


def test_hard_patches_beside_reprojected_views_are_refused(build):
    with pytest.raises(
        UserError, match="hard-share cannot be used .* --pipeline.datamanager.reprojected-share 0"
    ) as caught:
        build(hard_share=0.2, **REPROJECTED)
    one_sentence(caught)


@pytest.mark.parametrize("name", ["photo_share", "reprojected_share", "teacher_share", "filling_share"])
@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_shares_are_fractions(build, name, share):
    option = "--pipeline.datamanager." + name.replace("_", "-")
    with pytest.raises(UserError, match=f"{option} needs a number from 0 to 1, not {share}.$") as caught:
        build(**{name: share})
    one_sentence(caught)


def test_a_student_cannot_learn_from_reprojected_views_alone(build):
    with pytest.raises(UserError, match="--pipeline.datamanager.reprojected-share needs a number below 1") as caught:
        build(reprojected_share=1.0)
    one_sentence(caught)
