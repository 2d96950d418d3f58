"""nerfstudio's real viewer and render thread, with an object where the browser would be."""

import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.configs.base_config import LocalWriterConfig, LoggingConfig, ViewerConfig
from nerfstudio.utils import writer
from nerfstudio.viewer.render_state_machine import RenderAction, RenderStateMachine
from nerfstudio.viewer.utils import CameraState
from nerfstudio.viewer.viewer import Viewer

from mobiler2l_ns.geometry import look_at


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class OpenViewer:
    """A viewer with one client, whose pictures come from a render thread of nerfstudio's.

    Args:
        pipeline: What it shows.
        base_dir: The run's folder, which must exist.
        size: Largest side of a picture.

    Attributes:
        lock: The trainer's.
        panel: nerfstudio's control panel.
    """

    def __init__(self, pipeline, base_dir: Path, size: int = 32):
        logging = LoggingConfig(local_writer=LocalWriterConfig(enable=False))
        writer.setup_local_writer(logging, max_iter=1)  # keeps how fast pictures are rendered
        self.lock, config = threading.Lock(), ViewerConfig(websocket_port=free_port())
        self.viewer = Viewer(config, base_dir / "viewer.log", base_dir, pipeline, train_lock=self.lock)
        self.viewer.step = 7
        self.panel = self.viewer.control_panel
        self.panel._layer_depth.value = False
        self.panel._max_res.value = size
        self.sent = []
        scene = SimpleNamespace(set_background_image=lambda picture, **options: self.sent.append(picture))
        self.machine = RenderStateMachine(
            self.viewer, 10.0, SimpleNamespace(camera=SimpleNamespace(aspect=1.0), scene=scene)
        )
        self.state = CameraState(0.6, 1.0, look(4.0), CameraType.PERSPECTIVE)
        self.viewer.get_camera_state = lambda client: self.state
        self.machine.start()
        self.render()  # after the first picture the drop-downs know their options

    def render(self) -> np.ndarray:
        """What the browser is sent when a camera stops moving: a coarse picture, then this one (H, W, 3)."""
        wanted = len(self.sent) + 2
        self.machine.state = "low_move"
        self.machine.action(RenderAction("static", self.state))
        deadline = time.time() + 60
        while len(self.sent) < wanted and time.time() < deadline:
            assert self.machine.is_alive(), "the render thread died"
            time.sleep(0.01)
        return self.sent[-1]

    def close(self) -> None:
        """Ends the render thread and the server."""
        self.machine.running = False
        self.machine.join()
        self.viewer.viser_server.stop()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def look(distance: float) -> torch.Tensor:
    """The pose of a camera that looks at the origin from a distance."""
    position = torch.tensor([[0.6, 0.0, 0.8]]) * distance
    return look_at(position, torch.zeros(1, 3), torch.tensor([0.0, 0.0, 1.0]))[0]


def text_of(element) -> str:
    """What a text in the viewer says, without the places where a path may break."""
    return element.gui_handle.content.replace("\N{ZERO WIDTH SPACE}", "")
