"""Errors that users see."""

import subprocess
import sys

from mobiler2l_ns.errors import UserError


def test_a_user_error_ends_a_command_with_one_line():
    error = UserError("there is no x: pass y.")
    assert isinstance(error, SystemExit) and error.code == "mobiler2l: there is no x: pass y."
    code = "from mobiler2l_ns.errors import UserError; raise UserError('there is no x: pass y.')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "mobiler2l: there is no x: pass y.\n")
