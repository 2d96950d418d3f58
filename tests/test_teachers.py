"""Teachers of every kind: colours on white, alpha and z from all of them, or one sentence.

splatfacto and instant-ngp are nerfstudio's own models with the kernels of cuda_stand_ins.py: no GPU ran them.
"""

import copy
import math
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from builders import BOX, TINY_NERFACTO, one_sentence, save_run
from commands import run
from cuda_stand_ins import as_if_cuda  # noqa: F401  (a fixture)
from mobiler2l_ns.method_configs import mobiler2l_teacher, mobiler2l_teacher_ngp, mobiler2l_teacher_splat
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.models.depth_nerfacto import DepthNerfactoModelConfig
from nerfstudio.models.generfacto import GenerfactoModelConfig
from nerfstudio.models.instant_ngp import InstantNGPModelConfig
from nerfstudio.models.nerfacto import NerfactoModelConfig
from nerfstudio.models.semantic_nerfw import SemanticNerfWModelConfig
from nerfstudio.models.splatfacto import SplatfactoModelConfig
from nerfstudio.models.vanilla_nerf import NeRFModel, VanillaModelConfig

from mobiler2l_ns.cameras import crop_camera, pinhole_cameras, ray_lengths
from mobiler2l_ns.compat import without_lpips_download
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export import comparison
from mobiler2l_ns.teacher import kinds as teacher_kinds
from mobiler2l_ns.teacher.frozen import FrozenTeacher, TeacherConfig
from mobiler2l_ns.teacher.ngp import NGPTeacherModelConfig
from mobiler2l_ns.teacher.splat import SplatTeacherModelConfig

NGP_SIZE = {"log2_hashmap_size": 6, "max_res": 32, "grid_resolution": 8}


@pytest.fixture
def camera():
    """From (0, 0, 4) down to the origin, 64 x 48 pixels; the principal point is (32, 24)."""
    pose = torch.eye(4)[None, :3].clone()
    pose[0, 2, 3] = 4.0
    return pinhole_cameras(pose, 40.0, 48, 64)


@pytest.fixture
def small_camera(camera):
    """The same view at a quarter of the size; the principal point is (8, 6)."""
    return pinhole_cameras(camera.camera_to_worlds, 10.0, 12, 16)


def build(config, images=3, box=BOX, **metadata):
    """A model as a pipeline builds it, in eval mode."""
    torch.manual_seed(0)
    with without_lpips_download():
        model = config.setup(
            scene_box=box, num_train_data=images, metadata=metadata, device="cpu", grad_scaler=None, seed_points=None
        )
    return model.eval()


def frozen(folder, model, method="other-method") -> FrozenTeacher:
    """A model that was saved to config.yml and checkpoint and loaded as a teacher."""
    config = copy.deepcopy(mobiler2l_teacher.config)
    config.method_name, config.pipeline.model = method, model.config
    return FrozenTeacher(save_run(folder / "run", config, model), "cpu")


# -- Gaussian splats ------------------------------------------------------------------------------------------------


SPLATS = {
    # World position, opacity and colour; the camera's z is 4 minus theirs. Both first ones lie on the ray through pixel
    # (24, 32), whose centre is half a pixel right of and below the principal point.
    "near": ((0.5 * 3 / 40, -0.5 * 3 / 40, 1.0), 0.5, (0.8, 0.2, 0.4)),
    "far": ((0.5 * 5 / 40, -0.5 * 5 / 40, -1.0), 0.6, (0.1, 0.9, 0.3)),
    "aside": ((1.5, 1.0, 0.0), 0.9, (0.5, 0.5, 0.5)),
    "thin": ((-1.5, 1.0, 0.0), 0.3, (0.0, 0.0, 1.0)),
}


