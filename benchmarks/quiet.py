"""How much of the processors other programs took while this one measured: what its figures are worth."""

import os
import time
from pathlib import Path

BUSY = 0.1  # the share from which figures are marked as those of a busy machine
TICK = os.sysconf("SC_CLK_TCK")


def busy_now(seconds: float = 1.0) -> float | None:
    """The share of all processors that other programs take in so many seconds from now."""
    others = Others()
    time.sleep(seconds)
    return others.share()


class Others:
    def __init__(self) -> None:
        self.begun, self.busy, self.own = time.monotonic(), busy_seconds(), own_seconds()

    def share(self) -> float | None:
        """Of all processors, since this object was made; None where the system does not say."""
        if self.busy is None:
            return None
        taken = busy_seconds() - self.busy - (own_seconds() - self.own)
        return max(0.0, taken / (os.cpu_count() * (time.monotonic() - self.begun)))


def busy_seconds() -> float | None:
    """Of all processors together since the system started, by whomever."""
    if not Path("/proc/stat").exists():
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICK


def own_seconds() -> float:
    """Of this process and of those it waited for, which those of the memory suite are not."""
    return sum(os.times()[:4])
