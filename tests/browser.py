"""Headless Chromium, driven over its DevTools protocol: enough to open a page, wait, drag and take a picture."""

import base64
import io
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from typing import List, Optional

import numpy as np
from PIL import Image
from websockets.sync.client import connect


def find_chromium() -> Optional[str]:
    """The browser's path, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page:
    """One page in a browser of its own; closes with the ``with`` block.

    Args:
        url: What to open.
        size: Window width and height.
        flags: More Chromium flags.

    Attributes:
        events: What the browser reported so far, oldest first: method and params of each DevTools event.
    """

    def __init__(self, url: str, size=(1200, 800), flags=("--use-gl=swiftshader",)):
        self.profile = tempfile.mkdtemp()
        self.process = subprocess.Popen(
            [
                find_chromium(), "--headless=new", "--no-sandbox", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--enable-unsafe-swiftshader", "--remote-debugging-port=0", f"--user-data-dir={self.profile}",
                f"--window-size={size[0]},{size[1]}", *flags, url,
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.socket = connect(self._page_address(), max_size=None, open_timeout=30)
        self.count = 0
        self.events: List[dict] = []

    def _page_address(self) -> str:
        deadline = time.time() + 60
        while time.time() < deadline:
            try:
                with open(f"{self.profile}/DevToolsActivePort") as file:
                    port = file.readline().strip()
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=5) as reply:
                    pages = [p for p in json.load(reply) if p["type"] == "page"]
                if pages:
                    return pages[0]["webSocketDebuggerUrl"]
            except OSError:
                pass
            time.sleep(0.2)
        raise TimeoutError("Chromium did not start")

    def call(self, method: str, **parameters) -> dict:
        """One DevTools command and its result; events that arrive meanwhile are recorded."""
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=120))
            if message.get("id") == self.count:
                return message.get("result", {})
            self.events.append(message)

    def open(self, url: str) -> None:
        """Goes to another page, with every request and message of its console recorded."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=url)

    def evaluate(self, expression: str):
        """The value of a JavaScript expression; a promise is awaited.

        Raises:
            RuntimeError: The page threw.
        """
        reply = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in reply:
            raise RuntimeError(json.dumps(reply["exceptionDetails"])[:2000])
        return reply["result"].get("value")

    def complaints(self) -> List[str]:
        """Errors and warnings of the page's console, and exceptions that nobody caught."""
        found = []
        for event in self.events:
            method, details = event["method"], event["params"]
            if method == "Runtime.exceptionThrown":
                found.append(json.dumps(details["exceptionDetails"])[:2000])
            elif method == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning", "assert"):
                found.append(json.dumps(details["args"])[:2000])
            elif method == "Log.entryAdded" and details["entry"]["level"] in ("error", "warning"):
                found.append(json.dumps(details["entry"])[:2000])
        return found

    def requests(self) -> List[str]:
        """Addresses of everything that the page asked for."""
        sent = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [details["request"]["url"] for details in sent]

    def key(self, key: str) -> None:
        """Presses and releases a key, by its DOM name."""
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def screenshot(self) -> np.ndarray:
        """(H, W, 3) uint8 picture of the page."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))

    def click(self, element: str) -> None:
        """Clicks on the middle of the element that a JavaScript expression names, once there is one.

        Raises:
            TimeoutError: There is none for half a minute.
        """
        box = "(e => { e.scrollIntoView({block: 'center'}); e = e.getBoundingClientRect(); "
        box += f"return [e.x + e.width / 2, e.y + e.height / 2]; }})({element})"
        deadline = time.time() + 30
        while not self.evaluate(f"Boolean({element})"):
            if time.time() > deadline:
                raise TimeoutError(f"the page has no {element}")
            time.sleep(0.2)
        x, y = self.evaluate(box)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drag(self, start, end) -> None:
        """Drags with the left button from one point (x, y) to another."""
        mouse = {"button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=start[0], y=start[1], **mouse)
        for step in range(1, 11):
            x, y = (a + (b - a) * step / 10 for a, b in zip(start, end))
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, buttons=1, **mouse)
            time.sleep(0.05)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=end[0], y=end[1], **mouse)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.profile, ignore_errors=True)