def splats(config=SplatfactoModelConfig, **options):
    """A splatfacto with the Gaussians of SPLATS, of standard deviation 0.05."""
    model = build(config(**{"rasterize_mode": "classic", "num_random": len(SPLATS), "sh_degree": 1, **options}))
    position, opacity, colour = (torch.tensor(column) for column in zip(*SPLATS.values()))
    parameters = model.gauss_params
    with torch.no_grad():
        parameters["means"].copy_(position)
        parameters["scales"].fill_(math.log(0.05))
        parameters["opacities"].copy_(torch.logit(opacity)[:, None])
        parameters["features_dc"].copy_((colour - 0.5) / 0.28209479)
    model.config.num_random = 10  # the checkpoint's number counts, not the config's
    return model


@pytest.mark.parametrize("config", [SplatfactoModelConfig, SplatTeacherModelConfig])
@pytest.mark.parametrize("background", ["random", "white", "black"])
def test_splats_by_hand(config, background, camera, tmp_path, as_if_cuda):  # noqa: F811
    teacher = frozen(tmp_path, splats(config, background_color=background))
    picture = teacher.render_all(camera)
    # Half of the near one, 0.5 * 0.6 of the far one behind it, and 0.2 of white.
    expected = [0.5 * n + 0.3 * f + 0.2 for n, f in zip(SPLATS["near"][2], SPLATS["far"][2])]
    expected += [0.8, (0.5 * 3 + 0.3 * 5) / 0.8]  # alpha; mean of z = 3 and 5, not of distances along the ray
    torch.testing.assert_close(picture[24, 32], torch.tensor(expected), atol=2e-3, rtol=0)
    assert torch.equal(picture[0, 32], torch.tensor([1.0, 1, 1, 0, 0]))
    # (1.5, 1, 0) is seen at 32 + 40 * 1.5 / 4 and 24 - 40 * 1 / 4; z is no distance along the ray there, 4.39.
    assert float(picture[14, 47, 4]) == pytest.approx(4.0, abs=1e-4)
    # Where less than a half is covered there is alpha, but no z.
    assert float(picture[14, 17, 3]) == pytest.approx(0.3 * math.exp(-0.5 * 0.5 / 0.55), abs=0.02)
    assert picture[14, 17, 4] == 0
    assert torch.equal(teacher.render(camera), picture[..., :3])
    assert teacher.surface_depths(camera).min() > 2.99


def test_a_tile_of_splats_is_a_crop_of_the_view(camera, tmp_path, as_if_cuda):  # noqa: F811
    teacher = frozen(tmp_path, splats())
    tile = teacher.render_all(crop_camera(camera, 10, 20, 30, 40))
    torch.testing.assert_close(tile, teacher.render_all(camera)[10:40, 20:60], atol=1e-5, rtol=0)
    assert float(tile[14, 12, 3]) == pytest.approx(0.8, abs=2e-3)


def test_splats_keep_their_size_in_small_views(camera, tmp_path, as_if_cuda):  # noqa: F811
    """At a tenth of the size a splat is 0.067 pixels wide, and the blur 0.3 pixels: fainter, or too large."""
    small = pinhole_cameras(camera.camera_to_worlds, 4.0, 5, 7)
    options = {} if SplatTeacherModelConfig().rasterize_mode == "classic" else {"rasterize_mode": "antialiased"}
    covered = {
        name: frozen(tmp_path / name, splats(SplatTeacherModelConfig, **found)).render_all(small)[..., 3].sum()
        for name, found in (("classic", {}), ("ours", options))
    }
    assert covered["ours"] < 0.1 * covered["classic"]


def test_a_splat_teachers_scene():
    box = SceneBox(torch.tensor([[-1.5, -1, -1], [1.5, 1, 1]]))
    model = build(SplatTeacherModelConfig(num_random=200), box=box, transparent_background=True)
    assert model.config.scene == "bounded" and model.config.background_color == "white"
    assert model.config.random_scale == 3.0 and 1.4 < model.means.abs().max() <= 1.5
    model = build(SplatTeacherModelConfig(num_random=200))
    assert (model.config.scene, model.config.background_color) == ("unbounded", "random")
    assert model.background_color.tolist() == [1, 1, 1]


