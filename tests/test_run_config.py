"""config.yml and checkpoints of strangers: what they name is neither imported nor run."""

import base64
import pickle
import sys
from pathlib import Path

import pytest
import torch
import yaml
from builders import one_sentence, write_run
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
from nerfstudio.data.datasets.depth_dataset import DepthDataset

from mobiler2l_ns import run_config
from mobiler2l_ns.checkpoints import load_model
from mobiler2l_ns.errors import UntrustedFile, UserError
from mobiler2l_ns.run_config import RunConfigLoader, read_config, trusted_packages
from mobiler2l_ns.teacher.adoption import resolve_teacher


def test_every_methods_config_is_read_as_it_was_saved():
    """nerfstudio's own methods, ours, and those of other plugins that are installed."""
    from nerfstudio.configs.method_configs import all_methods

    assert {"nerfacto", "depth-nerfacto", "splatfacto", "mobiler2l", "mobiler2l-teacher"} <= set(all_methods)
    for config in all_methods.values():
        text = yaml.dump(config)
        assert yaml.dump(yaml.load(text, Loader=RunConfigLoader)) == text


def test_what_configs_are_made_of():
    """Paths, members of an Enum and classes with type arguments are the only things that are made by a call."""
    parts = {"path": Path("a/b"), "sizes": (1, 2), "optimizer": torch.optim.Adam}
    assert yaml.load(yaml.dump(parts), Loader=RunConfigLoader) == parts
    generic = yaml.load(yaml.dump(VanillaDataManager[DepthDataset]), Loader=RunConfigLoader)
    assert generic == VanillaDataManager[DepthDataset]


@pytest.mark.parametrize("tensor", [torch.tensor(True), torch.arange(6.0).view(2, 3).T], ids=["a flag", "a matrix"])
def test_tensors(tensor):
    """nerfstudio saves one in the config of its pixel sampler."""
    found = yaml.load(yaml.dump({"is_equirectangular": tensor}), Loader=RunConfigLoader)["is_equirectangular"]
    assert torch.equal(found, tensor) and found.dtype == tensor.dtype


ATTACKS = {
    "a function of Python": "!!python/object/apply:os.system ['touch {}']",
    "deep inside": "a: [b: {{c: !!python/object/apply:os.system ['touch {}']}}]",
    "a new object": "!!python/object/new:subprocess.Popen [['touch', '{}']]",
    "a class's constructor": "!!python/object/apply:subprocess.Popen [['touch', '{}']]",
    "a built-in function": "!!python/object/apply:eval [\"open('{}', 'w')\"]",
    "a function of nerfstudio": "!!python/object/apply:nerfstudio.utils.scripts.run_command ['touch {}']",
    "a class of Python in a module of nerfstudio": (
        "!!python/object/apply:nerfstudio.utils.scripts.subprocess.Popen [['touch', '{}']]"
    ),
    "a constructor of nerfstudio": (
        "!!python/object/apply:nerfstudio.utils.writer.TensorboardWriter {{kwds: {{log_dir: !!python/object/apply:"
        "pathlib.PosixPath ['{}']}}}}"
    ),
    "a function of torch": "!!python/object/apply:torch.hub.download_url_to_file ['file:///etc/hostname', '{}']",
    "a module": "!!python/module:stranger",
    "a name in a module": "!!python/name:stranger.thing",
    "an item": "!!python/object/apply:_operator.getitem [!!python/object/apply:os.system ['touch {}'], 0]",
    "the storage of a tensor": "!!python/object/apply:torch.storage._load_from_bytes [!!binary '{pickled}']",
    "a tensor of something else": "!!python/object/apply:torch._utils._rebuild_tensor_v2 [os.system, 0, [1], [1]]",
    "the state of a new object": "!!python/object:stranger.Thing {{path: '{}'}}",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_a_config_names_is_not_run(name, tmp_path, monkeypatch):
    touched, config_path = tmp_path / "touched", tmp_path / "config.yml"
    (tmp_path / "stranger.py").write_text(f"open({str(touched)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    pickled = base64.b64encode(pickle.dumps(Attack(touched))).decode()
    config_path.write_text(ATTACKS[name].format(touched, pickled=pickled))
    with pytest.raises(UserError, match=f"{config_path}") as caught:
        read_config(config_path)
    one_sentence(caught)
    assert not touched.exists() and "stranger" not in sys.modules


def test_the_attacks_would_work(tmp_path):
    """nerfstudio's own loader runs them: the files above are no blanks."""
    for name in ("a function of Python", "a function of torch", "a constructor of nerfstudio"):
        touched = tmp_path / name.replace(" ", "-")
        yaml.load(ATTACKS[name].format(touched), Loader=yaml.Loader)
        assert touched.exists()


def test_the_search_for_a_teacher_passes_over_strangers(student_config, tmp_path, capsys):
    """The newest run under outputs/ is read first."""
    touched, folder = tmp_path / "touched", tmp_path / "outputs" / "evil" / "x" / "t"
    folder.mkdir(parents=True)
    (folder / "config.yml").write_text(ATTACKS["a function of Python"].format(touched))
    with pytest.raises(UserError, match="no teacher for"):
        resolve_teacher(None, tmp_path, tmp_path / "outputs")
    printed = " ".join(capsys.readouterr().out.split())
    assert "Skipped: mobiler2l:" in printed and "names os.system" in printed and not touched.exists()
    with pytest.raises(UntrustedFile, match="names os.system, which belongs neither to nerfstudio nor"):
        resolve_teacher(folder, tmp_path, tmp_path / "outputs")
    assert not touched.exists()


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return eval, (f"open({str(self.path)!r}, 'w')",)


@pytest.mark.parametrize("place", ["pipeline", "step", "beside"])
def test_what_a_checkpoint_contains_is_not_run(place, tmp_path):
    config_path, touched = write_run(tmp_path / "run"), tmp_path / "touched"
    (checkpoint,) = config_path.parent.glob("**/step-*.ckpt")
    state = torch.load(checkpoint, weights_only=True)
    torch.save({**state, place: Attack(touched)}, checkpoint)
    with pytest.raises(UntrustedFile, match=f"{checkpoint} contains .*eval beside its weights") as caught:
        load_model(config_path, "cpu")
    one_sentence(caught)
    assert not touched.exists()
    pickle.loads(pickle.dumps(Attack(touched))).close()
    assert touched.exists()  # it would have worked


def test_packages_of_plugins_are_trusted(monkeypatch):
    """Those that nerfstudio loads anyway: entry points, and the variables of its environment."""
    trusted_packages.cache_clear()
    assert {"nerfstudio", "mobiler2l_ns"} <= trusted_packages() and "os" not in trusted_packages()
    monkeypatch.setenv("NERFSTUDIO_METHOD_CONFIGS", "mine=my_methods.configs:mine,other=others:x")
    trusted_packages.cache_clear()
    try:
        assert {"my_methods", "others"} <= trusted_packages()
    finally:
        monkeypatch.undo()
        run_config.trusted_packages.cache_clear()
