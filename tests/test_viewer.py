"""ns-viewer on a student, looked at in a real browser."""

import socket
import time
import urllib.request

import numpy as np
import pytest
from browser import Page, find_chromium
from commands import start

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="NO BROWSER: install Debian's chromium to test the viewer"),
]


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_viewer_shows_the_student(student, workspace):
    port = free_port()
    process = start("ns-viewer", "--load-config", student, "--viewer.websocket-port", port, cwd=workspace)
    try:
        deadline = time.time() + 120
        while time.time() < deadline:
            assert process.poll() is None, process.communicate()[0][-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5)
                break
            except OSError:
                time.sleep(0.5)
        with Page(f"http://127.0.0.1:{port}") as page:
            before = wait_for_picture(page)
            page.drag((400, 400), (550, 430))
            time.sleep(4)
            after = middle(page.screenshot())
        assert np.abs(after.astype(int) - before).mean() > 0.5, "moving the camera did not change the picture"
        assert process.poll() is None, "the viewer died while it was looked at"
    finally:
        process.kill()
        output = process.communicate()[0]
    assert "Traceback" not in output, output[-3000:]


def wait_for_picture(page: Page) -> np.ndarray:
    """The middle of the page, once a render has arrived: viser's empty scene is one flat colour with a few lines."""
    deadline = time.time() + 60
    while time.time() < deadline:
        picture = middle(page.screenshot())
        if len(np.unique(picture.reshape(-1, 3), axis=0)) > 100:
            return picture
        time.sleep(1)
    raise AssertionError("no render arrived in the browser within a minute")


def middle(picture: np.ndarray) -> np.ndarray:
    """The part of the page that the control panel does not cover."""
    return picture[100:700, 100:700]
