"""Alpha and depth of the student's views."""

import pytest
import torch
from builders import ORBIT, camera_at, constant_model, make_model
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components.renderers import background_color_override_context

from mobiler2l_ns.cameras import ray_lengths, student_view


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
