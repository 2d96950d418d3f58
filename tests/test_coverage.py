"""Which rays the training views contained, and what a student renders along the others."""

import numpy as np
import pytest
import torch
from builders import camera_at, constant_model, ring
from open_viewer import look

from mobiler2l_ns.student.coverage import NUM_VIEWPOINTS, ray_distances, ray_offsets, spread_viewpoints, trained_extent


def test_trained_extent_by_hand():
    """Of 75 x 80 pixels at focal 50 the sides' middles are 40 and 37.5 off the axis: sines 0.8/1.64^.5 and 0.6."""
    c2w = torch.stack([look(4.0), look(2.0)])
    extent = trained_extent(c2w, torch.zeros(3), (75, 80), 50.0).tolist()
    assert extent == pytest.approx([4 * 0.8 / 1.64**0.5, 4 * 0.6], abs=1e-5)


def test_ray_offsets_by_hand():
    """From 5 to the south, 0.6 to the right or to the left, and 0.6 up: 3 past the origin."""
    rays_d = torch.tensor([[0.6, 0.8, 0.0], [-0.6, 0.8, 0.0], [0.0, 0.8, 0.6]])
    rays_o = torch.tensor([[0.0, -5.0, 0.0]]).expand(3, 3)
    offsets = ray_offsets(rays_o, rays_d, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    assert offsets.flatten().tolist() == pytest.approx([3, 0, -3, 0, 0, 3], abs=1e-6)


def test_ray_distances_by_hand():
    rays_o, rays_d = (
        torch.tensor([[0.0, 3.0, 4.0]]).expand(3, 3),
        torch.tensor([[0.0, 0, -1], [0, 0, 1], [0, -0.6, -0.8]]),
    )
    # Past the origin at 3; away from it, so nearest at the start; and straight through it.
    assert ray_distances(rays_o, rays_d, torch.zeros(3)).tolist() == pytest.approx([3.0, 5.0, 0.0], abs=1e-6)


def orbit_model(*channels):
    """Grey, opaque and in the middle of its planes; its cameras are 4 from the focus, and see 2.4 far beside it."""
    model = constant_model(*channels, focus=torch.zeros(3), focus_depths=(3.8, 4.2))
    # 48 x 32 pixels at focal 60: to the side rays are up to atan(24 / 60) from the axis, so 1.4856 from the focus,
    # upwards up to atan(16 / 60) and 1.0307.
    model.coverage.viewpoints.copy_(look(4.0).expand(32, 3, 4))
    return model


@pytest.mark.parametrize("channels", [(0.5,) * 3, (0.5, 0.5, 0.5, 1 - 1e-6), (0.5, 0.5, 0.5, 1 - 1e-6, 0.5)])
def test_what_no_training_picture_contained_is_background(channels):
    model = orbit_model(*channels)
    outputs = model.get_outputs_for_camera(camera_at(4.0, height=200, width=200))
    rgb, accumulation = outputs["rgb"], outputs["accumulation"]
    y, x = torch.meshgrid(torch.arange(200) - 99.5, torch.arange(200) - 99.5, indexing="ij")
    length = (x**2 + y**2 + 60**2).sqrt()
    distance = torch.maximum(4 * x.abs() / length / 1.4856, 4 * y.abs() / length / 1.0307)  # of rays, in extents
    inside, outside = distance < 1.04, distance > 1.11
    assert torch.allclose(rgb[inside], torch.tensor(0.5), atol=1e-4) and (accumulation[inside] > 0.999).all()
    assert (rgb[outside] == 1).all() and (accumulation[outside] == 0).all()
    edge = accumulation[(distance > 1.06) & (distance < 1.09)]
    assert 0 < edge.min() and edge.max() < 1


def test_cameras_of_the_training_see_what_they_saw():
    model, camera = orbit_model(0.5, 0.5, 0.5, 0.9, 0.5), camera_at(4.0)
    outputs = model.get_outputs_for_camera(camera)
    model.coverage.viewpoints.zero_()  # a student that does not know
    for name, value in model.get_outputs_for_camera(camera).items():
        assert torch.equal(outputs[name], value)


@pytest.mark.parametrize("channels", [(0.5,) * 3, (0.5, 0.5, 0.5, 0.9, 0.5)])
@pytest.mark.parametrize("size", [(1, 1), (30, 53), (288, 511)])
@pytest.mark.parametrize("distance", [1e-4, 0.5, 4.0, 1e3])
def test_any_size_field_of_view_and_place(channels, size, distance):
    for degrees in (10, 120):
        camera = camera_at(distance, size[0] / 2 / np.tan(np.radians(degrees / 2)), *size)
        outputs = orbit_model(*channels).get_outputs_for_camera(camera)
        assert outputs["rgb"].shape == (*size, 3)
        for value in outputs.values():
            assert value.shape[:2] == size and value.isfinite().all()
        assert 0 <= outputs["rgb"].min() and outputs["rgb"].max() < 1 + 1e-5


def test_a_camera_that_looks_away_sees_nothing():
    camera = camera_at(4.0)
    camera.camera_to_worlds[:, :, [0, 2]] *= -1
    outputs = orbit_model(0.5, 0.5, 0.5, 0.9, 0.5).get_outputs_for_camera(camera)
    assert (outputs["rgb"] == 1).all() and (outputs["accumulation"] == 0).all()


def test_viewpoints_are_spread_over_the_capture():
    many = ring(range(0, 360, 5))
    chosen = spread_viewpoints(many)
    assert chosen.shape == (NUM_VIEWPOINTS, 3, 4)
    assert torch.equal(chosen[0], many[0]) and torch.equal(chosen[-1], many[-1])
    assert len(torch.unique(chosen[:, :, 3], dim=0)) == NUM_VIEWPOINTS
    assert len(spread_viewpoints(many[:3])) == NUM_VIEWPOINTS
