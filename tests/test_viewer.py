"""nerfstudio's viewer of a student in a real browser: with ns-viewer, and while ns-train runs."""

import functools
import time
import urllib.request
from contextlib import contextmanager
from typing import Callable

import numpy as np
import pytest
from browser import drag, screenshot
from commands import TINY, start
from open_viewer import free_port
from playwright.sync_api import Page
from system_packages import needs

pytestmark = [pytest.mark.slow, pytest.mark.browser, needs("chromium")]


@pytest.fixture
def page_of(new_page):
    """Opens the viewer of a command in a browser."""
    return functools.partial(open_command, new_page)


@contextmanager
def open_command(new_page, command: str, *arguments, cwd):
    """Runs a command and opens its viewer; the command must outlive the page and print no traceback."""
    port = free_port()
    process = start(command, *arguments, "--viewer.websocket-port", port, cwd=cwd, network=True)
    try:
        deadline = time.time() + 120
        while time.time() < deadline:
            assert process.poll() is None, process.communicate()[0][-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5)
                break
            except OSError:
                time.sleep(0.5)
        with new_page() as page:
            page.goto(f"http://127.0.0.1:{port}")
            yield page
        assert process.poll() is None, "the viewer ended while the page was open"
    finally:
        process.kill()
        output = process.communicate()[0]
    assert "Traceback" not in output, output[-3000:]


def test_viewer_shows_the_student(page_of, student, workspace):
    """A picture, another one from elsewhere, the teacher's and their difference, and an export by button."""
    target = workspace / "exports" / student.parents[2].name
    with page_of("ns-viewer", "--load-config", student, cwd=workspace) as page:
        before = wait_for_picture(page)
        drag(page, (400, 400), (550, 430))
        time.sleep(4)
        after = middle(page)
        assert difference(after, before) > 0.5, "moving the camera did not change the picture"
        choose_output(page, "teacher")
        teacher = wait_for_change(page, after)
        choose_output(page, "error")
        wait_for_change(page, teacher)
        page.get_by_role("button", name="Export", exact=True).last.click()
        page.get_by_text("Written to").wait_for(timeout=120_000)
    assert {path.name for path in target.iterdir()} == {"onnx", "snap", "report.json"}


def test_a_training_can_be_watched(page_of, workspace, capture):
    """Figures of the data arrive, and its sliders are there."""
    arguments = [*TINY, "--vis", "viewer", "--data", capture]
    arguments += ["--max-num-iterations", "100000", "--timestamp", "watched"]
    with page_of("ns-train", "mobiler2l-small", *arguments, cwd=workspace) as page:
        wait_for_picture(page)
        page.get_by_text("Mean age").wait_for(timeout=120_000)
        for label in ("Photo share", "Teacher share", "Filling share"):
            slider = page.get_by_text(label, exact=True).get_attribute("for")  # no <input>, so get_by_label misses it
            assert page.locator(f"[id='{slider}']").count() == 1, f"no slider for {label}"


def choose_output(page: Page, name: str) -> None:
    """Picks an output in nerfstudio's drop-down."""
    page.get_by_role("textbox", name="Output type", exact=True).click()
    page.get_by_role("option", name=name, exact=True).click()


def wait_for_change(page: Page, before: np.ndarray) -> np.ndarray:
    """The middle of the page, once it differs from what it was."""
    wait_for(lambda: difference(middle(page), before) > 0.5, "the picture stayed as it was")
    return middle(page)


def wait_for(condition: Callable[[], bool], complaint: str) -> None:
    """Returns when a condition holds; fails after two minutes."""
    deadline = time.time() + 120
    while not condition():
        assert time.time() < deadline, complaint
        time.sleep(0.5)


def difference(picture: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference, 0..255."""
    return np.abs(picture.astype(int) - other).mean()


def wait_for_picture(page: Page) -> np.ndarray:
    """The middle of the page, once a render has arrived: viser's empty scene is one flat colour with a few lines."""
    wait_for(lambda: len(np.unique(middle(page) @ [1, 256, 65536])) > 100, "no render arrived in the browser")
    return middle(page)


def middle(page: Page) -> np.ndarray:
    """The part of the page (600, 600, 3) that the control panel does not cover."""
    return screenshot(page)[100:700, 100:700]
