"""Reprojected views: photos of an analytic ball, moved to new poses, against the ball itself."""

import copy
import weakref

import pytest
import torch
import torch.nn.functional as F
from builders import StubTeacher, make_student, ring, stub_teacher_config
from nerfstudio.cameras.cameras import Cameras

from mobiler2l_ns.cameras import pinhole_cameras, student_view
from mobiler2l_ns.data.photos import PhotoSet
from mobiler2l_ns.data.pool import ViewPool
from mobiler2l_ns.data.poses import PathPoses
from mobiler2l_ns.data.reprojection import (
    DENSITY,
    INITIAL_VIEWS,
    SPARE_PIXELS,
    ReprojectedViews,
    Reprojector,
    is_smooth,
    render_depths,
    splat,
)
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.student.sampler import DepthRange

SIZE, FOCAL = 64, 90.0
NEW_POSE = ring((13,), (27.0,), (4.1,))[0]
DISTORTION = (0.6, 0.0, 0.0, 0.0, 0.02, -0.01)  # k1, k2, k3, k4, p1, p2


def photo_cameras(c2w, density, distortion=(0.0,) * 6, focal=FOCAL) -> Cameras:
    """Cameras of photos with ``density`` times the view's resolution."""
    side = density * SIZE
    return Cameras(
        camera_to_worlds=c2w, fx=torch.as_tensor(density * focal).expand(len(c2w))[:, None],
        fy=torch.as_tensor(density * focal).expand(len(c2w))[:, None], cx=side / 2, cy=side / 2, width=side,
        height=side, distortion_params=torch.tensor([distortion]).expand(len(c2w), 6),
    )  # fmt: skip


def ball_photos(c2w, **lens) -> Reprojector:
    """Photos of the ball, and its depth."""
    ball = StubTeacher()
    large, small = (photo_cameras(c2w, density, **lens) for density in (DENSITY, 1))
    images = torch.stack([ball.render(large[i : i + 1]) for i in range(len(c2w))])
    z, alpha = render_depths(ball.render_all, small)
    assert torch.equal(alpha, (z > 0).float())
    return Reprojector(PhotoSet((images * 255).round().to(torch.uint8), large, 8), z, FOCAL)


def truth(c2w) -> torch.Tensor:
    """The ball from a pose: colours, alpha, z."""
    return StubTeacher().render_all(pinhole_cameras(c2w[None], FOCAL, SIZE, SIZE))


def grown(mask: torch.Tensor) -> torch.Tensor:
    """A mask and the neighbours of its pixels."""
    return F.max_pool2d(mask[None, None].float(), 3, stride=1, padding=1)[0, 0] > 0


def check_against_the_ball(view, c2w) -> None:
    """Colours and z of the known pixels, and where there may be none."""
    expected = truth(c2w)
    known, ball = view[..., 5] > 0, expected[..., 3] > 0
    assert set(view[..., 5].unique().tolist()) == {0.0, 1.0}
    assert (known & ball).sum() > 0.5 * ball.sum()
    assert not known[~grown(ball)].any()
    assert (view[~known] == 0).all() and (view[known][:, 3] == 1).all()
    both = known & ball
    error = (view[..., :3] - expected[..., :3])[both].abs()
    assert error.mean() < 0.01 and error.quantile(0.99) < 0.05
    z_error = (view[..., 4] / expected[..., 4])[both].sub(1).abs()
    assert z_error.quantile(0.95) < 0.01 and z_error.max() < 0.05  # a pixel of a steep surface spans several percent


# -- views of the ball ----------------------------------------------------------------------------------------------


def test_a_view_of_a_new_pose_is_what_the_ball_shows_there():
    check_against_the_ball(ball_photos(ring((-10, 10, 30, 150), (20.0, 35.0), (4.0,))).render(NEW_POSE), NEW_POSE)


