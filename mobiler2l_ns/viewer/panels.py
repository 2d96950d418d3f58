"""Panels of nerfstudio's viewer: figures and sliders of the training data, and an export button.

nerfstudio finds viewer elements among the public attributes of pipeline, datamanager and model and of the modules in
them, in alphabetical order, and makes a folder of each module's name. So the panels here are modules without weights.
Callbacks run in threads of the viewer, one at a time with training and rendering: all hold the trainer's lock.
"""

import threading
from pathlib import Path
from typing import Callable, Dict, Optional

from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer.viewer_elements import ViewerButton, ViewerControl, ViewerSlider, ViewerText
from torch import nn

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.viewer.markdown import ViewerMarkdown


class StreamPanel(nn.Module):
    """Figures of the pool, and sliders for what may change while training.

    Args:
        shares: Present value of each share, by its name in the datamanager's config; those that make sense.
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
        """Updates the figures.

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


class ExportPanel(nn.Module):
    """Writes the files of ``ns-export-mobiler2l`` from the weights at hand.

    Args:
        copy_student: Makes a copy of the student, on the CPU and in eval mode.
    """

    def __init__(self, copy_student: Callable[[], nn.Module]):
        super().__init__()
        self.copy_student = copy_student
        self.worker: Optional[threading.Thread] = None
        self.destination = ViewerText("Folder", "", hint="Where the files go, seen from the folder of the command.")
        self.export = ViewerButton("Export", self._start)
        self.outcome = ViewerMarkdown("Outcome")
        self.viewer = _OpenViewer(self._suggest_folder)

    def _suggest_folder(self) -> None:
        self.destination.value = f"exports/{self._run_folder().parents[1].name}"

    def _run_folder(self) -> Path:
        """OUTPUTS/EXPERIMENT/METHOD/TIMESTAMP: nerfstudio keeps the viewer's log there, and looks for config.yml."""
        return self.viewer.viewer.log_filename.parent

    def _start(self, button: ViewerButton) -> None:
        """Copies the weights while nothing changes them, and leaves the rest to a thread: it takes up to minutes."""
        if self.worker is not None and self.worker.is_alive():
            return
        student, step = self.copy_student(), self.viewer.viewer.step
        self.outcome.show("Exporting ...")
        self.worker = threading.Thread(target=self._export, args=(student, step, Path(self.destination.value)))
        self.worker.start()

    def _export(self, student: nn.Module, step: int, folder: Path) -> None:
        from mobiler2l_ns.export.command import ExportMobileR2L

        outcome = "The export failed: see the console."
        try:
            ExportMobileR2L(self._run_folder(), folder, num_views=0).export((student, step))
            outcome = f"Written to {folder}, from the weights of step {step}."
        except UserError as error:
            outcome = str(error)
        finally:
            CONSOLE.print(outcome)
            self.outcome.show(outcome)


class _OpenViewer(ViewerControl):
    """Has the viewer as an attribute once there is one.

    Args:
        when_open: Called then.
    """

    def __init__(self, when_open: Callable[[], None]):
        self.when_open = when_open

    def _setup(self, viewer) -> None:
        super()._setup(viewer)
        self.when_open()
