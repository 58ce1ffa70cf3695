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
    requested = threading.Event()

    def record(number: int, frame: FrameType | None) -> None:
        if requested.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        requested.set()

    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, record) for number in signals}
    try:
        yield requested.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
