"""Being asked to stop, at a moment that suits."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C (or SIGTERM, which schedulers send before they kill) is only remembered: the function
    tells whether there was one. The second Ctrl-C ends at once, as ever. In other threads than the main one, nothing
    is caught."""
    asked = threading.Event()

    def remember(number: int, frame: FrameType | None) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, remember) for number in signals}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
