"""Formatted text in nerfstudio's viewer."""

from typing import Optional

from nerfstudio.viewer.viewer_elements import ViewerElement
from viser import GuiMarkdownHandle, ViserServer


class ViewerMarkdown(ViewerElement[str]):
    """Formatted text that the user cannot change."""

    gui_handle: Optional[GuiMarkdownHandle]

    def __init__(self, name: str):
        super().__init__(name)
        self.content = ""

    def _create_gui_handle(self, viser_server: ViserServer) -> None:
        self.gui_handle = viser_server.gui.add_markdown(self.content)

    def install(self, viser_server: ViserServer) -> None:
        self._create_gui_handle(viser_server)

    def show(self, content: str) -> None:
        """Replaces the text; a line may break after each slash of a path."""
        self.content = content = content.replace("/", "/\N{ZERO WIDTH SPACE}")
        if self.gui_handle is not None:
            self.gui_handle.content = content
