"""Messages of running commands: lines next to nerfstudio's table of steps, and a progress bar with named stages.

Without a terminal (a log file, CI) the lines are the same and no bar is drawn.
"""

from contextlib import contextmanager
from typing import Callable, Iterator

from nerfstudio.utils import comms
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def log_line(line: str) -> None:
    """Prints a line in the main process.

    On a terminal nerfstudio moves the cursor up by the height of its table of steps and overwrites the lines there. So
    as many empty lines follow the printed line.
    """
    if not comms.is_main_process():
        return
    CONSOLE.print(line)
    if CONSOLE.is_terminal:
        from nerfstudio.utils import writer  # not above: it cannot be the first of nerfstudio's modules

        for table in writer.EVENT_WRITERS:
            if isinstance(table, writer.LocalWriter) and table.has_printed:
                print("\n" * len(table.past_mssgs), end="", flush=True)


@contextmanager
def stages(count: int) -> Iterator[Callable[[str], None]]:
    """A progress bar of ``count`` stages, removed at the end. Yields a function that begins a stage, given its name."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=CONSOLE, transient=True, disable=not CONSOLE.is_terminal) as bar:
        task = bar.add_task("", total=count)

        def begin(name: str) -> None:
            begun = bool(bar.tasks[0].description)
            bar.update(task, description=name, advance=int(begun), refresh=True)

        yield begin


@contextmanager
def progress_of(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Progress of ``total`` equal things (0: not known). Yields a function that takes how many are done.

    Without a terminal one line is printed for each tenth, "NAME: 12 of 50 (24.00%)".
    """
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=CONSOLE, transient=True, disable=not CONSOLE.is_terminal) as bar:
        task = bar.add_task(name, total=total or None)
        printed = 0

        def advance(done: int) -> None:
            nonlocal printed
            bar.update(task, completed=done)
            tenths = 10 * done // total if total else 0
            if tenths > printed and not CONSOLE.is_terminal:
                printed = tenths
                log_line(f"{name}: {done} of {total} ({100 * done / total:.2f}%)")

        yield advance


def duration(seconds: float) -> str:
    """A duration with a unit that suits it: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
