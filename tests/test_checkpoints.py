"""Runs on disk: read back whole, or refused in one sentence that names the file; and nothing touches the network."""

import copy
import io
import json
import re

import pytest
import torch
import yaml
from builders import BOX, TINY_NERFACTO, one_sentence, save_run
from nerfstudio.data.scene_box import SceneBox

from mobiler2l_ns import checkpoints
from mobiler2l_ns.checkpoints import (
    checkpoint_paths,
    find_runs,
    load_dataparser_transform,
    load_model,
    model_state,
)
from mobiler2l_ns.data.student_camera import StudentCamera
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.run_config import read_config
from mobiler2l_ns.teacher.nerfacto import TeacherModelConfig

CAMERA = {"height": 32, "width": 48, "focal": 40.0, "near": 2.0, "far": 5.0}


@pytest.fixture
def student(student_config):
    torch.manual_seed(0)
    model = student_config.pipeline.model.setup(
        scene_box=BOX, num_train_data=1, metadata={"student_camera": StudentCamera(**CAMERA)}
    )
    return student_config, model


@pytest.fixture
def run(student, tmp_path):
    """config.yml of a student's run."""
    return save_run(tmp_path / "run", *student)


# -- loading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["_model.", "_model.module.", "module._model."])
def test_a_saved_student_comes_back(student, tmp_path, prefix):
    """Alone, and as DistributedDataParallel names its weights."""
    loaded, step = load_model(save_run(tmp_path / "run", *student, prefix=prefix), "cpu")
    assert step == 7 and not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert (loaded.size, loaded.focal) == ((32, 48), pytest.approx(40.0))
    wanted, found = student[1].state_dict(), loaded.state_dict()
    assert list(found) == list(wanted) and all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_the_newest_checkpoint_counts_wherever_the_run_was_moved(student, run, tmp_path):
    config, model = student
    with torch.no_grad():
        model.network.tail[0].bias.fill_(0.25)
    save_run(run.parent, config, model, step=12)
    moved = tmp_path / "elsewhere"
    run.parent.rename(moved)
    paths = checkpoint_paths(moved / "config.yml", config)
    assert [path.name for path in paths] == ["step-000000007.ckpt", "step-000000012.ckpt"]
    loaded, step = load_model(moved / "config.yml", "cpu")
    assert step == 12 and (loaded.network.tail[0].bias == 0.25).all()


def test_a_teacher_comes_back_with_sizes_read_off_its_weights(tmp_path):
    from mobiler2l_ns.method_configs import mobiler2l_teacher_small

    config = copy.deepcopy(mobiler2l_teacher_small.config)
    config.pipeline.model = TeacherModelConfig(scene="bounded", **TINY_NERFACTO)
    box = SceneBox(torch.tensor([[-1.5, -1, -0.5], [1.5, 1, 0.5]]))
    model = config.pipeline.model.setup(scene_box=box, num_train_data=5, metadata={}, device="cpu", seed_points=None)
    config.pipeline.model.implementation = "tcnn"  # what nerfstudio writes even where it fell back to torch
    loaded, _ = load_model(save_run(tmp_path / "teacher", config, model), "cpu")
    assert torch.equal(loaded.field.aabb, box.aabb)
    assert loaded.field.embedding_appearance.embedding.weight.shape[0] == 5
    wanted, found = model.state_dict(), loaded.state_dict()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("installed, device", [(False, "cuda"), (True, "cpu")])
def test_weights_of_tiny_cuda_nn_need_it_and_a_gpu(installed, device, monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoints.external, "TCNN_EXISTS", installed)
    state = {"field.mlp_base.model.tcnn_encoding.params": torch.zeros(1)}
    with pytest.raises(UserError, match="needs tiny-cuda-nn on an NVIDIA GPU") as caught:
        checkpoints._build_model(TeacherModelConfig(), state, device, tmp_path / "step-000000001.ckpt")
    one_sentence(caught)


def test_model_state_keeps_only_the_models_own():
    value = torch.zeros(1)
    state = {"_model.a": value, "_model.module.b": value, "_model.lpips.net": value, "datamanager.c": value}
    assert list(model_state(state)) == ["a", "b"]


