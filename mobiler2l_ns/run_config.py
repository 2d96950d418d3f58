"""A run's config.yml, read without running what it names.

nerfstudio writes its config as YAML with Python objects. PyYAML's loader for such files imports and calls whatever they
name, so a file from a stranger can run any code. The loader here builds configs of nerfstudio and of installed plugins,
and refuses everything else before it is imported.
"""

import io
import os
from collections import OrderedDict
from enum import Enum
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import FrozenSet

import torch
import yaml
from yaml.constructor import ConstructorError, FullConstructor

from mobiler2l_ns.compat import refuse_former_runs
from mobiler2l_ns.errors import UntrustedFile, UserError

PLUGINS = "nerfstudio.method_configs", "nerfstudio.dataparser_configs"  # groups of entry points
PATHS = {f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")}
GENERIC = "_operator.getitem"  # a class with type arguments, such as VanillaDataManager[DepthDataset]
# nerfstudio saves a tensor in the config of some pixel samplers.
STORAGE, TENSOR, HOOKS = "torch.storage._load_from_bytes", "torch._utils._rebuild_tensor_v2", "collections.OrderedDict"


class Untrusted(ConstructorError):
    """A config.yml names something that could run as code."""


class RunConfigLoader(yaml.UnsafeLoader):
    """PyYAML's loader of Python objects, restricted.

    - Names are classes and functions of trusted packages, and classes of torch (optimizers).
    - Objects are made without calling their constructor. Only paths, tensors and members of an Enum are made by a call.
    """

    def find_python_module(self, name, mark, unsafe=False):
        raise Untrusted(problem=name, problem_mark=mark)

    def find_python_name(self, name, mark, unsafe=False):
        package = name.partition(".")[0]
        if package not in trusted_packages() | {"torch"}:
            raise Untrusted(problem=name, problem_mark=mark)
        found = FullConstructor.find_python_name(self, name, mark, unsafe=True)
        home = str(getattr(found, "__module__", "")).partition(".")[0]
        is_optimizer = package == home == "torch" and isinstance(found, type)
        if not is_optimizer and (home not in trusted_packages() or not callable(found)):
            raise Untrusted(problem=name, problem_mark=mark)
        return found

    def make_python_instance(self, suffix, node, args=None, kwds=None, newobj=False, unsafe=False):
        if suffix in PATHS and not kwds and all(isinstance(part, str) for part in args or ()):
            return Path(*args or ())
        if suffix == GENERIC and not kwds and len(args or ()) == 2 and isinstance(args[0], type):
            return args[0][tuple(args[1]) if isinstance(args[1], list) else args[1]]
        if suffix == STORAGE and not kwds and len(args or ()) == 1:
            return torch.load(io.BytesIO(args[0]), weights_only=True)  # torch's own function would run any pickle
        if suffix == TENSOR and not kwds and isinstance((args or [None])[0], torch.storage.TypedStorage):
            return torch._utils._rebuild_tensor_v2(*args[:5], OrderedDict())
        if suffix == HOOKS and not kwds and not any(args or ()):
            return OrderedDict()
        found = self.find_python_name(suffix, node.start_mark)
        is_new = newobj and not args and not kwds
        if isinstance(found, type) and (is_new or issubclass(found, Enum)):
            return FullConstructor.make_python_instance(self, suffix, node, args, kwds, newobj, unsafe=True)
        raise Untrusted(problem=suffix, problem_mark=node.start_mark)

    def set_python_instance_state(self, instance, state, unsafe=False):
        FullConstructor.set_python_instance_state(self, instance, state, unsafe=False)


@cache
def trusted_packages() -> FrozenSet[str]:
    """Top-level packages of nerfstudio and of its plugins: installed ones, and those of its environment variables."""
    found = {"nerfstudio", "mobiler2l_ns"}
    for group in PLUGINS:
        for entry in entry_points(group=group):
            found.add(entry.value.partition(":")[0].partition(".")[0])
            listed = entry.dist.read_text("top_level.txt") if entry.dist is not None else None
            found.update((listed or "").split())
    for variable in ("NERFSTUDIO_METHOD_CONFIGS", "NERFSTUDIO_DATAPARSER_CONFIGS"):
        for definition in filter(None, os.environ.get(variable, "").split(",")):
            found.add(definition.partition("=")[2].partition(":")[0].partition(".")[0])
    return frozenset(filter(None, found))


def read_config(config_path: Path):
    """The TrainerConfig in a run's config.yml.

    Raises:
        UntrustedFile: The file names something that belongs neither to nerfstudio nor to an installed plugin.
        UserError: The file is missing or is not a nerfstudio config.
    """
    from nerfstudio.engine.trainer import TrainerConfig

    if config_path.is_dir():
        config_path = config_path / "config.yml"
    if not config_path.is_file():
        raise UserError(f"there is no {config_path}: pass the config.yml that ns-train wrote into the run's folder.")
    refuse_former_runs()  # for commands of ours that do not discover the methods
    try:
        config = yaml.load(config_path.read_text(), Loader=RunConfigLoader)
    except Untrusted as error:
        raise UntrustedFile(
            f"{config_path} names {error.problem}, which belongs neither to nerfstudio nor to an installed plugin, so "
            "it was not run: install the plugin that trained this run, or pass a run that you trust."
        ) from None
    except Exception as error:
        # The loader builds classes of nerfstudio and plugins, so anything may be raised here.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{config_path} cannot be read as a nerfstudio config.yml ({reason}).") from None
    if not isinstance(config, TrainerConfig):
        raise UserError(f"{config_path} is not a nerfstudio config.yml: pass the one inside a run's folder.")
    return config
