"""Alpha and depth of the student: from the teacher over pool, batch and losses to what nerfstudio is given."""

import functools

import pytest
import torch
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components.renderers import background_color_override_context
from test_datamanager import ball_capture, pixel_rays  # noqa: F401  (a fixture)
from test_model import ORBIT, camera_at, make_model

from mobiler2l_ns.cameras import pinhole_cameras, ray_lengths, student_rays, student_view
from mobiler2l_ns.data.pool import ViewPool
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.student.sampler import DepthRange
from mobiler2l_ns.teacher import frozen as teacher
from mobiler2l_ns.teacher.frozen import FrozenTeacher
from mobiler2l_ns.training.losses import alpha_loss, depth_loss

BYTE = 1 / 255


@pytest.fixture
def build(build_pipeline):
    """Pipelines of students with alpha and depth."""
    return functools.partial(build_pipeline, outputs="rgbad", patches_per_batch=30)


def constant_model(*channels, **metadata):
    """A student whose picture is the same everywhere."""
    model = make_model(outputs={3: "rgb", 4: "rgba", 5: "rgbad"}[len(channels)], **metadata)
    tail = model.network.tail[0]
    with torch.no_grad():
        tail.weight.zero_()
        tail.bias.copy_(torch.logit(torch.tensor(channels)))
    return model


# -- the teacher ----------------------------------------------------------------------------------------------------


def test_ray_lengths_are_nerfstudios():
    camera = camera_at(4.0, height=24, width=40)
    camera.cx += 3  # a crop's
    exact = camera.generate_rays(0, keep_shape=True).metadata["directions_norm"]
    torch.testing.assert_close(ray_lengths(camera), exact)
    camera.distortion_params = torch.tensor([[0.1, 0, 0, 0, 0, 0]])
    bent = ray_lengths(camera)
    assert (bent - exact).abs().max() > 1e-4
    torch.testing.assert_close(bent, camera.generate_rays(0, keep_shape=True).metadata["directions_norm"])


