"""Work-arounds for nerfstudio 1.1.5 and torch."""

import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from builders import BOX, TINY_NERFACTO
from nerfstudio.models.nerfacto import NerfactoModelConfig
from system_packages import needs_open3d
from viser import _client_autobuild

from mobiler2l_ns.compat import (
    allow_numpy_scalars,
    check_command,
    refuse_former_runs,
    survive_ended_processes,
    without_lpips_download,
)
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.run_config import read_config
from mobiler2l_ns.teacher.nerfacto import TeacherModelConfig
from mobiler2l_ns.training import metrics
from mobiler2l_ns.training.metrics import image_metrics, lpips


@pytest.mark.parametrize("numpy_version", ["installed", "before 1.25", "1.26"])
def test_numpy_floats_in_a_checkpoint_load_by_default(numpy_version, tmp_path, monkeypatch):
    if numpy_version == "before 1.25":
        monkeypatch.delattr(np, "dtypes", raising=False)
    elif numpy_version == "1.26":  # it has np._core, with other modules than numpy 2
        monkeypatch.setattr(np, "_core", SimpleNamespace(), raising=False)
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


def test_the_viewer_starts_while_another_process_ends(monkeypatch):
    class NoSuchProcess(Exception):
        """psutil's."""

    answers = [NoSuchProcess(), NoSuchProcess(), True, ValueError("a bug")]

    def build_runs() -> bool:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(_client_autobuild, "_check_viser_yarn_running", build_runs)
    with pytest.raises(NoSuchProcess):
        _client_autobuild._check_viser_yarn_running()
    survive_ended_processes()
    survive_ended_processes()  # wraps it once
    assert _client_autobuild._check_viser_yarn_running() and len(answers) == 1
    with pytest.raises(ValueError, match="a bug"):
        _client_autobuild._check_viser_yarn_running()


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


def refuse(scripts, name, options, outputs, sentence, monkeypatch) -> None:
    """A command's own ``main`` ends with one sentence: it calls the pipeline's check through ``eval_setup``."""
    monkeypatch.setattr(scripts, "eval_setup", lambda *arguments, **keywords: check_command(outputs))
    with pytest.raises(UserError, match=sentence):
        getattr(scripts, name)(**options).main()


@needs_open3d
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
    ],
)
def test_ns_export_is_refused_before_the_work(name, options, outputs, sentence, tmp_path, monkeypatch):
    from nerfstudio.scripts import exporter

    options = {"load_config": tmp_path / "config.yml", "output_dir": tmp_path, **options}
    refuse(exporter, name, options, outputs, sentence, monkeypatch)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("RenderInterpolated", {"render_nearest_camera": True}, "leave it out"),
        ("RenderInterpolated", {"rendered_output_names": ["rgba"]}, "--output-format images"),
        ("DatasetRender", {"rendered_output_names": ["rgba"]}, "--image-format png"),
    ],
)
def test_ns_render_is_refused_before_the_work(name, options, sentence, tmp_path, monkeypatch):
    from nerfstudio.scripts import render

    refuse(render, name, {"load_config": tmp_path / "config.yml", **options}, "rgb", sentence, monkeypatch)


def test_no_command_is_not_checked():
    check_command("rgb")


# -- earlier versions -------------------------------------------------------------------------------------------------

# The beginning and one optimizer of a config.yml of version 0.1.
FORMER_CONFIG = """!!python/object:mobiler2l_ns.trainer.DistillationTrainerConfig
_target: !!python/name:mobiler2l_ns.trainer.DistillationTrainer ''
optimizers:
  matrices:
    optimizer: !!python/object:mobiler2l_ns.optimizers.MuonConfig
      lr: 0.025
"""


def test_a_run_of_version_0_1_is_refused_in_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "config.yml").write_text(FORMER_CONFIG)
    others = [finder for finder in sys.meta_path if type(finder).__name__ != "FormerModuleFinder"]
    monkeypatch.setattr(sys, "meta_path", others)  # as where nerfstudio has not discovered the methods
    with pytest.raises(UserError, match="mobiler2l-ns 0.1.*train it again.$"):
        read_config(tmp_path / "config.yml")
    refuse_former_runs()
    with pytest.raises(UserError, match="mobiler2l-ns 0.1.*train it again.$") as caught:
        yaml.load(FORMER_CONFIG, Loader=yaml.Loader)  # as nerfstudio's own commands do
    assert "\n" not in str(caught.value)


def test_modules_that_never_were_are_missing_as_usual():
    refuse_former_runs()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mobiler2l_ns.nothing")
