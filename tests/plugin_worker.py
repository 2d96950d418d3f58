"""Started by test_plugin.py: imports nerfstudio alone, then our methods, then both with broken packages."""

import contextlib
import importlib.metadata
import io
import json
import sys
from importlib.abc import Loader
from importlib.machinery import ModuleSpec

import quick_stack  # noqa: F401  (before nerfstudio is imported)

EXTRAS = ["onnx", "onnxruntime", "onnxslim", "coremltools", "ml_dtypes"]
OPTIONAL = [*EXTRAS, "wandb", "comet_ml"]
FAILURES = {"missing": None, "ImportError": ImportError, "OSError": OSError, "RuntimeError": RuntimeError}
GROUP, NOWHERE = "nerfstudio.method_configs", {"group": "nowhere"}


class Breaker(Loader):
    """A meta path finder whose packages fail at import."""

    def __init__(self):
        self.packages, self.error = set(), RuntimeError

    def find_spec(self, name, path=None, target=None):
        """Finds the broken packages only."""
        return ModuleSpec(name, self) if name in self.packages else None

    def exec_module(self, module):
        """Fails."""
        raise self.error(f"{module.__name__} is broken on purpose")


def forget(*packages) -> None:
    """Removes packages and their submodules from sys.modules."""
    for name in [name for name in sys.modules if name.split(".")[0] in packages]:
        del sys.modules[name]


def load_methods(names) -> list:
    """Names of our methods that nerfstudio's discovery finds."""
    from nerfstudio.plugins.registry import discover_methods

    return sorted(set(discover_methods()[0]) & set(names))


def export(target: str, precision: str) -> str:
    """The error of ns-export-mobiler2l for a missing run."""
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
                if package in EXTRAS:
                    target = "coreml" if package == "coremltools" else "onnx"
                    sentences[f"{package} {failure}"] = export(target, "int8" if package == "ml_dtypes" else "fp32")
    print(json.dumps({"names": sorted(names), "added": sorted(added), "methods": methods, "sentences": sentences}))


if __name__ == "__main__":
    main()
