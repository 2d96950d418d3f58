"""A process of its own for test_plugin.py: nerfstudio alone, then our methods beside it, with packages broken."""

import contextlib
import importlib.metadata
import io
import json
import sys
from importlib.abc import Loader
from importlib.machinery import ModuleSpec

OPTIONAL = ["onnx", "onnxruntime", "coremltools", "ml_dtypes", "wandb", "comet_ml"]
FAILURES = {"missing": None, "ImportError": ImportError, "OSError": OSError, "RuntimeError": RuntimeError}
GROUP, NOWHERE = "nerfstudio.method_configs", {"group": "nowhere"}


class Breaker(Loader):
    """A meta path finder that finds named packages, which then fail at import."""

    def __init__(self):
        self.packages, self.error = set(), RuntimeError

    def find_spec(self, name, path=None, target=None):
        """Finds the broken packages, and leaves the others to Python."""
        return ModuleSpec(name, self) if name in self.packages else None

    def exec_module(self, module):
        """Fails."""
        raise self.error(f"{module.__name__} is broken on purpose")


def forget(*packages) -> None:
    """Takes packages out of sys.modules, submodules included."""
    for name in [name for name in sys.modules if name.split(".")[0] in packages]:
        del sys.modules[name]


def load_methods(names) -> list:
    """Our method's names, as nerfstudio's discovery finds them."""
    from nerfstudio.plugins.registry import discover_methods

    return sorted(set(discover_methods()[0]) & set(names))


def export(target: str, precision: str) -> str:
    """What ns-export-mobiler2l ends with, for a run that is not there."""
    from mobiler2l_ns.export import command as module

    sys.argv = ["ns-export-mobiler2l", "--load-config", "nowhere/config.yml", "--output-dir", "out",
                "--targets", target, "--precision", precision]  # fmt: skip
    try:
        module.entrypoint()
    except SystemExit as end:
        return str(end)


def main() -> None:
    """Prints what was found, as JSON."""
    breaker = Breaker()
    breaker.packages = set(OPTIONAL)
    sys.meta_path.insert(0, breaker)
    found = importlib.metadata.entry_points
    names = [entry.name for entry in found(group=GROUP) if entry.dist.name == "mobiler2l-ns"]
    importlib.metadata.entry_points = lambda **where: found(**(NOWHERE if where.get("group") == GROUP else where))
    import nerfstudio.configs.method_configs  # noqa: F401
    import nerfstudio.plugins.registry as registry

    registry.entry_points = found
    alone = set(sys.modules)
    load_methods(names)
    added = {name for name in sys.modules if name not in alone}
    methods, sentences = {}, {}
    for package in OPTIONAL:
        for failure, error in FAILURES.items():
            breaker.packages, breaker.error = {package} if error else set(), error
            forget("mobiler2l_ns", package)
            if error is None:
                sys.modules[package] = None
            with contextlib.redirect_stdout(io.StringIO()):
                methods[f"{package} {failure}"] = load_methods(names)
                if package in OPTIONAL[:4]:
                    target = "coreml" if package == "coremltools" else "onnx"
                    sentences[f"{package} {failure}"] = export(target, "int8" if package == "ml_dtypes" else "fp32")
    print(json.dumps({"names": sorted(names), "added": sorted(added), "methods": methods, "sentences": sentences}))


if __name__ == "__main__":
    main()
