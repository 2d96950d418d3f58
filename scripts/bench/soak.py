"""Memory of a long training: a real ns-train whose resident memory is read every few seconds.

    python scripts/bench/soak.py --data data/demo --teacher RUN/config.yml --minutes 30

The growth is that from the end of the first fifth of the time, when the pool is full, to the last fifth. SIGTERM ends
the training, which then saves its last step.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Dict, List

if __name__ == "__main__":  # modules are found in scripts/, not in scripts/bench/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.common import CPU, console, with_machine, write_figures
from mobiler2l_ns.errors import UserError


def resident_megabytes(pid: int) -> float:
    """Resident memory of a process, in MB; 0 for one that has ended. Linux only."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return pages * 4096 / 1e6


def train(data: Path, teacher: Path, outputs: Path) -> subprocess.Popen:
    """Starts a training that does not end by itself, with a small pool, which is full soon."""
    ns_train = Path(sys.executable).with_name("ns-train")
    return subprocess.Popen(
        [ns_train, "mobiler2l-small", "--machine.device-type", "cpu", "--vis", "tensorboard", "--data", data,
         "--output-dir", outputs, "--experiment-name", "soak", "--max-num-iterations", "10000000",
         "--steps-per-save", "200", "--steps-per-eval-image", "500", "--pipeline.datamanager.pool-views", "60",
         "--pipeline.datamanager.initial-views", "30", "--pipeline.datamanager.teacher.load-config", teacher],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def follow(process: subprocess.Popen, outputs: Path, seconds: float, every: float) -> List[float]:
    """Memory of a training in MB, from its first checkpoint on.

    Raises:
        UserError: It ended.
    """
    found: List[float] = []
    end = None
    while end is None or time.monotonic() < end:
        time.sleep(every)
        if process.poll() is not None:
            raise UserError(f"ns-train ended with exit code {process.returncode}: run it by hand to see why.")
        if end is None and list(outputs.rglob("*.ckpt")):
            end = time.monotonic() + seconds
            console.print("The first checkpoint is written; the memory is measured from here on.")
        if end is not None:
            found.append(round(resident_megabytes(process.pid), 1))
    return found


def growth(megabytes: List[float]) -> float:
    """Growth from the second fifth of the time to the last one, as a fraction."""
    fifth = max(1, len(megabytes) // 5)
    return median(megabytes[-fifth:]) / median(megabytes[fifth : 2 * fifth]) - 1


def soak(data: Path, teacher: Path, minutes: float, every: float = 5.0) -> Dict:
    """The figures of a training."""
    with tempfile.TemporaryDirectory() as folder:
        process = train(data, teacher, Path(folder))
        try:
            megabytes = follow(process, Path(folder), 60 * minutes, every)
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=300)
        (checkpoint,) = Path(folder).rglob("*.ckpt")
        steps = int(checkpoint.stem.split("-")[1]) + 1
    return {
        "minutes": minutes, "steps": steps, "exit_code": code, "growth": round(growth(megabytes), 4),
        "megabytes_first": megabytes[0], "megabytes_last": megabytes[-1], "seconds_between": every,
        "megabytes": megabytes,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a capture")
    parser.add_argument("--teacher", type=Path, required=True, help="config.yml of a run on it")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--json", type=Path, default=Path("docs/benchmarks/soak.json"))
    options = parser.parse_args()
    figures = soak(options.data.resolve(), options.teacher.resolve(), options.minutes)
    console.print(
        f"{figures['steps']} steps in {figures['minutes']:g} minutes: {figures['megabytes_first']:.0f} MB first, "
        f"{figures['megabytes_last']:.0f} MB last, growth {100 * figures['growth']:.2f} %; SIGTERM: exit code "
        f"{figures['exit_code']}"
    )
    write_figures(with_machine(figures, CPU), options.json)


if __name__ == "__main__":
    main()
