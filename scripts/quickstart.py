"""All steps from a capture to exported files: teacher, student, export, comparison images and a table.

quickstart.sh starts it. Each stage is an ordinary command, printed before it runs; its output goes to
``outputs/<scene>/logs`` and its progress to one bar. Stages that are done are not repeated.
"""

import json
import os
import re
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, NoReturn, Optional, Tuple, Union

from quickstart_report import next_steps, summary
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mobiler2l_ns.files import write_json

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
MAX_SIDE = 640
DEMO_SIDE = 320
UPSCALE = 4
# A line of ns-train's table, or of ns-process-mobiler2l: "matching: 12 of 50 (24.00%)".
STEP = re.compile(r"^(?:(?P<name>[\w ]+): )?\d+(?: of \d+)? \((?P<percent>\d+\.\d+)%\)")
console = Console()


class Quickstart:
    """Runs all stages for one scene.

    Args:
        data: The capture.
        scene: Its name, used for outputs/ and exports/.
    """

    def __init__(self, data: Path, scene: str):
        self.data, self.scene = data, scene
        self.parser = find_parser(data) or fail(f"{data} has no poses: make them with ns-process-mobiler2l.")
        self.exports = ROOT / "exports" / scene
        self.outputs = ROOT / "outputs"
        self.state_path = self.outputs / scene / "quickstart.json"
        self.state: Dict = {}
        if self.state_path.is_file():
            self.state = read_state(self.state_path)
        if self.state.get("data") != str(data):
            self.state = {"data": str(data), "seconds": {}}

    def run(self) -> None:
        """All stages, then the table."""
        device = "cuda" if _has_cuda() else "cpu"
        common = ["--machine.device-type", device, "--data", str(self.data), "--output-dir", str(self.outputs)]
        common += ["--experiment-name", self.scene]
        width, height, is_object = first_photo(self.data, self.parser)
        self.train("teacher", ["mobiler2l-teacher-small", *common, *teacher_options(is_object), self.parser])
        student = [
            "--pipeline.datamanager.teacher.load-config",
            self.state["teacher"],
            "--pipeline.model.export-when-done",
            "False",
        ]
        size = student_size(width, height)
        if size is not None:
            student += ["--pipeline.datamanager.image-size", *map(str, size)]
        self.train("student", ["mobiler2l-small", *common, *student, *student_options(is_object), self.parser])
        self.export()
        self.finish()

    def train(self, stage: str, arguments: List[str]) -> None:
        """Trains unless that was done before, and remembers the run."""
        done = self.state.get(stage)
        if done and Path(done).is_file():
            console.print(f"[bold]{stage}[/bold]: already trained, {_short(done)}")
            return
        before = set(self.outputs.glob(f"{self.scene}/*/*/config.yml"))
        self.timed(stage, [str(BIN / "ns-train"), *arguments])
        (config,) = set(self.outputs.glob(f"{self.scene}/{arguments[0]}/*/config.yml")) - before
        self.remember(stage, str(config))

    def export(self) -> None:
        """Exports and compares on all held-out views."""
        self.timed("export", [
            str(BIN / "ns-export-mobiler2l"), "--load-config", self.state["student"],
            "--output-dir", str(self.exports), "--num-views", "24", "--overwrite", "True",
            "--targets", "onnx", "snap", "web",
        ])  # fmt: skip

    def timed(self, stage: str, command: List[str]) -> None:
        """Runs one command and notes its seconds."""
        start = time.time()
        run(stage, command, self.outputs / self.scene / "logs" / f"{stage}.log")
        self.state["seconds"][stage] = round(time.time() - start, 1)
        self.save()

    def remember(self, key: str, value: str) -> None:
        self.state[key] = value
        self.save()

    def save(self) -> None:
        self.state_path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.state_path, self.state)

    def finish(self) -> None:
        """Completes report.json and prints the table."""
        path = self.exports / "report.json"
        report = json.loads(path.read_text())
        seconds = {"install": float(os.environ.get("MOBILER2L_INSTALL_SECONDS", 0)), **self.state["seconds"]}
        report["seconds"] = {**seconds, "total": round(sum(seconds.values()), 1)}
        report["peak_memory_mb"] = peak_memory_mb()
        write_json(path, report)
        console.print(summary(report, self.scene))
        console.print(next_steps(_short(self.state["student"]), _short(str(self.exports))))


def read_state(path: Path) -> Dict:
    """What an earlier call left; ends the quickstart where the file is damaged."""
    try:
        state = json.loads(path.read_bytes())
        if {"data", "seconds"} <= state.keys() and isinstance(state["seconds"], dict):
            return state
    except (ValueError, AttributeError, RecursionError):
        pass
    fail(f"{path} is damaged: delete it to start anew.")


