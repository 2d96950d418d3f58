"""What the student adds to nerfstudio's viewer: teacher, data stream, an export button, and where it opens.

nerfstudio finds viewer elements among the public attributes of pipeline, datamanager and model and of the modules in
them, in alphabetical order, and makes a folder of each module's name. So the panels here are modules without weights.
Callbacks run in threads of the viewer's, one at a time with training and rendering: all hold the trainer's lock.
"""

import sys
import threading
from pathlib import Path
from typing import Callable, Dict, Optional

from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components.renderers import background_color_override_context
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer.viewer_elements import ViewerButton, ViewerControl, ViewerElement, ViewerSlider, ViewerText
from torch import Tensor, nn

from mobiler2l_ns.cameras import ray_lengths
from mobiler2l_ns.crop_box import crop
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.metrics import error_picture
from mobiler2l_ns.teacher import Teacher
from mobiler2l_ns.viewing_range import viewing_range

RENDER_FAILURES = (UserError, OSError, RuntimeError, AssertionError)  # no run, no memory, no CUDA


class ViewerMarkdown(ViewerElement[str]):
    """Formatted text that the user cannot change."""

    gui_handle = None

    def __init__(self, name: str):
        super().__init__(name)
        self.content = ""

    def _create_gui_handle(self, viser_server) -> None:
        self.gui_handle = viser_server.gui.add_markdown(self.content)

    def install(self, viser_server) -> None:
        self._create_gui_handle(viser_server)

    def show(self, content: str) -> None:
        """Replaces the text; long paths may break after their slashes."""
        self.content = content = content.replace("/", "/\N{ZERO WIDTH SPACE}")
        if self.gui_handle is not None:
            self.gui_handle.content = content


# -- the teacher beside the student -----------------------------------------------------------------------------------


class TeacherPictures(nn.Module):
    """``error`` and ``teacher`` in the viewer's drop-downs: the student's picture minus the teacher's, and the latter.

    Only a viewer's render thread is given them, and the teacher renders only while it is chosen, within the render that
    nerfstudio times and interrupts: pictures shrink in motion as the slower of the two demands.

    Args:
        config_path: The teacher's config.yml.
        load: Loads the teacher, or returns it.
    """

    def __init__(self, config_path: Path, load: Callable[[], Teacher]):
        super().__init__()
        self.load = load
        self.failed = False
        self.message = ViewerMarkdown("Teacher")
        self.message.show(f"*teacher* and *error* among the outputs show `{config_path}`.")

    def forward(
        self, camera: Cameras, obb_box: Optional[OrientedBox], rgb: Float[Tensor, "H W 3"]
    ) -> Dict[str, Tensor]:
        """The two pictures (H, W, 3), grey where nobody looks; nothing outside a viewer.

        Args:
            camera: What the viewer renders, of shape (1,).
            obb_box: Its crop box.
            rgb: The student's picture, cropped.
        """
        panel = control_panel()
        if panel is None:
            return {}
        shown = {panel.output_render, panel.split_output_render} if panel.split else {panel.output_render}
        teacher = self._render(camera, obb_box) if shown & {"error", "teacher"} else None
        if teacher is None:
            error = teacher = rgb.new_tensor(0.5).expand_as(rgb)
        else:
            error = error_picture(rgb, teacher)
        # The last one is the split's other half until something else is chosen, so the depth that nerfstudio is going
        # to add must not be.
        depth = {"gl_z_buf_depth": rgb[..., :1]} if panel.layer_depth else {}
        return {**depth, "error": error, "teacher": teacher}

    def _render(self, camera: Cameras, obb_box: Optional[OrientedBox]) -> Optional[Float[Tensor, "H W 3"]]:
        if self.failed:
            return None
        try:
            # The teacher's own renderers know the viewer's background, too, but not all of them.
            with background_color_override_context(None):
                rgb, accumulation, z = self._teacher().render_all(camera).to(camera.device).split((3, 1, 1), dim=-1)
        except RENDER_FAILURES as error:
            self.failed, reason = True, f"The viewer cannot show the teacher: {error or type(error).__name__}"
            self.message.show(reason)
            CONSOLE.print(reason)
            return None
        return crop(rgb, accumulation, z * ray_lengths(camera), camera, obb_box)[0]

    def _teacher(self) -> Teacher:
        # The viewer's trace function would make loading several times as slow, and break it off in mid-way.
        trace = sys.gettrace()
        sys.settrace(None)
        try:
            return self.load()
        finally:
            sys.settrace(trace)


def control_panel():
    """The control panel of a viewer, where its render thread asks; None for all others, whatever viewer is open."""
    return getattr(getattr(threading.current_thread(), "viewer", None), "control_panel", None)


# -- the stream of training data --------------------------------------------------------------------------------------


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
        held = min(statistics["frames"], statistics["capacity"])
        self.figures.show(
            f"Teacher views: {held:,} of {statistics['capacity']:,}, {statistics['frames']:,} so far  \n"
            f"Mean age: {statistics['pool_age']:.0f} steps  \n"
            f"Teacher's share of the time: {statistics['teacher_share']:.0%}  \n"
            f"Photos: {statistics['photos']}, {statistics['photo_share']:.0%} of each batch  \n"
            f"Memory: {statistics['bytes'] / 1e6:.0f} MB"
        )


# -- export -----------------------------------------------------------------------------------------------------------


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
        from mobiler2l_ns.export import ExportMobileR2L

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


# -- where the viewer opens -------------------------------------------------------------------------------------------


class StartView(ViewerControl):
    """Opens each browser where the photos were taken, turning about what they show.

    nerfstudio's own start is close to the world's origin: often inside the object, where a light field knows nothing.

    Args:
        model: The student.
    """

    def __init__(self, model: nn.Module):
        self.model = model

    def _setup(self, viewer) -> None:
        super()._setup(viewer)
        viewer.viser_server.on_client_connect(self._place)

    def _place(self, client) -> None:
        from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO

        orbit = viewing_range(self.model)
        position = orbit.pose(*orbit.middle())[:, 3]
        camera = client.camera
        # The position moves what is looked at, so it goes first.
        camera.position = (VISER_NERFSTUDIO_SCALE_RATIO * position).numpy()
        camera.look_at = (VISER_NERFSTUDIO_SCALE_RATIO * orbit.centre).numpy()
        camera.up_direction = orbit.up.numpy()