def test_photos_keep_their_lens():
    """Lens distortion moves the photos' pixels by up to a pixel of the view."""
    photos = ball_photos(ring((-10, 10, 30), (25.0,), (4.0,)), distortion=DISTORTION)
    right = photos.render(NEW_POSE)
    check_against_the_ball(right, NEW_POSE)
    photos.cameras.distortion_params = None
    wrong = Reprojector(PhotoSet(photos.images, photos.cameras, 8), photos.depths, FOCAL).render(NEW_POSE)
    expected = truth(NEW_POSE)
    both = (wrong[..., 5] > 0) & (right[..., 5] > 0) & (expected[..., 3] > 0)
    right_error, wrong_error = ((view - expected)[both].abs().mean() for view in (right[..., :5], wrong[..., :5]))
    assert wrong_error > 2 * right_error


def test_each_photo_has_its_own_lens_in_little_memory():
    """Six zooms, each photo moved to its own pose; the directions of so many lenses are not kept."""
    c2w = ring(range(0, 360, 60), (25.0,), (4.0,))
    photos = ball_photos(c2w, focal=torch.linspace(85.0, 95.0, 6))
    for index in range(6):
        points, colours = photos._points(torch.tensor([index]), c2w[index])
        check_against_the_ball(splat(points, colours, FOCAL, (SIZE, SIZE)), c2w[index])
    assert photos.lenses.nbytes == 0
    assert ball_photos(c2w).lenses.nbytes == 3 * 4 * (DENSITY * SIZE) ** 2


def test_a_photo_at_its_own_pose_is_itself():
    """Each pixel has the DENSITY x DENSITY pixels of the photo, but for those at an edge of depth."""
    c2w = ring((20,), (30.0,), (4.0,))
    photos = ball_photos(c2w)
    view = photos.render(c2w[0])
    known = view[..., 5] > 0
    assert torch.equal(known, is_smooth(photos.depths)[0])
    mean = F.avg_pool2d(photos.images[0].permute(2, 0, 1).float() / 255, DENSITY).permute(1, 2, 0)
    torch.testing.assert_close(view[known][:, :3], mean[known], atol=1e-5, rtol=0)
    torch.testing.assert_close(view[known][:, 4], photos.depths[0][known], atol=5e-3, rtol=0)
    ball = truth(c2w[0])[..., 3] > 0
    rim = ball & grown(~ball)
    assert rim.sum() > 50 and not known[rim].any()


def test_what_is_transparent_is_unknown():
    c2w = ring((20,), (30.0,), (4.0,))
    photos = ball_photos(c2w)
    alpha = torch.full((1, 2 * SIZE, 2 * SIZE, 1), 255, dtype=torch.uint8)
    alpha[:, :SIZE], alpha[:, SIZE : SIZE + 8] = 250, 251  # the upper half, and four rows of the view below it
    images = PhotoSet(torch.cat([photos.images, alpha], dim=-1), photos.cameras, 8)
    view = Reprojector(images, photos.depths, FOCAL).render(c2w[0])
    half = SIZE // 2
    assert not view[:half].any()
    torch.testing.assert_close(view[half:], photos.render(c2w[0])[half:])
    assert view[half : half + 4, :, 5].sum() > 50


def test_views_inside_a_bf16_context_are_as_exact():
    photos = ball_photos(ring((-10, 10, 30), (25.0,), (4.0,)))
    pool = ViewPool(3, (SIZE, SIZE), (SIZE, SIZE), FOCAL, 8, channels=6, depths=DepthRange(2.5, 4.5))
    with torch.autocast("cpu", torch.bfloat16):
        ReprojectedViews(pool, PathPoses(photos.cameras.camera_to_worlds), photos).advance(0)
    for image, c2w in zip(pool.images, pool.c2w):
        expected = truth(c2w)
        both = (image[..., 5] > 0) & (expected[..., 3] > 0)
        assert (image[..., :3].float() / 255 - expected[..., :3])[both].abs().mean() < 0.01


# -- parts, by hand -------------------------------------------------------------------------------------------------


def test_nearest_photos_by_hand():
    """Cameras at x = 0, 1, 2, 3; half of their 16 distances are at most 1, the unit of place beside direction."""
    c2w = torch.eye(4)[None, :3].repeat(4, 1, 1)
    c2w[:, 0, 3] = torch.arange(4.0)

    def nearest(x):
        cameras = pinhole_cameras(c2w, 8.0, 8, 8)
        photos = PhotoSet(torch.zeros(4, 8, 8, 3, dtype=torch.uint8), cameras, 4)
        pose = torch.eye(4)[:3]
        pose[0, 3] = x
        return Reprojector(photos, torch.ones(4, 4, 4), 4.0).nearest(pose).tolist()

    assert nearest(1.2) == [1, 2, 0] and nearest(2.9) == [3, 2, 1]
    c2w[1, :, 0], c2w[1, :, 2] = -c2w[1, :, 0], -c2w[1, :, 2]  # looks back: 2 units farther
    assert nearest(1.2) == [2, 0, 3]


