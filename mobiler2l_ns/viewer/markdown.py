"""Formatted text in nerfstudio's viewer."""

from nerfstudio.viewer.viewer_elements import ViewerElement


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
