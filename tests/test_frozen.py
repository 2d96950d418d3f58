"""The frozen teacher: what it renders, and the depth range that it shows."""

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras

from mobiler2l_ns.cameras import cell_centres, pinhole_cameras, student_rays
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.teacher import frozen as teacher
from mobiler2l_ns.teacher.frozen import FrozenTeacher

# -- alpha and depth --------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(teacher, "load_teacher", lambda path, device: (model, 0))
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


class Wall(torch.nn.Module):
    """A wall at z = -5 whose colour and alpha are the place that is seen; it renders pinhole views, as a rasteriser."""

    device, config = torch.device("cpu"), None

    def get_outputs_for_camera(self, camera):
        y, x = cell_centres(int(camera.height), int(camera.width), (1, 1)).unbind(-1)
        x, y = (x - camera.cx[0]) / camera.fx[0], (camera.cy[0] - y) / camera.fy[0]
        rgb = torch.stack([0.5 + 0.3 * x, 0.5 + 0.3 * y, torch.full_like(x, 0.5)], dim=-1)
        depth = torch.full((*x.shape, 1), 5.0)
        return {"rgb": rgb, "accumulation": torch.ones_like(depth), "depth": depth, "background": torch.ones(3)}


@pytest.mark.parametrize("k1", [0.0, -0.15, 0.15])
def test_splats_are_rendered_through_the_photos_lens(monkeypatch, k1):
    """What nerfstudio's rays through the distorted pixels meet on the wall. The principal point is not the centre."""
    splat = type("SplatfactoModel", (Wall,), {})
    lens = torch.tensor([[k1, 0.02, 0.0, 0.0, 0.01, -0.008]])
    camera = Cameras(torch.eye(4)[None, :3], 40.0, 44.0, 25.5, 17.0, width=48, height=36, distortion_params=lens)
    view = frozen(monkeypatch, splat()).render_all(camera)
    _, rays_d = student_rays(camera.generate_rays(0, keep_shape=True))
    expected = torch.stack([0.5 + 0.3 * rays_d[..., 0], 0.5 + 0.3 * rays_d[..., 1]], dim=-1)
    torch.testing.assert_close(view[..., :2], expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(view[..., 3:], torch.tensor([1.0, 5.0]).expand(36, 48, 2), atol=1e-5, rtol=0)
    camera.distortion_params = None
    plain = frozen(monkeypatch, splat()).render(camera)
    assert (plain[..., :2] - expected).abs().max() > 0.004  # the lens is no trifle


def test_a_teacher_without_geometry_says_so_once(monkeypatch, capsys):
    found = frozen(monkeypatch, Slab("accumulation", "depth"))
    camera = pinhole_cameras(torch.eye(4)[None, :3], 10.0, 8, 20)
    for _ in range(2):
        picture = found.render_all(camera)
        assert (picture[..., 3] == 1).all() and (picture[..., 4] == 0).all()
    printed = capsys.readouterr().out
    assert printed.count("renders no accumulation") == printed.count("renders no depth") == 1
    with pytest.raises(UserError, match="teacher/config.yml renders no depth.*near-far"):
        found.surface_depths(camera)
