"""How long nerfstudio's viewer waits for a view of a student.

    python scripts/bench/viewer.py --student RUN/config.yml

Two views of 512 x 512 pixels from the middle of the student's range: one with the field of view of its training views,
one with 75 degrees, as the viewer opens. Each is rendered as in the viewer's thread, with nerfstudio's trace function,
which checks after each line of Python whether the camera has moved.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Dict

if __name__ == "__main__":  # modules are found in scripts/, not in scripts/bench/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import tyro
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.viewer.utils import CameraState, get_camera
from nerfstudio.viewer_legacy.server.viewer_utils import SetTrace

from bench.common import CPU, console, median_milliseconds, with_machine, write_figures
from mobiler2l_ns.export.command import load_student
from mobiler2l_ns.student.viewing_range import viewing_range

BOUND = 150.0  # milliseconds: below that the view follows a dragged camera without visible delay
OPENING_FOV = 75.0  # degrees, of a viewer that was just opened


@dataclass
class Options:
    """Command line."""

    student: Path
    """config.yml of a trained student."""
    size: int = 512
    """Side of the view in pixels; 512 is the viewer's own limit until it is changed."""
    rounds: int = 20
    """How often each view is rendered; the median counts."""
    threads: int = 2
    """Threads that torch may use."""
    json: Path = Path("docs/benchmarks/viewer.json")
    """File for the figures."""


def measure(options: Options) -> Dict:
    """Renders both views and returns what the JSON file holds."""
    torch.set_num_threads(options.threads)
    config, model, step = load_student(options.student)
    span = viewing_range(model)
    c2w = span.pose(*span.middle())
    fovs = {"trained field of view": trained_fov(model), "75 degrees": OPENING_FOV}
    milliseconds = {name: render_time(model, c2w, fov, options.size, options.rounds) for name, fov in fovs.items()}
    return {
        "student": {"method": config.method_name, "step": step, "size": list(model.size[::-1])},
        "resolution": [options.size, options.size],
        "field_of_view": {name: round(fov, 2) for name, fov in fovs.items()},
        "milliseconds": milliseconds,
        "slowest": max(milliseconds.values()),
        "bound": BOUND,
    }


def trained_fov(model) -> float:
    """Vertical field of view of the student's training views, degrees."""
    return float(torch.rad2deg(2 * torch.arctan(torch.tensor(model.size[0] / 2 / model.focal))))


def render_time(model, c2w: torch.Tensor, fov: float, size: int, rounds: int) -> float:
    """Median milliseconds of a view of size x size pixels."""
    state = CameraState(fov * torch.pi / 180, 1.0, c2w, CameraType.PERSPECTIVE)
    camera = get_camera(state, size, size)

    def trace(frame, event, argument):
        return trace

    def render():
        with torch.no_grad(), SetTrace(trace):
            model.get_outputs_for_camera(camera)

    for _ in range(2):
        render()  # warms up
    return round(median_milliseconds({"view": render}, rounds)["view"], 1)


def main() -> None:
    """Measures, prints and writes."""
    options = tyro.cli(Options, description=__doc__)
    figures = with_machine(measure(options), CPU)
    for name, value in figures["milliseconds"].items():
        console.print(f"{options.size}x{options.size}, {name}: {value:.1f} ms")
    console.print(f"slowest {figures['slowest']:.1f} ms; the bound is {BOUND:.0f} ms")
    write_figures(figures, options.json)


if __name__ == "__main__":
    main()
