"""Packages of the extras ``export``, ``coreml`` and ``capture``: imported when a command needs them.

An installed package may also be broken. A wheel for another processor or numpy fails at import with nearly any error.
"""

import importlib
from types import ModuleType

from mobiler2l_ns.errors import UserError, first_line

_EXTRAS = {
    "onnx": "export",
    "onnxruntime": "export",
    "onnxslim": "export",
    "ml_dtypes": "export",
    "coremltools": "coreml",
    "pycolmap": "capture",
}

# What works without the package.
_INSTEAD = {"pycolmap": "; or make the poses with COLMAP and `ns-process-data`"}


def require(name: str) -> ModuleType:
    """Imports a package of an extra.

    Raises:
        UserError: The package cannot be imported; the message has the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise UserError(
            f"this command needs {name}, which cannot be imported ({first_line(error)}): install it with "
            f"`uv pip install 'mobiler2l-ns[{_EXTRAS[name]}]'`, or in a checkout with `bash scripts/setup.sh`"
            f"{_INSTEAD.get(name, '')}."
        ) from None
