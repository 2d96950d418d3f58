"""An export's folder: all of it is there, or what was there before is.

report.json lists the files beside it, so that a later export of the same run knows what it may replace.
"""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional, Set

from mobiler2l_ns.errors import UserError

REPORT = "report.json"


def files_of(folder: Path) -> Set[str]:
    """All files below a folder, relative to it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def replaceable_files(output_dir: Path, config_path: Path, overwrite: bool) -> Set[str]:
    """What an earlier export wrote into output_dir.

    Args:
        output_dir: Where the next export goes; need not exist.
        config_path: The run that it is of.
        overwrite: Accept a folder with something else in it.

    Raises:
        UserError: output_dir is a file, or holds anything that is not an export of the same run.
    """
    if not output_dir.exists():
        return set()
    if not output_dir.is_dir():
        raise UserError(f"{output_dir} is a file: pass a folder as --output-dir.")
    present, earlier = files_of(output_dir), _earlier_report(output_dir)
    ours = present & set(earlier["files"]) if earlier else set()
    same_run = earlier is not None and earlier["run"]["config"] == str(config_path)
    if not overwrite and present and not (same_run and present == ours):
        what = f"an export of {earlier['run']['config']}" if earlier and not same_run else "files of yours"
        raise UserError(f"{output_dir} holds {what}: pass another --output-dir, or --overwrite True.")
    return ours


@contextmanager
def staging_folder(output_dir: Path) -> Iterator[Path]:
    """An empty folder beside output_dir, gone afterwards, as are parents that were made for nothing."""
    missing = [parent for parent in output_dir.parents if not parent.exists()]
    staging = output_dir.with_name(f".{output_dir.name}.{os.getpid()}.writing")
    try:
        staging.mkdir(parents=True)
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for parent in missing:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def move_into_place(staging: Path, output_dir: Path, ours: Set[str]) -> None:
    """Makes the staging folder the output folder.

    Args:
        staging: A whole export, beside output_dir.
        output_dir: Files in it that no export wrote stay, unless a name clashes.
        ours: Those that an earlier export wrote.
    """
    if not output_dir.exists():
        staging.rename(output_dir)
        return
    before = staging.with_name(staging.name + ".before")
    output_dir.rename(before)
    try:
        staging.rename(output_dir)
    except BaseException:
        before.rename(output_dir)
        raise
    for name in files_of(before) - ours - files_of(output_dir):
        (output_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (before / name).rename(output_dir / name)
    shutil.rmtree(before)


def _earlier_report(folder: Path) -> Optional[dict]:
    """The report.json in a folder, or None where it is missing or not ours."""
    try:
        report = json.loads((folder / REPORT).read_text())
        return {"run": {"config": str(report["run"]["config"])}, "files": [str(name) for name in report["files"]]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