# -- instant-ngp ----------------------------------------------------------------------------------------------------


DENSITY, COLOUR = math.log(4), (0.2, 0.4, 0.6)


class Slab(torch.nn.Module):
    """Stands in for a field: a slab of one density and colour between z = -0.5 and 0.5."""

    spatial_distortion = None

    def forward(self, ray_samples):
        inside = ray_samples.frustums.get_positions()[..., 2:].abs() < 0.5
        colour = torch.tensor(COLOUR).expand(len(inside), 3)
        return {FieldHeadNames.DENSITY: inside * DENSITY, FieldHeadNames.RGB: colour}


@pytest.mark.parametrize(
    "config, options",
    [
        (InstantNGPModelConfig, {"background_color": "random"}),
        (InstantNGPModelConfig, {"background_color": "black", "disable_scene_contraction": True}),
        (InstantNGPModelConfig, {"background_color": "white"}),
        (NGPTeacherModelConfig, {"scene": "unbounded"}),
        (NGPTeacherModelConfig, {"scene": "bounded"}),
    ],
)
def test_a_slab_in_instant_ngp_by_hand(config, options, small_camera, tmp_path, as_if_cuda):  # noqa: F811
    teacher = frozen(tmp_path, build(config(**NGP_SIZE, **options)))
    teacher.model.field = Slab()
    picture = teacher.render_all(small_camera)
    # Straight ahead the ray is 1 long in the slab and lets 1/4 through. Elsewhere it is l times as long.
    length = ray_lengths(small_camera)
    through = 0.25**length
    torch.testing.assert_close(picture[..., 3:4], 1 - through, atol=0.01, rtol=0)
    expected = torch.tensor(COLOUR) * (1 - through) + through
    torch.testing.assert_close(picture[..., :3], expected, atol=0.01, rtol=0)
    # Mean of an exponential distribution that is cut off after l, from 3.5 l on; nerfacc gives it along the ray.
    mean = 3.5 * length + 1 / DENSITY - length * through / (1 - through)
    torch.testing.assert_close(picture[..., 4:], mean / length, atol=0.01, rtol=0)
    assert float(picture[6, 8, 4]) == pytest.approx(3.888, abs=0.01)
    assert float(picture[0, 0, 4]) < 3.9 < 4.5 < float(mean[0, 0])
    tile = teacher.render_all(crop_camera(small_camera, 3, 5, 4, 6))
    torch.testing.assert_close(tile, picture[3:7, 5:11], atol=1e-5, rtol=0)


def test_instant_ngp_is_reloaded_and_renders_its_mean_appearance(small_camera, tmp_path, as_if_cuda):  # noqa: F811
    box = SceneBox(torch.tensor([[-1.5, -1, -0.5], [1.5, 1, 0.5]]))
    model = build(InstantNGPModelConfig(**NGP_SIZE), images=5, box=box)
    teacher = frozen(tmp_path, model)
    assert torch.equal(teacher.model.field.aabb, box.aabb) and model.field.embedding_appearance is not None
    wanted, found = model.state_dict(), teacher.model.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)
    zeros, mean = (
        model.get_outputs_for_camera(small_camera)["rgb"],
        teacher.model.get_outputs_for_camera(small_camera)["rgb"],
    )
    assert (zeros - mean).abs().max() > 1e-3
    model.field.use_average_appearance_embedding = True
    torch.testing.assert_close(model.get_outputs_for_camera(small_camera)["rgb"], mean)


