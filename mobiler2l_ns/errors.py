"""The one exception for mistakes that a user can mend."""

import os
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator


class UserError(SystemExit):
    """Ends a command with one sentence on stderr and exit code 1, without a traceback.

    It derives from SystemExit because nerfstudio's own commands call us and print a traceback for everything else.
    With the environment variable MOBILER2L_DEBUG the place and the cause are printed, too.

    Args:
        message: One sentence that names the file or option at fault and says what to do.
    """

    def __init__(self, message: str):
        super().__init__(f"mobiler2l: {message}")
        if os.environ.get("MOBILER2L_DEBUG"):
            traceback.print_stack()
            if sys.exc_info()[1] is not None:
                traceback.print_exc()


class UntrustedFile(UserError):
    """A file would run code that belongs neither to nerfstudio nor to an installed plugin."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's name if it has none; at most 200 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@contextmanager
def explain_write_errors(output_dir: Path) -> Iterator[None]:
    """Turns an OSError of the code inside, which writes to output_dir, into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{output_dir} cannot be written ({error}): pass another --output-dir.") from None
