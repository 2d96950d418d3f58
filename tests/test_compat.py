"""Work-arounds for nerfstudio 1.1.5 and torch."""

import numpy as np
import pytest
import torch
from builders import BOX, TINY_NERFACTO
from nerfstudio.models.nerfacto import NerfactoModelConfig

from mobiler2l_ns.compat import allow_numpy_scalars, check_command, without_lpips_download
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.teacher.nerfacto import TeacherModelConfig
from mobiler2l_ns.training import metrics
from mobiler2l_ns.training.metrics import image_metrics, lpips


def test_numpy_floats_in_a_checkpoint_load_by_default(tmp_path):
    path = tmp_path / "step-000000001.ckpt"
    torch.save({"schedulers": {"_last_lr": [np.float64(0.01)]}}, path)
    allowed = torch.serialization.get_safe_globals()
    try:
        torch.serialization.clear_safe_globals()
        with pytest.raises(Exception, match="[Ww]eights"):
            torch.load(path)
        allow_numpy_scalars()
        assert torch.load(path)["schedulers"]["_last_lr"] == [0.01]
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No weights on the machine, and an error for whoever tries to fetch some."""

    def refuse(*args, **kwargs):
        raise AssertionError("tried to download")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(metrics, "_lpips_metric", None)
    monkeypatch.setattr(metrics, "_lpips_reported", False)


def test_lpips_is_skipped_and_said_once(offline, capsys):
    picture = torch.rand(32, 32, 3)
    assert lpips(picture, picture) is None and lpips(picture, picture) is None
    assert capsys.readouterr().out.count("LPIPS is skipped") == 1
    assert set(image_metrics(picture, picture)) == {"psnr", "ssim"}


def test_nerfacto_builds_without_its_download(offline):
    kwargs = {"scene_box": BOX, "num_train_data": 2, "metadata": {}, "device": "cpu", "seed_points": None}
    with pytest.raises(AssertionError, match="tried to download"):
        NerfactoModelConfig(**TINY_NERFACTO).setup(**kwargs)
    with without_lpips_download():
        model = NerfactoModelConfig(**TINY_NERFACTO).setup(**kwargs)
    teacher = TeacherModelConfig(**TINY_NERFACTO).setup(**kwargs)
    for built in (model, teacher):
        assert not any(key.startswith("lpips") for key in built.state_dict())
    with pytest.raises(AssertionError, match="tried to download"):  # the patch is gone again
        NerfactoModelConfig(**TINY_NERFACTO).setup(**kwargs)


# -- commands that cannot work ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "outputs", "sentence"),
    [
        ("ExportTSDFMesh", {}, "rgbad", "add --texture-method tsdf to"),
        ("ExportPointCloud", {}, "rgbad", "add --normal-method open3d to"),
        ("ExportPoissonMesh", {}, "rgbad", "add --normal-method open3d --texture-method point_cloud to"),
        ("ExportTSDFMesh", {"texture_method": "tsdf"}, "rgb", "--pipeline.model.outputs rgbad"),
        ("ExportPointCloud", {"normal_method": "open3d"}, "rgba", "--pipeline.model.outputs rgbad"),
        ("ExportGaussianSplat", {}, "rgbad", "ns-export tsdf --texture-method tsdf"),
        ("ExportMarchingCubesMesh", {}, "rgbad", "ns-export tsdf --texture-method tsdf"),
        ("RenderInterpolated", {"render_nearest_camera": True}, "rgb", "leave it out"),
        ("RenderInterpolated", {"rendered_output_names": ["rgba"]}, "rgb", "--output-format images"),
        ("DatasetRender", {"rendered_output_names": ["rgba"]}, "rgb", "--image-format png"),
    ],
)
def test_one_sentence_before_the_work(name, options, outputs, sentence, tmp_path, monkeypatch):
    """The command's own ``main`` calls the pipeline's check, as it does through ``eval_setup``."""
    from nerfstudio.scripts import exporter, render

    scripts = exporter if hasattr(exporter, name) else render
    monkeypatch.setattr(scripts, "eval_setup", lambda *arguments, **keywords: check_command(outputs))
    where = {"output_dir": tmp_path} if scripts is exporter else {}
    with pytest.raises(UserError, match=sentence):
        getattr(scripts, name)(load_config=tmp_path / "config.yml", **where, **options).main()


def test_no_command_is_not_checked():
    check_command("rgb")
