"""Files that are written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any


def replace_file(written: Path, target: Path) -> None:
    """Moves a finished file over another one. Whenever a process or the machine stops, one of the two is there, whole.

    Args:
        written: The finished file, in the same file system.
        target: The path that it gets.
    """
    with open(written, "rb") as file:
        os.fsync(file.fileno())
    os.replace(written, target)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file; an interrupted write leaves the old one."""
    unfinished = path.with_name(path.name + ".writing")
    unfinished.write_text(json.dumps(content, indent=2) + "\n")
    replace_file(unfinished, path)