def test_an_ngp_teachers_scene():
    model = build(NGPTeacherModelConfig(**NGP_SIZE), transparent_background=True)
    config = model.config
    assert (config.scene, config.background_color, config.grid_levels) == ("bounded", "white", 1)
    assert model.field.spatial_distortion is None and model.field.embedding_appearance is None
    model = build(NGPTeacherModelConfig(**NGP_SIZE))
    assert model.config.scene == "unbounded" and model.field.spatial_distortion is not None
    assert model.field.embedding_appearance is not None and model.field.use_average_appearance_embedding
    # Random backgrounds while it trains; nothing random or black when it is looked at.
    assert model.renderer_rgb.background_color == "white"
    assert model.train().renderer_rgb.background_color == "random"


# -- other models ---------------------------------------------------------------------------------------------------


def test_backgrounds():
    """Background by model: white if it is part of the scene, black for black and random, else the model's colour."""

    def shown(colour, unbounded=False, **outputs):
        distortion = object() if unbounded else None
        field, renderer = SimpleNamespace(spatial_distortion=distortion), SimpleNamespace(background_color=colour)
        model = SimpleNamespace(renderer_rgb=renderer, field=field)
        return torch.as_tensor(teacher_kinds.background(model, {"rgb": torch.zeros(2, 3), **outputs})).expand(3)

    assert shown("random").tolist() == shown("random", unbounded=True).tolist() == [0, 0, 0]
    assert shown("black").tolist() == [0, 0, 0] and shown("black", unbounded=True).tolist() == [1, 1, 1]
    assert shown("white").tolist() == shown("last_sample").tolist() == [1, 1, 1]
    assert shown(torch.tensor([0.5, 0.25, 0])).tolist() == [0.5, 0.25, 0]
    assert shown("white", background=torch.tensor([0.1, 0.2, 0.3])).tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert teacher_kinds.background(SimpleNamespace(), {}) == 1
    sky = torch.linspace(0, 1, 6).view(2, 1, 3)  # learned: part of the scene
    assert teacher_kinds.background(SimpleNamespace(), {"background": sky}) == 1


class Sky(torch.nn.Module):
    """A model with the output names of NeRF: (0.2, 0.6, 0.9) with accumulation 0.5."""

    device, config = torch.device("cpu"), None

    def get_outputs_for_camera(self, camera):
        shape = int(camera.height), int(camera.width)
        return {
            "rgb_coarse": torch.zeros(*shape, 3),
            "rgb_fine": torch.tensor([0.2, 0.6, 0.9]).expand(*shape, 3),
            "accumulation_fine": torch.full((*shape, 1), 0.5),
            "depth_fine": torch.full((*shape, 1), 7.0),
        }


def test_alpha_leaves_room_for_the_colour(camera, monkeypatch):
    """On white, (0.2, 0.6, 0.9) needs an alpha of 0.8 at least: then it is (0, 0.5, 0.875) and 0.2 of white."""
    monkeypatch.setattr("mobiler2l_ns.teacher.frozen.load_teacher", lambda path, device: (Sky(), 0))
    picture = FrozenTeacher(None, "cpu").render_all(camera)
    torch.testing.assert_close(picture[..., :4], torch.tensor([0.2, 0.6, 0.9, 0.8]).expand(48, 64, 4))
    assert (picture[..., 4] == 0).all()  # it is not more than half opaque


def test_a_surface_models_depth_is_z():
    surface = type("SurfaceModel", (torch.nn.Module,), {})
    assert teacher_kinds.depth_is_z(type("NeuSModel", (surface,), {})())
    assert not teacher_kinds.depth_is_z(torch.nn.Module())


def test_a_model_without_rgb_is_refused(camera, monkeypatch):
    monkeypatch.setattr(Sky, "get_outputs_for_camera", lambda self, camera: {"normals": torch.zeros(48, 64, 3)})
    monkeypatch.setattr("mobiler2l_ns.teacher.frozen.load_teacher", lambda path, device: (Sky(), 0))
    with pytest.raises(UserError, match="run/config.yml renders no rgb, only normals") as caught:
        FrozenTeacher("run/config.yml", "cpu").render(camera)
    one_sentence(caught)


