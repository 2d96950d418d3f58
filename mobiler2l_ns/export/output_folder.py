"""The output folder of an export: written beside its place and renamed into it, so that it is never half-written."""

import glob
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional, Set

from mobiler2l_ns.errors import UserError, explain_write_errors

REPORT = "report.json"
PREVIOUS = ".previous"  # suffix of an export that is being replaced


def files_of(folder: Path) -> Set[str]:
    """Paths of all files below a folder, relative to it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def check_output_dir(output_dir: Path, overwrite: bool) -> None:
    """Checks that an export may be written to a folder.

    Args:
        output_dir: The folder; it need not exist.
        overwrite: Allow a folder that holds an export and nothing else.

    Raises:
        UserError: output_dir is a file, or a folder that is not empty and may not be replaced.
    """
    with explain_write_errors(output_dir):
        clear_leftovers(output_dir)
        if not output_dir.exists():
            return
        if not output_dir.is_dir():
            raise UserError(f"{output_dir} is a file: pass a folder as --output-dir.")
        if not any(output_dir.iterdir()):
            return
        reported = _reported_files(output_dir)
        if reported is None:
            raise UserError(f"{output_dir} is not empty and holds no export: pass another --output-dir.")
        others = sorted(files_of(output_dir) - reported)
        if others:
            raise UserError(
                f"{output_dir} holds files that are not part of an export ({others[0]}): pass another --output-dir."
            )
        if not overwrite:
            raise UserError(
                f"{output_dir} holds an export: pass another --output-dir, or --overwrite True to replace it."
            )


def _reported_files(folder: Path) -> Optional[Set[str]]:
    """The files that the report.json of an export lists, or None where there is no such report."""
    try:
        report = json.loads((folder / REPORT).read_text())
        return {str(name) for name in report["files"]} if "config" in report["run"] else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def clear_leftovers(output_dir: Path) -> None:
    """Removes what killed exports left beside a folder, and puts an export back that one was about to replace."""
    for leftover in output_dir.parent.glob(f".{glob.escape(output_dir.name)}.*.writing*"):
        if _is_running(leftover.name.removeprefix(f".{output_dir.name}.").split(".")[0]):
            continue
        if leftover.suffix == PREVIOUS and not output_dir.exists():
            leftover.rename(output_dir)
        else:
            shutil.rmtree(leftover)


def _is_running(pid: str) -> bool:
    if os.name == "nt":
        return True  # os.kill would not ask but kill
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass  # another user's process
    return True


@contextmanager
def staging_folder(output_dir: Path) -> Iterator[Path]:
    """An empty folder beside output_dir; at the end it is removed with every parent that was created for it.

    Raises:
        UserError: The folder cannot be created.
    """
    missing = [parent for parent in output_dir.parents if not parent.exists()]
    staging = output_dir.with_name(f".{output_dir.name}.{os.getpid()}.writing")
    try:
        with explain_write_errors(output_dir):
            staging.mkdir(parents=True)
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for parent in missing:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def move_into_place(staging: Path, output_dir: Path) -> None:
    """Renames the staging folder to output_dir.

    Args:
        staging: A whole export, beside output_dir.
        output_dir: Removed where it exists, or restored where the renaming fails.

    Raises:
        OSError: A folder cannot be renamed.
    """
    if not output_dir.exists():
        staging.rename(output_dir)
        return
    previous = staging.with_name(staging.name + PREVIOUS)
    output_dir.rename(previous)
    try:
        staging.rename(output_dir)
    except BaseException:
        previous.rename(output_dir)
        raise
    shutil.rmtree(previous)