def test_no_checkpoint(run):
    (checkpoint,) = (run.parent / "nerfstudio_models").iterdir()
    checkpoint.unlink()
    with pytest.raises(UserError, match="no checkpoint") as caught:
        load_model(run, "cpu")
    assert str(run.parent / "nerfstudio_models") in one_sentence(caught)


@pytest.mark.parametrize("damage", ["half", "empty", "text", "no pipeline", "no step"])
def test_a_checkpoint_that_is_not_whole(run, damage):
    (path,) = (run.parent / "nerfstudio_models").iterdir()
    if damage == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage.startswith("no "):
        content = torch.load(path)
        del content[damage.removeprefix("no ")]
        torch.save(content, path)
    else:
        path.write_text("" if damage == "empty" else "hello")
    with pytest.raises(UserError, match="not a whole nerfstudio checkpoint") as caught:
        load_model(run, "cpu")
    assert str(path) in one_sentence(caught)


@pytest.mark.parametrize("field, value", [("width", 24), ("depth", 8), ("batch_norm", True)])
def test_a_checkpoint_of_another_architecture(student, run, field, value):
    config = copy.deepcopy(student[0])
    setattr(config.pipeline.model.network, field, value)
    run.write_text(yaml.dump(config))
    with pytest.raises(UserError, match="another architecture") as caught:
        load_model(run, "cpu")
    message = one_sentence(caught)
    assert str(run) in message and "step-000000007.ckpt" in message


# -- config.yml -----------------------------------------------------------------------------------------------------


def test_a_config_is_read_from_its_file_or_folder(student, run):
    for path in (run, run.parent):
        assert read_config(path).pipeline.model == student[0].pipeline.model


@pytest.mark.parametrize(
    "content", ["a: 1", "", "{", "!!python/object:nowhere.Thing {}", "!!python/name:os.nothing", "\x00\x01"], ids=repr
)
def test_a_foreign_file_is_no_config(tmp_path, content):
    path = tmp_path / "config.yml"
    path.write_text(content)
    with pytest.raises(UserError, match="nerfstudio config.yml|belongs neither to nerfstudio") as caught:
        read_config(path)
    assert str(path) in one_sentence(caught)


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "config.yml"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match="cannot be read") as caught:
        read_config(path)
    assert str(path) in one_sentence(caught)


def test_a_missing_config(tmp_path):
    for path in (tmp_path / "config.yml", tmp_path):
        with pytest.raises(UserError, match="there is no") as caught:
            read_config(path)
        assert str(tmp_path / "config.yml") in one_sentence(caught)


def test_runs_are_found_newest_first(tmp_path):
    import os

    for age, name in enumerate(("c", "a", "b")):
        path = tmp_path / "experiment" / "method" / name / "config.yml"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1000 - age, 1000 - age))
    assert [path.parent.name for path in find_runs(tmp_path)] == ["c", "a", "b"]
    assert find_runs(tmp_path / "nowhere") == []


def test_the_dataparsers_world(run):
    assert load_dataparser_transform(run) is None
    rows = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    path = run.parent / "dataparser_transforms.json"
    path.write_text(json.dumps({"transform": rows, "scale": 0.5}))
    transform, scale = load_dataparser_transform(run)
    assert transform.tolist() == rows and scale == 0.5
    unlike = [{"transform": rows[:2]}, {"transform": [*rows[:2], [0, 0, 0, "nan"]]}, {"scale": float("nan")},
              {"transform": [*rows[:2], [0, 0, 0, float("inf")]]}, {"scale": 0}, {"scale": None}]  # fmt: skip
    texts = [json.dumps({"transform": rows, "scale": 0.5, **change}) for change in unlike]
    for damaged in (*texts, "", "{", "[]", "7", "{}", "[" * 100_000):
        path.write_text(damaged)
        with pytest.raises(UserError, match=rf"{re.escape(str(path))} is damaged: "):
            load_dataparser_transform(run)


@pytest.mark.parametrize("room", [0, 100, 5000, 60_000])
def test_a_full_disk_is_an_oserror_wherever_it_ends(room):
    """torch closes its archive after the failed write, and reports that its position is not what it expects."""

    class Disk(io.BytesIO):
        def write(self, data):
            if self.tell() + len(data) > room:
                raise OSError(28, "No space left on device")
            return super().write(data)

    with pytest.raises(OSError, match="No space left"):
        checkpoints._save({"weights": [torch.rand(2000) for _ in range(10)]}, Disk())
