"""The share of the processors that other programs used during a measurement."""

import os
import time
from pathlib import Path

BUSY = 0.1  # from this share on, results are marked as from a busy machine
TICK = os.sysconf("SC_CLK_TCK")


def busy_now(seconds: float = 1.0) -> float | None:
    """The share of all processors that other programs use in the next `seconds`."""
    others = Others()
    time.sleep(seconds)
    return others.share()


class Others:
    def __init__(self) -> None:
        self.begun, self.busy, self.own = time.monotonic(), busy_seconds(), own_seconds()

    def share(self) -> float | None:
        """The share of all processors that others used since this object was made; None if unknown."""
        if self.busy is None:
            return None
        taken = busy_seconds() - self.busy - (own_seconds() - self.own)
        return max(0.0, taken / (os.cpu_count() * (time.monotonic() - self.begun)))


def busy_seconds() -> float | None:
    """Busy seconds of all processors since the system started; None if unknown."""
    if not Path("/proc/stat").exists():
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICK


def own_seconds() -> float:
    """CPU seconds of this process and its finished children; processes of the memory suite are not among them."""
    return sum(os.times()[:4])
