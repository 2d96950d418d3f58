"""SIGTERM, with which clusters and containers announce that they will kill a run: it ends after a last checkpoint."""

import signal
import threading
from contextlib import contextmanager
from typing import Callable, Iterator

EXIT_CODE = 128 + signal.SIGTERM


@contextmanager
def on_termination(request: Callable[[], None]) -> Iterator[None]:
    """Inside, SIGTERM calls a function instead of ending the process at once.

    Args:
        request: Called between two lines of the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python takes signals in the main thread alone
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: request())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
