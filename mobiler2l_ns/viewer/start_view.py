"""The first view of nerfstudio's viewer: where the photos were taken."""

from nerfstudio.viewer.viewer_elements import ViewerControl
from torch import nn

from mobiler2l_ns.student.viewing_range import viewing_range


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
