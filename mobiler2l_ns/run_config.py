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
from typing import Any, Callable, Dict, FrozenSet, Tuple

import torch
import yaml
from torch import Tensor
from torch._utils import _rebuild_tensor_v2
from yaml.constructor import ConstructorError

from mobiler2l_ns.compat import refuse_former_runs
from mobiler2l_ns.errors import UntrustedFile, UserError

PLUGINS = "nerfstudio.method_configs", "nerfstudio.dataparser_configs"  # groups of entry points


class Untrusted(ConstructorError):
    """A config.yml names something that could run as code."""


def _with_type_arguments(generic: Any, arguments) -> Any:
    """A class such as VanillaDataManager[DepthDataset]."""
    return generic.__class_getitem__(tuple(arguments) if isinstance(arguments, list) else arguments)


def _storage(data: bytes) -> torch.TypedStorage:
    """A tensor's numbers. torch's own function would run any pickle."""
    return torch.load(io.BytesIO(data), weights_only=True)


def _tensor(storage: torch.TypedStorage, offset: int, size: Tuple[int], stride: Tuple[int], *_) -> Tensor:
    """A tensor, which nerfstudio saves in the config of some pixel samplers."""
    return _rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())


MADE: Dict[str, Callable[..., Any]] = {
    **{f"pathlib.{name}": Path for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")},
    "_operator.getitem": _with_type_arguments,
    "collections.OrderedDict": OrderedDict,
    "torch.storage._load_from_bytes": _storage,
    "torch._utils._rebuild_tensor_v2": _tensor,
}


class RunConfigLoader(yaml.UnsafeLoader):
    """PyYAML's loader of Python objects, restricted.

    - Names are classes and functions of trusted packages, and classes of torch (optimizers).
    - Objects are made without calling their constructor. Only those of ``MADE`` and members of an Enum are made by a
      call.
    """

    def find_python_module(self, name, mark):
        raise Untrusted(problem=name, problem_mark=mark)

    def find_python_name(self, name, mark):
        package = name.partition(".")[0]
        if package not in trusted_packages() | {"torch"}:
            raise Untrusted(problem=name, problem_mark=mark)
        found = super().find_python_name(name, mark)
        home = str(getattr(found, "__module__", "")).partition(".")[0]
        is_optimizer = package == home == "torch" and isinstance(found, type)
        if not is_optimizer and (home not in trusted_packages() or not callable(found)):
            raise Untrusted(problem=name, problem_mark=mark)
        return found

    def make_python_instance(self, suffix, node, args=None, kwds=None, newobj=False):
        if suffix in MADE and not kwds:
            return MADE[suffix](*(args or ()))
        found = self.find_python_name(suffix, node.start_mark)
        is_new = newobj and not args and not kwds
        if isinstance(found, type) and (is_new or issubclass(found, Enum)):
            return super().make_python_instance(suffix, node, args, kwds, newobj)
        raise Untrusted(problem=suffix, problem_mark=node.start_mark)


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