def peak_memory_mb() -> int:
    """Most MiB that one of the finished commands had in memory."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return round(used / (1024**2 if sys.platform == "darwin" else 1024))  # bytes on macOS, KiB on Linux


def run(stage: str, command: List[str], log: Path) -> None:
    """Runs a command with a progress bar; ends the quickstart with its message if it fails."""
    console.print(f"[bold]{stage}[/bold]: {shlex.join(_short(word) for word in command)}")
    log.parent.mkdir(parents=True, exist_ok=True)
    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %")]
    columns += [TimeElapsedColumn(), TimeRemainingColumn()]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    with Progress(*columns, console=console) as progress, log.open("w") as sink:
        task = progress.add_task(stage, total=100)
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for line in process.stdout:
            sink.write(line)
            if match := STEP.match(line):
                progress.update(task, description=match["name"] or stage, completed=float(match["percent"]))
        if process.wait() == 0:
            progress.update(task, completed=100)
    if process.returncode != 0:
        fail(f"{stage} stopped: {_last_words(log)} (the whole output is in {_short(log)})")


def find_parser(data: Path) -> Optional[str]:
    """The nerfstudio parser that reads a folder; None for photos without poses, and for a video."""
    if (data / "transforms_train.json").is_file():
        return "blender-data"
    if (data / "transforms.json").is_file():
        return "nerfstudio-data"
    if (data / "colmap" / "sparse").is_dir() or (data / "sparse").is_dir():
        return "colmap"
    return None


def first_photo(data: Path, parser: str) -> Tuple[int, int, bool]:
    """Width, height and whether it can be transparent, of the first photo of a capture."""
    from PIL import Image

    name = "transforms_train.json" if parser == "blender-data" else "transforms.json"
    try:
        frames = json.loads((data / name).read_text())["frames"] if parser != "colmap" else []
        photo = data / frames[0]["file_path"] if frames else next((data / "images").iterdir())
        photo = photo if photo.is_file() else photo.with_suffix(".png")
        with Image.open(photo) as image:
            return *image.size, image.mode == "RGBA"
    except (OSError, ValueError, KeyError, IndexError, TypeError, StopIteration) as error:
        fail(f"the first photo of {data} cannot be read ({error}): correct its {name}.")


def student_size(width: int, height: int) -> Optional[Tuple[int, int]]:
    """Width and height of a student that a laptop trains in minutes; None if the photos have this size."""
    shrink = min(1.0, MAX_SIDE / max(width, height))
    size = [max(UPSCALE, round(side * shrink / UPSCALE) * UPSCALE) for side in (width, height)]
    return None if size == [width, height] else (size[0], size[1])


def teacher_options(is_object: bool) -> List[str]:
    """A real capture has a background, near and far: more samples a ray than a bounded scene needs."""
    if is_object:
        return []
    return ["--pipeline.model.num-proposal-samples-per-ray", "64", "--pipeline.model.num-nerf-samples-per-ray", "24"]


def student_options(is_object: bool) -> List[str]:
    """An object fills a third of its photos, and its student gains nothing from reprojected views."""
    if not is_object:
        return []
    return ["--pipeline.datamanager.photo-share", "0.5", "--pipeline.datamanager.reprojected-share", "0"]


def fail(message: str) -> NoReturn:
    """Ends with one sentence."""
    raise SystemExit(f"mobiler2l: {message}")


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text().splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("mobiler2l: ")]
    return ours[-1].removeprefix("mobiler2l: ") if ours else (lines[-1] if lines else "no output")


def _short(path: Union[str, Path]) -> str:
    """A path below the repository without the repository, a command without its folder."""
    return str(path).removeprefix(f"{BIN}/").removeprefix(f"{ROOT}/")


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def demo_scene(seconds: Dict[str, float]) -> Path:
    """Makes the demo capture unless it is there."""
    data = ROOT / "data" / "demo"
    start = time.time()
    script, size = ROOT / "scripts" / "make_demo_scene.py", str(DEMO_SIDE)
    process = subprocess.run([sys.executable, str(script), "--output", str(data), "--resolution", size])
    if process.returncode:
        raise SystemExit(process.returncode)
    seconds["scene"] = round(time.time() - start, 1)
    return data


def posed_capture(photos: Path, scene: str, seconds: Dict[str, float]) -> Path:
    """Finds the poses of photos or of a video, unless that was done before."""
    start, data = time.time(), ROOT / "data" / f"{scene}-posed"
    command = [str(BIN / "ns-process-mobiler2l"), "--data", str(photos), "--output-dir", str(data)]
    run("poses", command, ROOT / "outputs" / scene / "logs" / "poses.log")
    seconds["poses"] = round(time.time() - start, 1)
    report = json.loads((data / "process.json").read_text())["report"]
    console.print(
        f"{report['posed']} of {report['posed'] + len(report['unposed'])} photos have a pose; "
        f"reprojection error {report['reprojection_error']:.2f} pixels; see {_short(data / 'poses.png')}"
    )
    return data


def main() -> None:
    """Quickstart on the folder named on the command line, or on the demo scene."""
    if len(sys.argv) > 2 or (len(sys.argv) == 2 and sys.argv[1].startswith("-")):
        fail("usage: bash scripts/quickstart.sh [PHOTOS]")
    seconds: Dict[str, float] = {}
    if len(sys.argv) == 2:
        data = Path(sys.argv[1]).expanduser().resolve()
        if not data.exists():
            fail(f"there is no {sys.argv[1]}: pass a folder of photos, a video, or nothing for the demo scene.")
        scene = data.stem if data.is_file() else data.name
        if data.is_file() or find_parser(data) is None:
            data = posed_capture(data, scene, seconds)
    else:
        data = demo_scene(seconds)
        scene = data.name
    quickstart = Quickstart(data, scene)
    quickstart.state["seconds"].update({k: v for k, v in seconds.items() if k not in quickstart.state["seconds"]})
    quickstart.run()


if __name__ == "__main__":
    main()
