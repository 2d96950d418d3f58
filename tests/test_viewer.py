"""nerfstudio's viewer of a student, looked at in a real browser: ns-viewer, and ns-train meanwhile."""

import time
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest
from browser import Page, find_chromium
from commands import TINY, start
from open_viewer import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="NO BROWSER: install Debian's chromium to test the viewer"),
]


@contextmanager
def page_of(command: str, *arguments, cwd):
    """The viewer of a command, in a browser; the command must outlive the page, and say nothing of errors."""
    port = free_port()
    process = start(command, *arguments, "--viewer.websocket-port", port, cwd=cwd)
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
            yield page
        assert process.poll() is None, "the viewer died while it was looked at"
    finally:
        process.kill()
        output = process.communicate()[0]
    assert "Traceback" not in output, output[-3000:]


def test_viewer_shows_the_student(student, workspace):
    """A picture, another one from elsewhere, the teacher's and their difference, and an export by button."""
    target = workspace / "exports" / student.parents[2].name
    with page_of("ns-viewer", "--load-config", student, cwd=workspace) as page:
        before = wait_for_picture(page)
        page.drag((400, 400), (550, 430))
        time.sleep(4)
        after = middle(page.screenshot())
        assert difference(after, before) > 0.5, "moving the camera did not change the picture"
        choose_output(page, "teacher")
        teacher = wait_for_change(page, after)
        choose_output(page, "error")
        wait_for_change(page, teacher)
        # The first button of that name belongs to a tab of nerfstudio's.
        page.click("[...document.querySelectorAll('button')].filter(b => b.innerText === 'Export').at(-1)")
        wait_for(lambda: "Written to" in page.evaluate("document.body.innerText"), "the export did not end")
    assert {path.name for path in target.iterdir()} == {"onnx", "snap", "report.json"}


def test_a_training_can_be_watched(workspace, capture):
    """Figures of the data arrive, and its sliders are there."""
    arguments = [
        *TINY,
        "--vis",
        "viewer",
        "--data",
        capture,
        "--max-num-iterations",
        "100000",
        "--timestamp",
        "watched",
    ]
    with page_of("ns-train", "mobiler2l-small", *arguments, cwd=workspace) as page:
        wait_for_picture(page)
        wait_for(lambda: "Mean age" in page.evaluate("document.body.innerText"), "no figures of the pool")
        for label in ("Photo share", "Teacher share", "Filling share"):
            assert page.evaluate(f"Boolean({labelled(label)})"), f"no slider for {label}"


def choose_output(page: Page, name: str) -> None:
    """Picks an output in nerfstudio's drop-down; those of other drop-downs are on the page, too, but hidden."""
    page.click(labelled("Output type"))
    options = "[...document.querySelectorAll('[role=option]')].filter(o => o.offsetParent)"
    page.click(f"{options}.find(o => o.innerText === '{name}')")


def wait_for_change(page: Page, before: np.ndarray) -> np.ndarray:
    """The middle of the page once it is no longer what it was."""
    wait_for(lambda: difference(middle(page.screenshot()), before) > 0.5, "the picture stayed as it was")
    return middle(page.screenshot())


def labelled(text: str) -> str:
    """JavaScript for the input that a label belongs to."""
    return (
        f"document.getElementById([...document.querySelectorAll('label')].find(l => l.innerText === '{text}')?.htmlFor)"
    )


def wait_for(condition, complaint: str) -> None:
    """Until a condition holds, at most two minutes."""
    deadline = time.time() + 120
    while not condition():
        assert time.time() < deadline, complaint
        time.sleep(0.5)


def difference(picture: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference, 0..255."""
    return np.abs(picture.astype(int) - other).mean()


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
