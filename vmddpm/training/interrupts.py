"""Stop requests (Ctrl-C, SIGTERM) that wait for the end of a training step."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C (or SIGTERM, which schedulers send before they kill) is only recorded, and the yielded
    function returns True from then on. A second Ctrl-C raises KeyboardInterrupt. Outside the main thread no signal is
    caught."""
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