def pixel_points(*rows):
    """Points at pixel centres of a 4 x 2 view with focal length 10: row, column, z, and a grey; as often as said."""
    points, colours = [], []
    for row, column, z, grey, count in rows:
        points += [[(column + 0.5 - 2) / 10 * z, (1 - row - 0.5) / 10 * z, -z]] * count
        colours += [[grey, grey, grey]] * count
    return torch.tensor(points).T, torch.tensor(colours).T


def test_splat_by_hand():
    """The nearest surface wins, and includes points 3 percent behind it; one point is too few."""
    points, colours = pixel_points(
        (0, 0, 2.0, 0.2, 1), (0, 0, 2.0, 0.6, 1),  # the mean of two
        (0, 1, 2.0, 0.5, 1),  # one
        (0, 2, 2.0, 0.9, 1), (0, 2, 2.04, 0.6, 2), (0, 2, 3.0, 0.1, 5),  # three, and what they hide
        (1, 1, 1.0, 0.5, 1), (1, 1, 2.0, 0.5, 4),  # the nearest surface has one point, so nothing is known
        (0, 3, torch.nan, 0.5, 9),  # not known
        (1, 3, -2.0, 0.5, 9), (1, 4, 2.0, 0.5, 9), (2, 0, 2.0, 0.5, 9), (-1, 0, 2.0, 0.5, 9), (0, -1, 2.0, 0.5, 9),
    )  # fmt: skip
    view = splat(points, colours, 10.0, (2, 4))
    expected = torch.zeros(2, 4, 6)
    expected[0, 0] = torch.tensor([0.4, 0.4, 0.4, 1, 2.0, 1])
    expected[0, 2] = torch.tensor([0.7, 0.7, 0.7, 1, 6.08 / 3, 1])
    torch.testing.assert_close(view, expected)
    assert not splat(points[:, :0], colours[:, :0], 10.0, (2, 4)).any()


def test_points_that_fall_nowhere_are_spread(monkeypatch):
    """On a GPU, points of one pixel wait for each other."""
    targets, add = [], torch.Tensor.index_add_

    def watch(self, dim, index, values):
        targets.append(index)
        return add(self, dim, index, values)

    monkeypatch.setattr(torch.Tensor, "index_add_", watch)
    view = splat(torch.full((3, 5 * SPARE_PIXELS), torch.nan), torch.ones(3, 5 * SPARE_PIXELS), 10.0, (2, 4))
    assert not view.any() and targets[0].bincount().max() == 5


def test_depths_keep_no_view_of_the_teacher():
    """A view has twenty bytes a pixel, of which eight are used."""
    views = []

    def render(camera):
        assert not views or views[-1]() is None
        view = torch.full((4, 6, 5), len(views) + 1.0)
        views.append(weakref.ref(view))
        return view

    cameras = pinhole_cameras(torch.eye(4)[None, :3].repeat(3, 1, 1), 10.0, 4, 6)
    z, alpha = render_depths(render, cameras)
    assert torch.equal(z, alpha) and z[:, 0, 0].tolist() == [1, 2, 3] and z.shape == (3, 4, 6)


def test_smooth_depth_by_hand():
    depths = torch.full((1, 4, 7), 2.0)
    assert is_smooth(depths).all()
    depths[0, 0, 0] = 0.0  # unknown
    depths[0, :, 4:] = 2.2  # a step of ten percent
    depths[0, :, 6] = 2.3  # and one of 4.5 percent
    expected = torch.tensor([[0, 0, 1, 0, 0, 1, 1]] * 2 + [[1, 1, 1, 0, 0, 1, 1]] * 2) > 0
    assert torch.equal(is_smooth(depths)[0], expected)


