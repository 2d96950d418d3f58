"""The teacher beside the student in nerfstudio's viewer: the outputs ``teacher`` and ``error``."""

import sys
import threading
import time
from pathlib import Path
from typing import Callable, Dict, Optional

from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components.renderers import background_color_override_context
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer.control_panel import ControlPanel
from torch import Tensor, nn

from mobiler2l_ns.cameras import ray_lengths
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.student.crop_box import crop
from mobiler2l_ns.teacher.frozen import Teacher
from mobiler2l_ns.training.metrics import error_map
from mobiler2l_ns.viewer.markdown import ViewerMarkdown

RENDER_FAILURES = (UserError, OSError, RuntimeError, AssertionError)  # no run, no memory, no CUDA
RETRY_SECONDS = 10.0


class TeacherView(nn.Module):
    """Adds ``error`` (the student's view minus the teacher's) and ``teacher`` to the outputs of the viewer.

    Only the viewer's render thread gets these outputs. The teacher renders only while one of them is selected, inside
    the render that nerfstudio times and interrupts. So the viewer's resolution during motion depends on the slower of
    the two models.

    After a failure both outputs are grey. The teacher is tried again when one of them is selected anew, or with the
    first render after RETRY_SECONDS.

    Args:
        config_path: The teacher's config.yml.
        load: Loads the teacher, or returns it if it is loaded.
        clock: Returns seconds.
    """

    def __init__(self, config_path: Path, load: Callable[[], Teacher], clock: Callable[[], float] = time.monotonic):
        super().__init__()
        self.load, self.clock = load, clock
        self.help = f"The outputs *teacher* and *error* show `{config_path}`."
        self.message = ViewerMarkdown("Teacher")
        self.message.show(self.help)
        self.failure: Optional[str] = None  # message of the last attempt to render, None if it succeeded
        self._next_attempt = 0.0  # by the clock
        self._was_selected = False

    def forward(
        self, camera: Cameras, obb_box: Optional[OrientedBox], rgb: Float[Tensor, "H W 3"]
    ) -> Dict[str, Float[Tensor, "H W C"]]:
        """The outputs ``error`` and ``teacher`` (H, W, 3), grey unless one of them is selected.

        Args:
            camera: What the viewer renders, of shape (1,).
            obb_box: Its crop box.
            rgb: The student's view, cropped.

        Returns:
            Nothing outside the viewer's render thread. If the viewer composites by depth, there is also a placeholder
            ``gl_z_buf_depth`` (H, W, 1).
        """
        panel = control_panel()
        if panel is None:
            return {}
        shown = {panel.output_render, panel.split_output_render} if panel.split else {panel.output_render}
        teacher = self._attempt(camera, obb_box) if self._select(bool(shown & {"error", "teacher"})) else None
        if teacher is None:
            error = teacher = rgb.new_tensor(0.5).expand_as(rgb)
        else:
            error = error_map(rgb, teacher)
        # The viewer's split shows the last output by default. nerfstudio adds its depth after ours unless it is there.
        depth = {"gl_z_buf_depth": rgb[..., :1]} if panel.layer_depth else {}
        return {**depth, "error": error, "teacher": teacher}

    def _select(self, selected: bool) -> bool:
        if selected and not self._was_selected:
            self._next_attempt = 0.0
        self._was_selected = selected
        return selected

    def _attempt(self, camera: Cameras, obb_box: Optional[OrientedBox]) -> Optional[Float[Tensor, "H W 3"]]:
        """The teacher's view; None after a failure, which is reported, and until the next attempt is due."""
        if self.failure is not None and self.clock() < self._next_attempt:
            return None
        try:
            teacher = self.render(camera, obb_box)
        except RENDER_FAILURES as error:
            self._next_attempt = self.clock() + RETRY_SECONDS
            failure = f"The viewer cannot show the teacher: {error or type(error).__name__}"
            if failure != self.failure:
                CONSOLE.print(failure)
            self.failure = failure
            self.message.show(failure)
            return None
        if self.failure is not None:
            self.failure = None
            self.message.show(self.help)
        return teacher

    def render(self, camera: Cameras, obb_box: Optional[OrientedBox]) -> Float[Tensor, "H W 3"]:
        """The teacher's view of a camera of shape (1,), with the viewer's crop box and background.

        Raises:
            UserError: The teacher's run cannot be loaded.
        """
        # Some renderers of teachers use the viewer's background, too: crop() below must be the only one.
        with background_color_override_context(None):  # pyright: ignore[reportArgumentType]
            outputs = self._loaded().render_all(camera).to(camera.device)
        rgb, accumulation, z = outputs.split((3, 1, 1), dim=-1)
        return crop(rgb, accumulation, z * ray_lengths(camera), camera, obb_box)[0]

    def _loaded(self) -> Teacher:
        # The viewer's trace function would make loading several times slower, and could interrupt it.
        trace = sys.gettrace()
        sys.settrace(None)
        try:
            return self.load()
        finally:
            sys.settrace(trace)


def control_panel() -> Optional[ControlPanel]:
    """The viewer's control panel in the viewer's render thread; None in all other threads."""
    return getattr(getattr(threading.current_thread(), "viewer", None), "control_panel", None)
