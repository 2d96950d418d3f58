"""Errors that users see."""

import os
import subprocess
import sys

from mobiler2l_ns.errors import UserError


def test_a_user_error_ends_a_command_with_one_line():
    error = UserError("there is no x: pass y.")
    assert isinstance(error, SystemExit) and error.code == "mobiler2l: there is no x: pass y."
    code = "from mobiler2l_ns.errors import UserError; raise UserError('there is no x: pass y.')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "mobiler2l: there is no x: pass y.\n")


def test_debugging_shows_where_an_error_comes_from():
    code = """
from mobiler2l_ns.errors import UserError
try:
    int("seven")
except ValueError:
    raise UserError("there is no x: pass y.") from None
"""
    environment = {**os.environ, "MOBILER2L_DEBUG": "1"}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert ended.returncode == 1 and ended.stderr.endswith("\nmobiler2l: there is no x: pass y.\n")
    assert "ValueError: invalid literal for int() with base 10: 'seven'" in ended.stderr
    assert 'File "<string>", line 6' in ended.stderr
