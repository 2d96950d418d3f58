"""The teacher beside the student in nerfstudio's viewer: the outputs ``teacher`` and ``error``."""

import sys
import threading
from pathlib import Path
from typing import Callable, Dict, Optional

from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components.renderers import background_color_override_context
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor, nn

from mobiler2l_ns.cameras import ray_lengths
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.student.crop_box import crop
from mobiler2l_ns.teacher.frozen import Teacher
from mobiler2l_ns.training.metrics import error_map
from mobiler2l_ns.viewer.markdown import ViewerMarkdown

RENDER_FAILURES = (UserError, OSError, RuntimeError, AssertionError)  # no run, no memory, no CUDA


class TeacherView(nn.Module):
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
            error = error_map(rgb, teacher)
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
