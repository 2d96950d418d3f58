"""Packages that only an export needs: imported when it runs, and missed in one sentence.

A package may also be there and be broken: a wheel for another processor or numpy fails at import with nearly anything.
"""

import importlib
from types import ModuleType

from mobiler2l_ns.errors import UserError

# nerfstudio pins protobuf <= 3.20.3, which newer onnx releases refuse.
_REQUIREMENTS = {
    "onnx": "'onnx<1.18'",
    "onnxruntime": "onnxruntime",
    "ml_dtypes": "ml-dtypes",
    "coremltools": "'mobiler2l-ns[coreml]'",
}


def require(name: str) -> ModuleType:
    """Imports a package of the export; a UserError with the command that installs it where that fails."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"this export needs {name}, which cannot be imported ({reason}): install it with "
            f"`uv pip install --python .venv/bin/python {_REQUIREMENTS[name]}`."
        ) from None
