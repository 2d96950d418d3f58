"""The one exception for mistakes that a user can mend."""


class UserError(SystemExit):
    """Ends a command with one sentence on stderr and exit code 1, without a traceback.

    It derives from SystemExit because nerfstudio's own commands call us and print a traceback for everything else.

    Args:
        message: One sentence that names the file or option at fault and says what to do.
    """

    def __init__(self, message: str):
        super().__init__(f"mobiler2l: {message}")


class UntrustedFile(UserError):
    """A file would run code that belongs neither to nerfstudio nor to an installed plugin."""
