"""Sets torch's number of threads to the number of processors that other programs leave free.

A parallel part of a step ends when its last thread does, so a thread that shares its processor with another program
slows the others down. The number of threads changes rounding: runs that must repeat bit for bit keep it fixed.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

SECONDS = 2.0  # time between two changes of the number of threads


class IdleThreads:
    """A context in which `follow` sets torch's number of threads, at most the number at entry, which is restored at the
    end. The number does not change if OMP_NUM_THREADS is set or the system does not report its load.

    Args:
        clock: seconds.
        busy: seconds that the processors of this process have been busy, from an arbitrary origin; None if unknown.
        own: seconds of processor time that this process used.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, busy: Callable[[], float | None] | None = None,
        own: Callable[[], float] = time.process_time,
    ) -> None:  # fmt: skip
        self._max_threads, self._clock, self._own = torch.get_num_threads(), clock, own
        self._busy = busy or _busy_seconds
        self._set_by_user = "OMP_NUM_THREADS" in os.environ
        self._restart()

    def __enter__(self) -> "IdleThreads":
        return self

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._max_threads)

    def follow(self) -> None:
        """Set the number of threads, if the last choice was at least SECONDS ago."""
        passed = self._clock() - self._began
        if self._set_by_user or self._busy_before is None or passed < SECONDS:
            return
        busy = self._busy()
        if busy is None:
            self._restart()
            return
        others = (busy - self._busy_before - (self._own() - self._own_before)) / passed
        available = max(1, min(self._max_threads, round(len(_processors()) - others)))
        torch.set_num_threads(available)
        self._restart()

    def _restart(self) -> None:
        self._began, self._busy_before, self._own_before = self._clock(), self._busy(), self._own()


def _processors() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _busy_seconds() -> float | None:
    """Busy seconds of the processors that this process may use, from /proc/stat; None if the file is missing or
    unreadable. Some containers and old kernels report fewer kinds of time."""
    try:
        return _busy_ticks(Path("/proc/stat").read_text(encoding="ascii")) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None


def _busy_ticks(stat: str) -> int:
    ours = {f"cpu{number}" for number in _processors()}
    ticks = 0
    for name, *times in (line.split() for line in stat.splitlines() if line.startswith("cpu")):
        if name in ours:
            user, nice, system, _idle, *more = map(int, times[:8])
            ticks += user + nice + system + sum(more[1:])  # more[0] is the wait for disks, which is idle too
    return ticks