@pytest.mark.parametrize("config", [NerfactoModelConfig, DepthNerfactoModelConfig])
def test_a_teacher_renders_its_mean_appearance(config, camera, tmp_path):
    """Also a nerfacto whose config asks for an appearance of zeros."""
    model = build(config(**TINY_NERFACTO, use_average_appearance_embedding=False))
    teacher = frozen(tmp_path, model)
    mean = teacher.model.get_outputs_for_camera(camera)["rgb"]
    assert (model.get_outputs_for_camera(camera)["rgb"] - mean).abs().max() > 1e-3
    model.field.use_average_appearance_embedding = True
    torch.testing.assert_close(model.get_outputs_for_camera(camera)["rgb"], mean)
    assert (teacher.fast is not None) == (config is NerfactoModelConfig)


def test_moved_cameras_are_reported(tmp_path, capsys):
    model = build(NerfactoModelConfig(**TINY_NERFACTO))
    frozen(tmp_path / "still", model)
    assert "moved" not in capsys.readouterr().out
    with torch.no_grad():
        model.camera_optimizer.pose_adjustment[0] = torch.tensor([0.3, 0, 0, 0, 0.06, 0])
    assert len(frozen(tmp_path / "moved", model).model.camera_optimizer.pose_adjustment) == 3
    # One of three cameras: 0.1 units and 0.02 rad, 1.1 degrees, in the mean.
    printed = " ".join(capsys.readouterr().out.split())
    assert "moved its cameras by 0.1 units and 1.1 degrees on average" in printed and "photo-share" in printed


def test_the_points_that_splats_start_from_are_not_loaded(tmp_path, as_if_cuda):  # noqa: F811
    """nerfstudio's parser may ask at the terminal whether to make them."""
    config = copy.deepcopy(mobiler2l_teacher_splat.config)
    config.pipeline.datamanager.dataparser.scale_factor = 2.0
    (tmp_path / "config.yml").write_text(yaml.dump(config))
    teacher = TeacherConfig(load_config=tmp_path / "config.yml")
    dataparser = teacher.find(tmp_path, NerfstudioDataParserConfig(), "cpu").dataparser
    assert dataparser.scale_factor == 2.0 and not dataparser.load_3D_points


