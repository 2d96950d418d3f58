"""What all benchmarks share: facts about the machine, the JSON file, tables, plots and timing."""

import json
import os
import platform
import resource
import shlex
import sys
import time
from pathlib import Path
from statistics import median
from typing import Callable, Dict, Iterable, List, Optional

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from mobiler2l_ns.errors import UserError

console = Console()
CPU = torch.device("cpu")


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_capture(data: Path) -> None:
    """Raises a UserError if the folder of a capture does not exist."""
    if not data.is_dir():
        raise UserError(f"there is no folder {data}: pass a posed capture with --data.")


# -- the machine ------------------------------------------------------------------------------------------------------


def machine(device: torch.device, threads: Optional[int] = None) -> Dict:
    """What figures were measured on: the device, CPU cores, threads (left out: torch's), torch, peak memory so far."""
    return {
        "device": device_name(device),
        "cores": os.cpu_count(),
        "threads": threads or torch.get_num_threads(),
        "torch": torch.__version__,
        "peak_memory_mb": round(peak_memory(device) / 1e6),
    }


def device_name(device: torch.device) -> str:
    """What the maker calls a GPU, or else the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: on the GPU, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used  # bytes on macOS, KiB on Linux


def describe(figures: Dict) -> str:
    """The machine of some figures in one line."""
    facts = figures["machine"]
    return f"{facts['device']}, {facts['threads']} threads, peak memory {facts['peak_memory_mb']:,} MB"


# -- measuring --------------------------------------------------------------------------------------------------------


def median_milliseconds(sides: Dict[str, Callable], rounds: int) -> Dict[str, float]:
    """Median of the ``milliseconds`` of each side."""
    return {name: round(median(values), 3) for name, values in milliseconds(sides, rounds).items()}


def milliseconds(sides: Dict[str, Callable], rounds: int) -> Dict[str, List[float]]:
    """Milliseconds of all runs of each side; each round calls all of them once, so all meet the same conditions."""
    times = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def mean(values: Iterable[float]) -> float:
    """Mean with three decimals."""
    return round(float(np.mean(list(values))), 3)


# -- output -----------------------------------------------------------------------------------------------------------


def new_table(title: str, *headings: str) -> Table:
    """A table whose first column is text and whose other columns are numbers."""
    table = Table(title=title, title_justify="left")
    for column, heading in enumerate(headings):
        table.add_column(heading, justify="right" if column else "left")
    return table


def with_machine(figures: Dict, device: torch.device, threads: Optional[int] = None) -> Dict:
    """Figures together with the command and the machine that they come from, see ``machine``."""
    command = shlex.join(["python", f"scripts/bench/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return {"command": command, "machine": machine(device, threads), **figures}


def earlier_figures(path: Path, same: Dict, others: str) -> Dict:
    """Figures that a file has of earlier commands, without their command and machine; {} without a file.

    Args:
        path: The file.
        same: Options that these commands must share.
        others: What the file has if they do not.

    Raises:
        UserError: They do not.
    """
    if not path.is_file():
        return {}
    written = json.loads(path.read_text())
    if not same.items() <= written.items():
        raise UserError(f"{path} has {others}: name another file with --json, or delete it.")
    return {name: value for name, value in written.items() if name not in ("command", "machine")}


def write_figures(figures: Dict, path: Path) -> None:
    """Writes figures as JSON.

    Raises:
        UserError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}): name another file with --json.") from error
    console.print(f"written: {path}")


def plot_curves(runs: List[Dict], axes_labels: Dict[str, str], y: str, y_label: str, path: Path) -> None:
    """Draws the curves of runs, one panel for each quantity on the horizontal axis.

    Args:
        runs: Each with its ``recipe``, which chooses the colour, and its ``curve``, a list of points.
        axes_labels: Keys of a point for the horizontal axes, and their labels.
        y: Key of a point for the vertical axis.
        y_label: Its label.
        path: The PNG file.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(axes_labels), figsize=(13, 4), sharey=True)
    colours = dict(zip(dict.fromkeys(run["recipe"] for run in runs), ("tab:gray", "tab:orange", "tab:blue")))
    for axis, (x, label) in zip(axes, axes_labels.items()):
        for run in runs:
            points = [[point[key] for point in run["curve"]] for key in (x, y)]
            axis.plot(*points, ".-", color=colours[run["recipe"]])
        axis.set(xlabel=label)
        axis.grid(alpha=0.3)
    for recipe, colour in colours.items():
        axes[0].plot([], [], ".-", color=colour, label=recipe)
    axes[0].set(ylabel=y_label)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
