"""Headless Chromium, driven by Playwright: what the tests of the viewer and of the web page share."""

import contextlib
import io
import shutil
from typing import Iterator, List, Optional, Tuple

import numpy as np
from PIL import Image
from playwright.sync_api import BrowserType, ConsoleMessage, Page


def find_chromium() -> Optional[str]:
    """Path of the browser that is installed, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextlib.contextmanager
def new_page(chromium: BrowserType, flags: Tuple[str, ...] = ("--use-gl=swiftshader",)) -> Iterator[Page]:
    """An empty page of 1200 x 800 pixels in a browser of its own.

    Args:
        chromium: Playwright's launcher.
        flags: Additional flags of Chromium.
    """
    browser = chromium.launch(executable_path=find_chromium(), args=["--disable-quic", *flags])
    try:
        yield browser.new_page(viewport={"width": 1200, "height": 800})
    finally:
        browser.close()


class PageLog:
    """What a page does from now on.

    Attributes:
        complaints: Errors and warnings of its console, and exceptions that nobody caught.
        requests: Addresses of everything that it asked for.
    """

    def __init__(self, page: Page):
        self.complaints: List[str] = []
        self.requests: List[str] = []
        page.on("console", self._add_message)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        page.on("request", lambda request: self.requests.append(request.url))

    def _add_message(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning", "assert"):
            self.complaints.append(f"{message.type}: {message.text} ({message.location})")


def screenshot(page: Page) -> np.ndarray:
    """Pixels (H, W, 3) of the page as bytes."""
    return np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))


def drag(page: Page, start: Tuple[float, float], end: Tuple[float, float]) -> None:
    """Drags with the left button from one point (x, y) to another."""
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=10)
    page.mouse.up()


def roll_wheel(page: Page, delta: float, point: Tuple[float, float] = (600, 400)) -> None:
    """Turns the mouse wheel by a number of pixels over a point (x, y)."""
    page.mouse.move(*point)
    page.mouse.wheel(0, delta)
