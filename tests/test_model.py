"""The student as a nerfstudio model: cameras of every kind, zooming, cropping, parameter groups."""

import pytest
import torch
from builders import ORBIT, camera_at, constant_model, make_model, make_student, one_sentence
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox, SceneBox
from nerfstudio.model_components.renderers import background_color_override_context

from mobiler2l_ns.cameras import ray_lengths, student_rays, student_view
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.model import MobileR2LModelConfig
from mobiler2l_ns.student.network import NetworkConfig
from mobiler2l_ns.training.losses import ignore_unknown

R2L = NetworkConfig(depth=4, width=8, sr_widths=(), sr_strides=(), activation="relu")


@pytest.mark.parametrize("network", [None, R2L], ids=["mobiler2l", "r2l"])
@pytest.mark.parametrize("size", [(32, 48), (30, 53), (288, 511)])
def test_outputs_have_the_cameras_size(size, network):
    outputs = make_model(network).get_outputs_for_camera(camera_at(4.0, height=size[0], width=size[1]))
    assert outputs["rgb"].shape == (*size, 3)
    assert outputs["depth"].shape == outputs["accumulation"].shape == (*size, 1)
    assert outputs["rgb"].min() >= 0 and outputs["rgb"].max() <= 1


def test_the_trained_camera_is_rendered_without_resampling():
    model, camera = make_model(**ORBIT), camera_at(4.0)
    rays = student_rays(student_view(camera, 60.0, 8).rays)
    with torch.no_grad():
        direct = model.renderer.render_rays(*rays)[0].permute(1, 2, 0)
    assert torch.equal(model.get_outputs_for_camera(camera)["rgb"], direct)


def test_r2l_renders_each_ray_by_itself(monkeypatch):
    """The same picture in one pass and in parts of any length; while training, one pass in any arrangement."""
    model, camera = make_model(R2L, **ORBIT), camera_at(4.0)
    rays = student_rays(student_view(camera, 60.0, 1).rays)
    assert rays[1].shape == (1, 32, 48, 3)
    with torch.no_grad():
        whole, _ = model.renderer._render_grid(*rays, None)
        passes = []
        model.network.register_forward_hook(lambda module, inputs, output: passes.append(output[0, 0].numel()))
        monkeypatch.setattr("mobiler2l_ns.student.renderer.MAX_RAYS", 500)
        torch.testing.assert_close(model.renderer.render_rays(*rays), whole)
        assert passes == [500, 500, 500, 36]
        patches = [part.reshape(12, 16, 8, 3) for part in rays]  # any 12 patches of 16 x 8 rays
        torch.testing.assert_close(
            model.renderer.render_rays(*patches).permute(0, 2, 3, 1).reshape(32, 48, 3), whole[0].permute(1, 2, 0)
        )
    picture = model.get_outputs_for_camera(camera)["rgb"]
    torch.testing.assert_close(picture, whole[0].permute(1, 2, 0))
    passes.clear()
    assert model.train().renderer.render_rays(*patches).shape == (12, 3, 16, 8) and passes == [32 * 48]


@pytest.mark.parametrize(
    "distance, shift, magnification",
    [(3.8, 0.0, 1.0), (4.0, 0.0, 1.0), (4.2, 0.0, 1.0), (1.9, -1.9, 0.5), (8.4, 4.2, 2.0)],
)
def test_zoom_by_hand(distance, shift, magnification):
    # The focus lies `distance` in front of the camera; the shell's nearest and farthest camera have it at 3.8 and 4.2.
    found = make_model(**ORBIT).coverage.zoom(camera_at(distance).camera_to_worlds[0])
    assert float(found[0]) == pytest.approx(shift, abs=1e-5)
    assert found[1] == pytest.approx(magnification, abs=1e-5)