# -- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, method, reason",
    [
        (InstantNGPModelConfig(), "instant-ngp", "only an NVIDIA GPU with CUDA can render"),
        (SplatTeacherModelConfig(), "mobiler2l-teacher-splat", "only an NVIDIA GPU with CUDA can render"),
        (SemanticNerfWModelConfig(), "semantic-nerfw", "only its data set knows its classes"),
        (GenerfactoModelConfig(), "generfacto", "made from text"),
        (VanillaModelConfig(_target=NeRFModel, enable_temporal_distortion=True), "dnerf", "has no motion"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_runs_that_cannot_teach_here(model, method, reason, student_config, tmp_path):
    """The student's datamanager refuses them before it reads a photo: there are none."""
    config = copy.deepcopy(mobiler2l_teacher.config)
    config.method_name, config.pipeline.model, config.data = method, model, tmp_path
    path = tmp_path / "config.yml"
    path.write_text(yaml.dump(config))
    datamanager = student_config.pipeline.datamanager
    datamanager.teacher.load_config, datamanager.data = path, tmp_path / "nothing"
    with pytest.raises(UserError, match=reason) as caught:
        datamanager.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
    assert f"{path} was trained with {method}" in one_sentence(caught)
    with pytest.raises(UserError, match=reason):
        FrozenTeacher(path, "cpu")


def test_a_model_that_asks_for_more_is_refused(tmp_path):
    model = build(NerfactoModelConfig(**TINY_NERFACTO))
    model.config.proposal_net_args_list = []
    with pytest.raises(UserError, match="with other-method, which cannot be rebuilt from its checkpoint") as caught:
        frozen(tmp_path, model)
    one_sentence(caught)


def test_a_comparison_without_cuda_leaves_out_a_cuda_teacher(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "config.yml"
    path.write_text(yaml.dump(mobiler2l_teacher_splat.config))
    assert comparison._load_teacher(TeacherConfig(load_config=path)) is None
    assert "its column is left out" in capsys.readouterr().out


@pytest.mark.parametrize("available, device", [(False, "cpu"), (True, "cuda")])
def test_a_comparison_uses_the_gpu_if_there_is_one(available, device, tmp_path, monkeypatch):
    """The weights of tiny-cuda-nn, which nerfacto may have, render on GPUs alone."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(TeacherConfig, "setup", lambda self, device: device)
    path = tmp_path / "config.yml"
    path.write_text(yaml.dump(mobiler2l_teacher.config))
    assert comparison._load_teacher(TeacherConfig(load_config=path)) == device


def test_a_comparison_without_room_for_the_teacher_leaves_it_out(tmp_path, monkeypatch, capsys):
    def fill(self, device):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")

    monkeypatch.setattr(TeacherConfig, "setup", fill)
    path = tmp_path / "config.yml"
    path.write_text(yaml.dump(mobiler2l_teacher.config))
    assert comparison._load_teacher(TeacherConfig(load_config=path)) is None
    assert "The teacher's column is left out: CUDA out of memory." in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "spec, package", [(mobiler2l_teacher_ngp, "nerfacc"), (mobiler2l_teacher_splat, "gsplat")], ids=["ngp", "splat"]
)
@pytest.mark.parametrize("backend", [SimpleNamespace(_C=None), None], ids=["no compiler", "other torch"])
def test_cuda_teachers_without_their_kernels(spec, package, backend, monkeypatch, tmp_path):
    """Both when it is trained and when it teaches."""
    monkeypatch.setattr(teacher_kinds, "has_cuda", lambda device: True)
    monkeypatch.setitem(sys.modules, f"{package}.cuda._backend", backend)  # None: an ImportError
    pipeline = copy.deepcopy(spec.config.pipeline)
    with pytest.raises(UserError, match=f"needs {package}'s CUDA kernels: install its wheel") as caught:
        pipeline.setup(device="cuda:0", test_mode="val", world_size=1, local_rank=0)
    one_sentence(caught)
    with pytest.raises(UserError, match=f"which needs {package}'s CUDA kernels") as caught:
        teacher_kinds.check_teacher(tmp_path / "config.yml", spec.config, "cuda:0")
    one_sentence(caught)
    monkeypatch.setitem(sys.modules, f"{package}.cuda._backend", SimpleNamespace(_C=object()))
    teacher_kinds.check_teacher(tmp_path / "config.yml", spec.config, "cuda:0")


@pytest.mark.parametrize("spec", [mobiler2l_teacher_ngp, mobiler2l_teacher_splat], ids=["ngp", "splat"])
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_cuda_teachers_without_cuda(spec, device, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    pipeline = copy.deepcopy(spec.config.pipeline)
    pipeline.datamanager.data = tmp_path / "nothing"
    with pytest.raises(UserError) as caught:
        pipeline.setup(device=device, test_mode="val", world_size=1, local_rank=0)
    assert one_sentence(caught) == (
        f"mobiler2l: {spec.config.method_name} needs an NVIDIA GPU with CUDA: "
        "use mobiler2l-teacher-small --machine.device-type cpu here."
    )


@pytest.mark.slow
def test_the_command_ends_at_once_without_cuda(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    output = run("ns-train", "mobiler2l-teacher-splat", "--data", "nowhere", cwd=tmp_path, code=1)
    (sentence,) = [line for line in output.splitlines() if line.startswith("mobiler2l: ")]
    assert sentence.startswith("mobiler2l: mobiler2l-teacher-splat needs an NVIDIA GPU") and "Traceback" not in output
