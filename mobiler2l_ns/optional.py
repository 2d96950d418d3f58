"""Packages of the extras ``export``, ``coreml`` and ``capture``: imported when a command needs them.

An installed package may also be broken. A wheel for another processor or numpy fails at import with nearly any error.
"""

import importlib
import re
from types import ModuleType
from typing import Tuple

from mobiler2l_ns.errors import UserError, first_line

_EXTRAS = {
    "onnx": "export",
    "onnxruntime": "export",
    "onnxslim": "export",
    "ml_dtypes": "export",
    "coremltools": "coreml",
    "pycolmap": "capture",
}

# As in pyproject.toml, which counts where the package was installed for the extra.
_OLDEST = {"onnx": "1.17", "onnxruntime": "1.22"}

# What works without the package.
_INSTEAD = {"pycolmap": "; or make the poses with COLMAP and `ns-process-data`"}


def require(name: str) -> ModuleType:
    """Imports a package of an extra.

    Raises:
        UserError: The package cannot be imported, or is too old; the message has the command that installs it.
    """
    try:
        module = importlib.import_module(name)
    except Exception as error:
        raise UserError(
            f"this command needs {name}, which cannot be imported ({first_line(error)}): install it with "
            f"`uv pip install 'mobiler2l-ns[{_EXTRAS[name]}]'`, or in a checkout with `bash scripts/setup.sh`"
            f"{_INSTEAD.get(name, '')}."
        ) from None
    found, oldest = getattr(module, "__version__", ""), _OLDEST.get(name, "")
    if found and _numbers(found) < _numbers(oldest):
        raise UserError(
            f"this command needs {name} {oldest} or newer, and {found} is installed: update it with "
            f"`uv pip install 'mobiler2l-ns[{_EXTRAS[name]}]'`."
        )
    return module


def _numbers(version: str) -> Tuple[int, ...]:
    """(1, 15) for "1.15.0"; () for ""."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
