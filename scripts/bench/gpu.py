"""Everything that is measured on a GPU, part by part, within a given time and without a network.

    bash scripts/bench/gpu.sh                          the demo scene at 800x800, 40 minutes at most
    bash scripts/bench/gpu.sh --capture data/fox       and a posed capture
    bash scripts/bench/gpu.sh --rehearse               the same with tiny sizes, on a CPU

Each part runs in a process of its own (a rehearsal is one process) and writes its figures when it ends, so neither an
error nor the end of the time loses what was measured before. Parts that have figures in --output are not run again.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Dict, List, Optional, Tuple

if __name__ == "__main__":  # modules are found in scripts/, not in scripts/bench/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import tyro

from bench.common import console, default_device, new_table, with_machine, write_figures
from bench.gpu_parts import PARTS
from bench.gpu_place import TINY, Place, Sizes
from mobiler2l_ns.errors import UserError

SETUP_SHARE = 0.4  # of the time of a student's part: photos, probe, scores and picture
ON_CUDA = "-splat", "-ngp"  # ends of the parts whose kernels run nowhere else


@dataclass
class Options:
    """Command line."""

    output: Path = Path("outputs/bench-gpu")
    """Folder for figures, logs, the scene and the runs."""
    minutes: float = 40.0
    """Time for all parts."""
    parts: Tuple[str, ...] = ()
    """Parts to run, in this order; left out: all, those named capture-* with --capture alone."""
    capture: Optional[Path] = None
    """A posed capture, which is measured beside the demo scene."""
    side: int = 800
    """Pixels of the demo scene's photos."""
    teacher_steps: int = 4000
    """Training steps of a teacher."""
    student_seconds: float = 420.0
    """Time of each student, if as much is left."""
    rehearse: bool = False
    """Tiny sizes, and a CPU will do."""
    only: Optional[str] = None
    """Run this part in this process. For the script itself."""


def sizes_of(options: Options) -> Sizes:
    """The sizes that the command line asks for."""
    if options.rehearse:
        return TINY
    return Sizes(side=options.side, teacher_steps=options.teacher_steps, student_seconds=options.student_seconds)


def measure_part(name: str, options: Options) -> Dict:
    """A part's figures, measured in this process and written to its file."""
    start, capture = time.perf_counter(), options.capture and options.capture.resolve()
    torch.backends.cudnn.benchmark = True  # as in ns-train
    figures = PARTS[name](Place(options.output.resolve(), sizes_of(options), capture))
    figures["seconds_of_part"] = round(time.perf_counter() - start, 3)
    (options.output / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def run_part(name: str, options: Options, seconds: float) -> Dict:
    """A part's figures, measured in a process of its own, or why there are none."""
    path, log = options.output / f"{name}.json", options.output / f"{name}.log"
    fitting = min(options.student_seconds, (1 - SETUP_SHARE) * seconds)
    words = command_line(replace(options, only=name, student_seconds=round(fitting, 1)))
    command = [sys.executable, str(Path(__file__).resolve()), *words]
    with log.open("w") as sink:
        try:
            process = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            return {"error": f"stopped after {seconds:.0f} s"}
    if process.returncode or not path.is_file():
        lines = [line.strip() for line in log.read_text().splitlines() if line.strip()]
        return {"error": lines[-1] if lines else f"ended with code {process.returncode}"}
    return json.loads(path.read_text())


def command_line(options: Options) -> List[str]:
    """The words of a command line with these options."""
    words = []
    for option in fields(options):
        value, name = getattr(options, option.name), f"--{option.name.replace('_', '-')}"
        if value == option.default:
            continue
        values = value if isinstance(value, tuple) else [] if value is True else [value]
        words += [name, *map(str, values)]
    return words


def check(options: Options) -> None:
    """Raises UserError for a command line or a machine that cannot work."""
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        raise UserError(f"there is no part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}.")
    if options.capture is not None and not options.capture.is_dir():
        raise UserError(f"there is no folder {options.capture}: pass a posed capture with --capture.")
    if default_device().type != "cuda" and not options.rehearse:
        raise UserError("torch sees no NVIDIA GPU with CUDA here: pass --rehearse for tiny sizes on the CPU.")


def measure(options: Options) -> Dict[str, Dict]:
    """The figures of all parts; gpu.json is written after each."""
    options.output.mkdir(parents=True, exist_ok=True)
    end, results = time.perf_counter() + 60 * options.minutes, done_before(options.output)
    for name in options.parts or [part for part in PARTS if options.capture or not part.startswith("capture-")]:
        path, start = options.output / f"{name}.json", time.perf_counter()
        if path.is_file():
            console.print(f"{name}: done before")
            continue
        console.print(f"{name} ...")
        if name.endswith(ON_CUDA) and default_device().type != "cuda":
            results[name] = {"error": "needs CUDA"}
        elif start >= end:
            results[name] = {"error": "no time left"}
        else:
            results[name] = measure_part(name, options) if options.rehearse else run_part(name, options, end - start)
        results[name].setdefault("seconds_of_part", round(time.perf_counter() - start, 3))  # a part that failed
        figures = with_machine(results, default_device())
        del figures["machine"]["peak_memory_mb"]  # each part has its own
        write_figures(figures, options.output / "gpu.json")
    return results


def done_before(folder: Path) -> Dict[str, Dict]:
    """The figures of the parts that an earlier command has measured."""
    return {name: json.loads(path.read_text()) for name in PARTS if (path := folder / f"{name}.json").is_file()}


def main() -> None:
    """Measures and prints what the command line asks for."""
    options = tyro.cli(Options, description=__doc__)
    if options.only is not None:
        measure_part(options.only, options)
        return
    check(options)
    results = measure(options)
    table = new_table("GPU", "part", "seconds", "figures")
    for name, found in results.items():
        shown = {key: value for key, value in found.items() if key not in ("curve", "seconds_of_part")}
        table.add_row(name, str(found.get("seconds_of_part", "")), json.dumps(shown)[:300])
    console.print(table)
    if any("error" in found for name, found in results.items() if not name.endswith(ON_CUDA)):
        sys.exit(1)


if __name__ == "__main__":
    main()