def test_zooming_in_keeps_the_points_where_they_were_trained():
    model, near, shell = make_model(**ORBIT), camera_at(1.0), camera_at(3.8)
    shift, _ = model.coverage.zoom(near.camera_to_worlds[0])
    axis = -near.camera_to_worlds[0, :, 2]
    moved = model.sampler.points(near.camera_to_worlds[0, :, 3], axis, model.sampler.depths + shift)
    trained = model.sampler.points(shell.camera_to_worlds[0, :, 3], axis)
    assert torch.allclose(moved, trained, atol=1e-5)


def test_a_path_student_does_not_zoom():
    shift, magnification = make_model().coverage.zoom(camera_at(1.0).camera_to_worlds[0])
    assert float(shift) == 0 and magnification == 1


def test_camera_and_focus_travel_with_the_weights():
    model, other = make_model(**ORBIT), make_model(near=1.0, far=9.0, focal=10.0)
    other.load_state_dict(model.state_dict())
    assert other.size == (32, 48) and other.focal == pytest.approx(60.0)
    assert other.coverage.focus_depths.tolist() == pytest.approx([3.8, 4.2])


def test_an_unbounded_student_is_reloaded_from_its_config_alone():
    """What auto resolved to is in the config; one from before there was a choice is bounded."""
    model = make_model(outputs="rgbad", points="unbounded", cube_centre=torch.tensor([1.0, 2.0, 3.0]), cube_radius=0.5)
    assert model.config.points == "unbounded"
    box = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    again = model.config.setup(scene_box=box, num_train_data=1, metadata={})
    again.load_state_dict(model.state_dict())
    assert again.sampler.centre.tolist() == [1, 2, 3] and float(again.sampler.radius) == 0.5
    # Half-way from 1/3 to 1/5 in 1/z is 4/15.
    half = torch.full((32, 48, 1), 0.5)
    distance = again.renderer._distance(half, ray_lengths(camera_at(4.0)), torch.zeros(()))
    torch.testing.assert_close(distance[16, 24], torch.tensor([15 / 4]), atol=1e-3, rtol=0)
    old = MobileR2LModelConfig(network=model.config.network)
    assert old.setup(scene_box=box, num_train_data=1, metadata={}).config.points == "bounded"


def test_crop_box_masks_what_misses_it():
    model, camera = make_model(), camera_at(4.0)
    box = OrientedBox.from_params((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.2, 0.2, 0.2))
    with background_color_override_context(torch.tensor([1.0, 0.0, 0.0])):
        outputs = model.get_outputs_for_camera(camera, obb_box=box)
    # The box spans about 0.2 / 4 * 60 = 3 pixels around the middle of the picture.
    assert outputs["accumulation"][16, 24] == 1 and outputs["accumulation"][2, 2] == 0
    assert outputs["rgb"][2, 2].tolist() == [1.0, 0.0, 0.0]
    assert 4 <= int(outputs["accumulation"].sum()) <= 40


@pytest.mark.parametrize("outputs", ["rgb", "rgba", "rgbad"])
def test_parameter_groups_are_all_parameters_once(outputs):
    model = make_model(outputs=outputs)
    groups = model.get_param_groups()
    grouped = [p for group in groups.values() for p in group]
    assert len(grouped) == len({id(p) for p in grouped}) == len(list(model.network.parameters()))
    # Muon would make the rows of colours, alpha and depth orthogonal, and biases are no matrices.
    assert all(p.ndim == 4 for p in groups["matrices"])
    assert [p.shape[0] for p in groups["others"] if p.ndim == 4] == [len(outputs)]


def test_bf16_is_for_training_only():
    model, camera = make_model(), camera_at(4.0)
    model.renderer.precision = "bf16"
    seen = []
    before = torch.backends.cudnn.allow_tf32

    def look(module, inputs, output):
        seen.append((output.dtype, torch.backends.cudnn.allow_tf32))

    model.network.head[0].register_forward_hook(look)
    rays = student_view(camera, model.focal, model.upscale).rays
    assert model.train()(rays)["rgb"].dtype == model.eval()(rays)["rgb"].dtype == torch.float32
    assert seen == [(torch.bfloat16, before), (torch.float32, False)]
    assert torch.backends.cudnn.allow_tf32 == before


