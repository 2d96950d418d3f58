"""Packages of extras: those that are too old. tests/test_plugin.py has those that are missing or broken."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mobiler2l_ns import optional
from mobiler2l_ns.errors import UserError

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


@pytest.mark.parametrize(
    ("version", "refused"), [("1.16.2", True), ("0.99", True), ("1.17.0", False), ("1.100", False)]
)
def test_a_package_that_is_too_old_is_one_sentence(version, refused, monkeypatch):
    module = SimpleNamespace(__version__=version)
    monkeypatch.setitem(sys.modules, "onnx", module)
    if not refused:
        assert optional.require("onnx") is module
        return
    with pytest.raises(UserError, match=f"needs onnx 1.17 or newer, and {version} is installed") as caught:
        optional.require("onnx")
    assert "\n" not in str(caught.value) and "`uv pip install 'mobiler2l-ns[export]'`" in str(caught.value)


def test_the_limits_are_those_of_the_installation():
    declared = dict(re.findall(r'^    "([\w-]+)>=([\d.]+)[",]', PYPROJECT.read_text(), re.M))
    assert optional._OLDEST == {name: declared[name] for name in optional._OLDEST}
