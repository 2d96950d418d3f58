"""The teacher's benchmark: an honest baseline, figures that add up, and one sentence for a mistake."""

import copy
import json
import sys

import pytest
import torch
from bench import teacher as bench_teacher
from builders import TINY_NERFACTO, save_run
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.field_components.encodings import HashEncoding

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.teacher import fast_nerfacto
from mobiler2l_ns.teacher.nerfacto import TeacherModelConfig


@pytest.fixture
def teacher(capture, tmp_path):
    """config.yml of a teacher with random weights."""
    from mobiler2l_ns.method_configs import mobiler2l_teacher_small

    config = copy.deepcopy(mobiler2l_teacher_small.config)
    config.pipeline.datamanager.dataparser = BlenderDataParserConfig(data=capture)
    config.pipeline.model = TeacherModelConfig(scene="object", **TINY_NERFACTO)
    box = SceneBox(torch.tensor([[-1.5, -1.5, -1.5], [1.5, 1.5, 1.5]]))
    model = config.pipeline.model.setup(scene_box=box, num_train_data=8, metadata={}, device="cpu", seed_points=None)
    return save_run(tmp_path / "teacher", config, model)


def bench(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["teacher.py", *map(str, arguments)])
    monkeypatch.setattr(fast_nerfacto, "GRID_RESOLUTION", 16)
    bench_teacher.main()


def test_the_figures_add_up(teacher, tmp_path, monkeypatch, capsys):
    path = tmp_path / "new" / "figures.json"
    bench(monkeypatch, "--teacher", teacher.parent, "--num-views", 2, "--max-side", 16, "--json", path)
    figures = json.loads(path.read_text())
    assert figures["resolution"] == [16, 16] and figures["views"] == 2
    speed, quality = figures["rays_per_second"], figures["psnr"]
    assert min(speed.values()) > 0 and set(speed) == set(quality) == {"stock", "torch", "ours"}
    assert figures["ratio"] == pytest.approx(speed["ours"] / speed["stock"], rel=0.05)
    assert figures["ratio_to_torch"] == pytest.approx(speed["ours"] / speed["torch"], rel=0.05)
    assert figures["db_lost"] == pytest.approx(quality["stock"] - quality["ours"], abs=0.002)
    assert figures["db_lost_to_torch"] == pytest.approx(quality["torch"] - quality["ours"], abs=0.002)
    cpu_speed = figures["rays_per_cpu_second"]
    assert set(cpu_speed) == set(speed) and min(cpu_speed.values()) > 0
    output = capsys.readouterr().out
    assert all(f"{value:,}" in output for value in [*speed.values(), *cpu_speed.values()])


def test_the_rows_are_three_renderers(teacher):
    """The second one is the frozen teacher as it is without numba."""
    renderers = bench_teacher.load_renderers(teacher, torch.device("cpu"))
    in_torch, ours = renderers["torch"].__self__, renderers["ours"].__self__
    assert in_torch.fast.fused is None and ours.fast.fused is not None


def test_without_numba_there_are_two_rows(teacher, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba.core", None)
    path = tmp_path / "figures.json"
    bench(monkeypatch, "--teacher", teacher, "--num-views", 1, "--max-side", 8, "--json", path)
    figures = json.loads(path.read_text())
    assert set(figures["rays_per_second"]) == {"stock", "ours"} and "ratio_to_torch" not in figures


def test_the_baseline_is_nerfstudios_own(teacher):
    grids = [m for m in bench_teacher.load_stock(teacher, "cpu").modules() if isinstance(m, HashEncoding)]
    assert len(grids) == 2
    assert all(grid.pytorch_fwd.__func__ is HashEncoding.pytorch_fwd for grid in grids)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--num-views", 0], "must be at least 1"),
        (["--data", "/nowhere"], "there is no /nowhere"),
        (["--num-views", 1, "--max-side", 8, "--json", "/dev/null/x.json"], "cannot be written"),
    ],
)
def test_a_mistake_ends_with_one_sentence(teacher, monkeypatch, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        bench(monkeypatch, "--teacher", teacher, *arguments)


def test_a_teacher_that_nerfstudio_renders_anyway(teacher, monkeypatch):
    monkeypatch.setattr("mobiler2l_ns.teacher.frozen.renders_as_nerfacto", lambda model: False)
    with pytest.raises(UserError, match="rendered by nerfstudio anyway"):
        bench(monkeypatch, "--teacher", teacher, "--num-views", 1, "--max-side", 8)
