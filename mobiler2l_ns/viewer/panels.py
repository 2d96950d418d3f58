"""Panels of nerfstudio's viewer: statistics and sliders of the training data, and an export button.

nerfstudio collects viewer elements from the public attributes of pipeline, datamanager and model and of the modules in
them, in alphabetical order, and makes a folder for each module's name. So the panels are modules without weights.
The viewer calls them back in threads of its own, which hold the trainer's lock: nothing trains or renders meanwhile.
"""

import threading
from pathlib import Path
from typing import Callable, Dict, Optional, Protocol, runtime_checkable

from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer.viewer import Viewer
from nerfstudio.viewer.viewer_elements import ViewerButton, ViewerControl, ViewerSlider, ViewerText
from torch import nn

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.viewer.markdown import ViewerMarkdown


class StreamPanel(nn.Module):
    """Statistics of the training data, and sliders for the shares that may change during training.

    Args:
        shares: The present value of each share that may change, by its name in the datamanager's config.
        change: Called with a share's name and its new value.
    """

    LABELS = {"photo_share": "Photo share", "teacher_share": "Teacher share", "filling_share": "Filling share"}

    def __init__(self, shares: Dict[str, float], change: Callable[[str, float], None]):
        super().__init__()
        self.figures = ViewerMarkdown("Pool")
        for name, value in shares.items():
            setattr(self, name, self._slider(name, value, change))

    def _slider(self, name: str, value: float, change: Callable[[str, float], None]) -> ViewerSlider:
        return ViewerSlider(self.LABELS[name], value, 0.0, 1.0, 0.01, cb_hook=lambda slider: change(name, slider.value))

    def show(self, statistics: Dict[str, float]) -> None:
        """Replaces the statistics, if a viewer is open.

        Args:
            statistics: ``statistics()`` and ``progress()`` of the datamanager.
        """
        if self.figures.gui_handle is None:
            return
        held = min(statistics["views"], statistics["capacity"])
        self.figures.show(
            f"Teacher views: {held:,} of {statistics['capacity']:,}, {statistics['views']:,} so far  \n"
            f"Mean age: {statistics['pool_age']:.0f} steps  \n"
            f"Teacher's share of the time: {statistics['teacher_share']:.0%}  \n"
            f"Photos: {statistics['photos']}, {statistics['photo_share']:.0%} of each batch  \n"
            f"Memory: {statistics['bytes'] / 1e6:.0f} MB"
        )


@runtime_checkable
class WriteExport(Protocol):
    """Writes the exported files of a student. ``UserError``: why it cannot."""

    def __call__(self, run_folder: Path, output_dir: Path, student: nn.Module, step: int) -> object:
        """Writes the files.

        Args:
            run_folder: The folder of the student's config.yml.
            output_dir: Where the files go.
            student: The student on the CPU, in eval mode.
            step: Training step of its weights.
        """
        ...


class ExportPanel(nn.Module):
    """Exports the student with its present weights.

    Args:
        copy_student: Makes a copy of the student, on the CPU and in eval mode.
        write: Writes the files; it runs in a thread of its own.
    """

    def __init__(self, copy_student: Callable[[], nn.Module], write: WriteExport):
        super().__init__()
        self.copy_student, self.write = copy_student, write
        self.worker: Optional[threading.Thread] = None
        self.destination = ViewerText("Folder", "", hint="Relative to the folder in which the command was started.")
        self.export = ViewerButton("Export", self._start)
        self.outcome = ViewerMarkdown("Outcome")
        self.viewer = _ViewerHandle(self._suggest_folder)

    def _suggest_folder(self) -> None:
        self.destination.value = f"exports/{self._run_folder().parents[1].name}"

    def _run_folder(self) -> Path:
        """OUTPUTS/EXPERIMENT/METHOD/TIMESTAMP, where the viewer's log file is."""
        return self.viewer.viewer.log_filename.parent

    def _start(self, button: ViewerButton) -> None:
        """Copies the weights and starts a thread that writes the files, which can take minutes."""
        if self.worker is not None and self.worker.is_alive():
            return
        student, step = self.copy_student(), self.viewer.viewer.step
        self.outcome.show("Exporting ...")
        self.worker = threading.Thread(target=self._run, args=(student, step, Path(self.destination.value)))
        self.worker.start()

    def _run(self, student: nn.Module, step: int, output_dir: Path) -> None:
        outcome = "The export failed: see the console."
        try:
            self.write(self._run_folder(), output_dir, student, step)
            outcome = f"Written to {output_dir}, from the weights of step {step}."
        except UserError as error:
            outcome = str(error)
        finally:  # any other error is printed with its traceback by the thread
            CONSOLE.print(outcome)
            self.outcome.show(outcome)


class _ViewerHandle(ViewerControl):
    """Keeps the viewer as an attribute once it is open.

    Args:
        when_open: Called then.
    """

    def __init__(self, when_open: Callable[[], None]):
        self.when_open = when_open

    def _setup(self, viewer: Viewer) -> None:
        super()._setup(viewer)
        self.when_open()
