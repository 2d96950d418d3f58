"""The first view of nerfstudio's viewer: from where the photos were taken."""

from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO, Viewer
from nerfstudio.viewer.viewer_elements import ViewerControl
from viser import ClientHandle

from mobiler2l_ns.student.viewing_range import TrainedStudent, viewing_range


class StartView(ViewerControl):
    """Places the camera of each new browser in the middle of the student's viewing range.

    nerfstudio's own first view is close to the origin of the world. That is often inside the scene's surfaces, where
    the student was not trained.

    Args:
        model: The student.
    """

    def __init__(self, model: TrainedStudent):
        self.model = model

    def _setup(self, viewer: Viewer) -> None:
        super()._setup(viewer)
        viewer.viser_server.on_client_connect(self.place)

    def place(self, client: ClientHandle) -> None:
        """Moves the camera of a browser."""
        orbit = viewing_range(self.model)
        position = orbit.pose(*orbit.middle())[:, 3]
        camera = client.camera
        # Setting the position also moves the point that is looked at, so the position comes first.
        camera.position = (VISER_NERFSTUDIO_SCALE_RATIO * position).numpy()
        camera.look_at = (VISER_NERFSTUDIO_SCALE_RATIO * orbit.centre).numpy()
        camera.up_direction = orbit.up.numpy()