class Slab(torch.nn.Module):
    """Light grey at distance 7 along the ray; half of the picture is nearly transparent there."""

    device, config = torch.device("cpu"), None

    def __init__(self, *missing):
        super().__init__()
        self.without = missing

    def get_outputs_for_camera(self, camera):
        shape = int(camera.height), int(camera.width)
        accumulation = torch.full((*shape, 1), 0.75)
        accumulation[:, shape[1] // 2 :] = 0.25
        found = {
            "rgb": torch.full((*shape, 3), 0.8),
            "accumulation": accumulation,
            "depth": torch.full((*shape, 1), 7.0),
        }
        return {name: value for name, value in found.items() if name not in self.without}


def frozen(monkeypatch, model) -> FrozenTeacher:
    monkeypatch.setattr(teacher, "load_model", lambda path, device: (model, 0))
    return FrozenTeacher("teacher/config.yml", "cpu")


def test_a_teachers_distance_becomes_z_where_something_is_seen(monkeypatch):
    camera = pinhole_cameras(torch.eye(4)[None, :3], 10.0, 8, 20)
    picture = frozen(monkeypatch, Slab()).render_all(camera)
    assert picture.shape == (8, 20, 5) and (picture[..., :3] == 0.8).all()
    assert (picture[:, :10, 3] == 0.75).all() and (picture[:, 10:, 3] == 0.25).all()
    # Pixel (0, 0) is 9.5 to the left of the middle and 3.5 above it, at focal 10: |(0.95, 0.35, 1)| = 1.42302.
    assert float(picture[0, 0, 4]) == pytest.approx(7 / 1.42302, abs=1e-4)
    assert (picture[:, 10:, 4] == 0).all()


def test_a_gaussian_splats_depth_is_z_already(monkeypatch):
    splat = type("SplatfactoModel", (Slab,), {})
    picture = frozen(monkeypatch, splat()).render_all(pinhole_cameras(torch.eye(4)[None, :3], 10.0, 8, 20))
    assert (picture[:, :10, 4] == 7).all()


def test_a_teacher_without_geometry_says_so_once(monkeypatch, capsys):
    found = frozen(monkeypatch, Slab("accumulation", "depth"))
    camera = pinhole_cameras(torch.eye(4)[None, :3], 10.0, 8, 20)
    for _ in range(2):
        picture = found.render_all(camera)
        assert (picture[..., 3] == 1).all() and (picture[..., 4] == 0).all()
    printed = capsys.readouterr().out
    assert printed.count("about accumulation") == printed.count("about depth") == 1
    with pytest.raises(UserError, match="teacher/config.yml says nothing about depth.*near-far"):
        found.surface_depths(camera)


# -- the pool -------------------------------------------------------------------------------------------------------


def filled_pool(depths, cache=None, views=0) -> ViewPool:
    """A pool of 2 x 3 pixel views at z = 2, 3, 6 and, in the second row, where there is none."""
    pool = ViewPool(2, (2, 3), (2, 3), 10.0, 1, "cpu", cache, channels=5, depths=DepthRange(*depths))
    view = torch.zeros(2, 3, 5)
    view[0, :, 3], view[0, :, 4] = 1.0, torch.tensor([2.0, 3.0, 6.0])
    for _ in range(views):
        pool.add(view, torch.eye(4)[:3])
    return pool


def test_depth_is_kept_between_the_planes():
    pool = filled_pool((2.0, 4.0), views=1)
    # Nothing of z = 2 is behind the near plane, 3 is half-way (127.5, rounded to even), 6 is behind the far plane.
    assert pool.images[0, :, :, 4].tolist() == [[0, 128, 255], [0, 0, 0]]
    assert pool.images[0, :, :, 3].tolist() == [[255] * 3, [0] * 3]
    assert pool.nbytes == 2 * (2 * 3 * 5 + 12 * 4 + 2 * 8)
    # Between 1/2 and 1/4, 1/3 is two thirds of the way.
    assert filled_pool((2.0, 4.0, True), views=1).images[0, :, :, 4].tolist() == [[0, 170, 255], [0, 0, 0]]
    assert pool.sample(7, 2, 3).pixels.shape == (7, 2, 3, 5)


def test_a_cache_keeps_depth_in_world_units(tmp_path):
    """Another run's near and far differ a little; the cached views must not move with them."""
    filled_pool((1.0, 5.0), tmp_path, views=1)
    restored = filled_pool((0.0, 8.0), tmp_path)
    # z = 2, 3 and 5 (6 was behind the far plane): bytes 64, 128 and 255 of 1..5 are z 2.004, 3.008 and 5.
    expected = [[2.004 / 8 * 255, 3.008 / 8 * 255, 5 / 8 * 255], [0, 0, 0]]
    torch.testing.assert_close(restored.images[0, :, :, 4].float(), torch.tensor(expected), atol=0.6, rtol=0)
    restored.add(torch.full((2, 3, 5), 4.0).clamp(max=torch.tensor([1, 1, 1, 1, 4.0])), torch.eye(4)[:3])
    again = filled_pool((1.0, 5.0), tmp_path)
    assert again.images[0, :, :, 4].tolist() == [[64, 128, 255], [0, 0, 0]]
    assert (again.images[1, :, :, 4] == 191).all()  # 3/4 of 255


def test_a_cache_with_other_outputs_is_refused(tmp_path):
    filled_pool((1.0, 5.0), tmp_path)
    with pytest.raises(UserError, match="other outputs"):
        ViewPool(2, (2, 3), (2, 3), 10.0, 1, "cpu", tmp_path)


# -- batches --------------------------------------------------------------------------------------------------------


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


def test_opaque_photos_teach_colours_alone(build, stub_teacher, ball_capture):  # noqa: F811
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


# -- losses ---------------------------------------------------------------------------------------------------------


def test_losses_by_hand():
    prediction = torch.tensor([0.5, 0.5, 0.5, 0.5]).view(1, 1, 4, 1)
    target = torch.tensor([0.7, 0.1, 0.0, 0.9]).view(1, 1, 4, 1)
    # 0.04 + 0.16 + 0.25 + 0.16, by 4
    assert float(alpha_loss(prediction, target)) == pytest.approx(0.1525)
    accumulation = torch.tensor([1.0, 0.5, 1.0, 0.0]).view(1, 1, 4, 1)
    # 0.04 + 0.5 * 0.16, none where depth is 0, none where nothing is seen, by 4
    assert float(depth_loss(prediction, target, accumulation)) == pytest.approx(0.03)


def test_the_models_losses_by_hand():
    model = make_model(outputs="rgbad")
    model.config.alpha_weight, model.config.depth_weight = 0.5, 0.25
    outputs = {"rgb": torch.full((4, 8, 8, 3), 0.6), "accumulation": torch.full((4, 8, 8, 1), 0.9),
               "depth": torch.full((4, 8, 8, 1), 0.3)}  # fmt: skip
    batch = {"image": torch.full((4, 8, 8, 3), 0.5)}
    assert model.get_loss_dict(outputs, batch).keys() == {"rgb_loss"}
    batch |= {"alpha": torch.full((2, 8, 8, 1), 0.8), "depth": torch.full((1, 8, 8, 1), 0.5)}
    losses = {name: float(value) for name, value in model.get_loss_dict(outputs, batch).items()}
    # alpha: 0.1^2 in two of four patches; depth: 0.8 * 0.2^2 in one of them
    expected = {"rgb_loss": 0.01, "alpha_loss": 0.5 * 0.01 / 2, "depth_loss": 0.25 * 0.8 * 0.04 / 4}
    assert losses == pytest.approx(expected)
    assert make_model().get_loss_dict({"rgb": outputs["rgb"]}, batch).keys() == {"rgb_loss"}


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


# -- rendering ------------------------------------------------------------------------------------------------------


def test_depth_is_the_distance_along_the_ray():
    camera = camera_at(4.0)
    outputs = constant_model(0.5, 0.5, 0.5, 0.9, 0.25, **ORBIT).get_outputs_for_camera(camera)
    assert torch.allclose(outputs["accumulation"], torch.tensor(0.9))
    # z is a quarter of the way from 3 to 5. Pixel (0, 0) is 23.5 and 15.5 from the middle at focal 60.
    torch.testing.assert_close(outputs["depth"], 3.5 * ray_lengths(camera), atol=1e-5, rtol=0)
    length = (1 + (23.5**2 + 15.5**2) / 60**2) ** 0.5
    assert float(outputs["depth"][0, 0]) == pytest.approx(3.5 * length, abs=1e-5)


@pytest.mark.parametrize(("distance", "z"), [(3.8, 3.5), (1.9, 1.6), (8.4, 7.7), (0.1, 0.0)])
def test_depth_after_zooming(distance, z):
    """The shell's nearest and farthest camera are 3.8 and 4.2 from the focus; nothing lies behind a camera."""
    camera = camera_at(distance)
    outputs = constant_model(0.5, 0.5, 0.5, 0.9, 0.25, **ORBIT).get_outputs_for_camera(camera)
    torch.testing.assert_close(outputs["depth"], z * ray_lengths(camera), atol=1e-4, rtol=0)


def test_training_sees_depth_between_the_planes():
    model = constant_model(0.5, 0.5, 0.5, 0.9, 0.25)
    outputs = model(student_view(camera_at(4.0), model.focal, model.upscale).rays)
    assert {name: value.shape for name, value in outputs.items()} == {
        "rgb": (1, 32, 48, 3), "accumulation": (1, 32, 48, 1), "depth": (1, 32, 48, 1),
    }  # fmt: skip
    assert torch.allclose(outputs["depth"], torch.tensor(0.25))


def test_resizing_does_not_mix_depth_with_the_background(monkeypatch):
    model = make_model(outputs="rgbad", **ORBIT)
    picture = torch.full((1, 5, 32, 48), 0.5)
    picture[:, 3, :, :25], picture[:, 3, :, 25:] = 1.0, 1e-4
    picture[:, 4, :, :25], picture[:, 4, :, 25:] = 0.25, 1.0
    monkeypatch.setattr(model.renderer, "render_rays", lambda *arguments: picture.clone())
    camera = camera_at(4.0, focal=30.0, height=16, width=24)  # half the trained size
    outputs = model.get_outputs_for_camera(camera)
    blended = (outputs["accumulation"] > 0.01) & (outputs["accumulation"] < 0.99)
    assert blended.any()
    z = outputs["depth"] / ray_lengths(camera)
    torch.testing.assert_close(z[blended], torch.full_like(z[blended], 3.5), atol=0.02, rtol=0)


def test_heads_that_are_not_there_change_nothing():
    camera = camera_at(4.0)
    outputs = constant_model(0.2, 0.4, 0.6).get_outputs_for_camera(camera)
    far = 5 * ray_lengths(camera)
    assert (outputs["accumulation"] == 1).all() and torch.allclose(outputs["depth"], far)
    with background_color_override_context(torch.zeros(3)):
        assert torch.allclose(constant_model(0.2, 0.4, 0.6).get_outputs_for_camera(camera)["rgb"], outputs["rgb"])
    outputs = constant_model(0.2, 0.4, 0.6, 0.8).get_outputs_for_camera(camera)
    assert torch.allclose(outputs["accumulation"], torch.tensor(0.8)) and torch.allclose(outputs["depth"], far)


@pytest.mark.parametrize("background", [None, (0.0, 0.0, 0.0), (1.0, 0.0, 0.5)])
def test_straight_alpha_and_back(background):
    """Colour (0.2, 0.5, 0.8) at alpha 0.4 is (0.68, 0.8, 0.92) on white."""
    model, camera = constant_model(0.68, 0.8, 0.92, 0.4, 0.5), camera_at(4.0)
    colour = torch.tensor([0.2, 0.5, 0.8])
    if background is None:
        outputs, background = model.get_outputs_for_camera(camera), (1.0, 1.0, 1.0)
        rgba = model.get_rgba_image(outputs)
    else:
        with background_color_override_context(torch.tensor(background)):
            outputs = model.get_outputs_for_camera(camera)
            rgba = model.get_rgba_image(outputs)
    shown = (0.4 * colour + 0.6 * torch.tensor(background)).expand(32, 48, 3)
    torch.testing.assert_close(outputs["rgb"], shown, atol=1e-5, rtol=0)
    torch.testing.assert_close(rgba[..., :3], colour.expand(32, 48, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(rgba[..., 3], torch.full((32, 48), 0.4), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("alpha", "z"), [(0.6, 4.0), (0.4, 5.0), (0.0, 5.0)])
def test_less_than_half_opaque_is_as_far_as_the_far_plane(alpha, z):
    """What composites pictures by depth would else be hidden by what is not there."""
    camera = camera_at(4.0)
    outputs = constant_model(0.9, 0.9, 0.9, alpha, 0.5).get_outputs_for_camera(camera)
    torch.testing.assert_close(outputs["depth"], z * ray_lengths(camera), atol=1e-5, rtol=0)


def test_a_crop_box_cuts_alpha_and_depth():
    model, camera = constant_model(0.68, 0.8, 0.92, 0.4, 0.5), camera_at(4.0)
    box = OrientedBox.from_params((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.2, 0.2, 0.2))
    with background_color_override_context(torch.tensor([1.0, 0.0, 0.0])):
        outputs = model.get_outputs_for_camera(camera, obb_box=box)
    assert float(outputs["accumulation"][16, 24]) == pytest.approx(0.4)
    assert outputs["accumulation"][2, 2] == 0 and outputs["rgb"][2, 2].tolist() == [1, 0, 0]
    torch.testing.assert_close(outputs["rgb"][16, 24], torch.tensor([0.68, 0.2, 0.32]), atol=1e-5, rtol=0)


def test_evaluation_pictures():
    camera = camera_at(4.0)
    batch = {"image": torch.full((32, 48, 3), 0.5)}
    for channels, names in ((3, {"img"}), (4, {"img", "accumulation"}), (5, {"img", "accumulation", "depth"})):
        model = constant_model(*[0.6] * channels)
        metrics, images = model.get_image_metrics_and_images(model.get_outputs_for_camera(camera), batch)
        assert images.keys() == names and metrics["psnr"] == pytest.approx(20.0, abs=1e-3)
        assert all(image.shape[-1] == 3 for image in images.values())


# -- configuration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", ["rgb", "rgba", "rgbad"])
def test_the_network_follows_the_outputs(outputs):
    model = make_model(outputs=outputs)
    assert model.network.tail[0].out_channels == model.config.network.out_channels == len(outputs)
    other = make_model(outputs=outputs)
    other.load_state_dict(model.state_dict())
    rays = student_rays(student_view(camera_at(4.0), model.focal, model.upscale).rays)
    with torch.no_grad():
        assert model.renderer.render_rays(*rays).shape == (1, len(outputs), 32, 48)
        assert torch.equal(model.renderer.render_rays(*rays), other.renderer.render_rays(*rays))