def test_new_views_by_hand():
    """First 30 at once, then one a step; when the pool is full, one in four steps."""

    class Poses:
        drawn = 0

        def sample(self, count):
            self.drawn += count
            return torch.eye(4)[None, :3] + self.drawn

    class Renders:
        nbytes = 7

        def render(self, c2w):
            return torch.full((8, 8, 6), float(c2w[0, 1]) % 256 / 255)

    def views(capacity):
        return ReprojectedViews(ViewPool(capacity, (8, 8), (8, 8), 8.0, 4, channels=6), Poses(), Renders())

    stream, counts = views(INITIAL_VIEWS + 2), []
    for step in range(9):
        stream.advance(step)
        counts.append(stream.poses.drawn)
    assert counts == [30, 31, 32, 32, 33, 33, 33, 33, 34]
    assert stream.pool.images[:3, 0, 0, 0].tolist() == [33, 34, 3]  # each beside its pose
    assert stream.pool.c2w[:3, 0, 1].tolist() == [33, 34, 3]
    assert stream.nbytes == stream.pool.nbytes + 7 and stream.sample(5, 1, 2).pixels.shape == (5, 4, 8, 6)
    small = views(5)
    small.advance(1)
    assert small.poses.drawn == 5


# -- in training ----------------------------------------------------------------------------------------------------


@pytest.fixture
def train(student_config, stub_teacher, ball_capture, tmp_path):
    """Trains a student with a surface code for two steps with nerfstudio's trainer."""

    def run(load_dir=None):
        config = copy.deepcopy(student_config)
        config.max_num_iterations, config.load_dir = 2, load_dir
        config.data = config.pipeline.datamanager.data = config.pipeline.datamanager.dataparser.data = ball_capture
        config.pipeline.model.surface_octaves, config.pipeline.model.structure_weight = 5, 0.1
        config.pipeline.model.export_when_done = False
        datamanager = config.pipeline.datamanager
        datamanager.teacher = stub_teacher_config(stub_teacher, tmp_path / "teacher")
        datamanager.patches_per_batch, datamanager.photo_share = 8, 0.5
        datamanager.reprojected_share, datamanager.reprojected_views = 0.5, 6
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup()
        trainer.train()
        return trainer

    return run


def test_a_student_trains_on_reprojected_views_and_resumes(train):
    torch.manual_seed(0)
    trainer = train()
    datamanager = trainer.pipeline.datamanager
    assert len(datamanager.reprojected.pool) == 6 and trainer.step == 1
    _, losses, metrics = trainer.pipeline.get_train_loss_dict(2)
    assert set(losses) == {"rgb_loss", "alpha_loss", "depth_loss", "structure_loss", "surface_loss"}
    assert all(value.isfinite() for value in (*losses.values(), metrics["psnr"]))
    weights = copy.deepcopy(trainer.pipeline.model.state_dict())
    resumed = train(load_dir=trainer.checkpoint_dir)
    assert resumed.step == 3 and len(resumed.pipeline.datamanager.reprojected.pool) == 6
    moved = resumed.pipeline.model.state_dict()["embedder.head.0.weight"]
    assert 0 < (moved - weights["embedder.head.0.weight"]).abs().max() < 0.1


def test_the_loss_of_the_surface_teaches_its_head_alone():
    model = make_student(surface_octaves=4).train()
    camera = pinhole_cameras(NEW_POSE[None], model.focal, *model.size)
    outputs = model(student_view(camera, model.focal, model.upscale).rays)
    height, width = model.size
    assert outputs["surface_depth"].shape == (1, height // 8, width // 8, 1)
    full = torch.ones(1, height, width, 1)
    batch = {"image": full.expand(-1, -1, -1, 3), "alpha": full, "depth": 0.9 * full}
    losses = model.get_loss_dict(outputs, batch)
    assert losses.keys() == {"rgb_loss", "surface_loss"}
    losses["surface_loss"].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.embedder.parameters())
    assert all(p.grad is None for p in model.network.parameters())


def test_a_share_without_views_is_refused(build_pipeline):
    with pytest.raises(UserError, match="--pipeline.datamanager.reprojected-views needs at least 1, not 0"):
        build_pipeline(outputs="rgbad", reprojected_share=0.5, reprojected_views=0)