def test_a_surface_is_computed_in_full_precision(monkeypatch):
    """nerfstudio trains in fp16 under --mixed-precision, and cuDNN in TF32; the highest octave would be noise."""
    model, camera = make_student(surface_octaves=9).train(), camera_at(4.0)
    rays = student_view(camera, model.focal, model.upscale).rays
    expected, allowed, embed = model(rays)["surface_depth"], [], model.embedder.encode_with_depth
    before = torch.backends.cudnn.allow_tf32

    def encode(points):
        allowed.append(torch.backends.cudnn.allow_tf32)
        return embed(points)

    monkeypatch.setattr(model.embedder, "encode_with_depth", encode)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(rays)["surface_depth"], expected)
    assert allowed == [False] and torch.backends.cudnn.allow_tf32 == before


def test_single_rays_are_refused_in_a_sentence():
    rays = RayBundle(
        torch.zeros(5, 3), torch.ones(5, 3), torch.ones(5, 1), metadata={"directions_norm": torch.ones(5, 1)}
    )
    with pytest.raises(UserError, match="not single rays"):
        make_model().get_outputs(rays)


def test_loss_and_metric_by_hand():
    model = make_model()
    prediction, target = torch.full((1, 8, 8, 3), 0.6), torch.full((1, 8, 8, 3), 0.5)
    # Mean squared error 0.1^2 = 0.01, which is 20 dB.
    assert float(model.get_loss_dict({"rgb": prediction}, {"image": target})["rgb_loss"]) == pytest.approx(0.01)
    assert float(model.get_metrics_dict({"rgb": prediction}, {"image": target})["psnr"]) == pytest.approx(
        20.0, abs=1e-3
    )


def test_unknown_pixels_do_not_count_in_the_metric():
    """One of four patches is unknown, and so half of another; their pixels have no error."""
    prediction, target = torch.full((4, 8, 8, 3), 0.6), torch.full((4, 8, 8, 3), 0.5)
    known = torch.ones(4, 8, 8, 1, dtype=torch.bool)
    known[1], known[2, :4] = False, False
    outputs, batch = ignore_unknown({"rgb": prediction}, {"image": target, "known": known, "sources": [1, 2, 1, 0]})
    metrics = {name: float(value) for name, value in make_model().get_metrics_dict(outputs, batch).items()}
    assert metrics == pytest.approx({"psnr": 20.0, "psnr_to_teacher": 20.0, "psnr_to_photos": 20.0}, abs=1e-3)


def test_a_surface_code_refuses_points_that_move():
    config = MobileR2LModelConfig(network=R2L, surface_octaves=4, jitter_points=True)
    with pytest.raises(UserError, match="--pipeline.model.jitter-points False") as caught:
        config.setup(scene_box=SceneBox(torch.zeros(2, 3)), num_train_data=1, metadata={})
    one_sentence(caught)


def test_the_copy_is_the_students_own():
    model = constant_model(0.2, 0.4, 0.6, 0.8, 0.5).train()
    twin = model.copy_to_cpu()
    assert not twin.training and model.training
    for name, value in model.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value)
        assert value.numel() == 0 or twin.state_dict()[name].data_ptr() != value.data_ptr()


# -- alpha and depth --------------------------------------------------------------------------------------------------


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


def test_evaluation_pictures():
    camera = camera_at(4.0)
    batch = {"image": torch.full((32, 48, 3), 0.5)}
    for channels, names in ((3, {"img"}), (4, {"img", "accumulation"}), (5, {"img", "accumulation", "depth"})):
        model = constant_model(*[0.6] * channels)
        metrics, images = model.get_image_metrics_and_images(model.get_outputs_for_camera(camera), batch)
        assert images.keys() == names and metrics["psnr"] == pytest.approx(20.0, abs=1e-3)
        assert all(image.shape[-1] == 3 for image in images.values())


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
