"""Limits the spinning of idle OpenMP threads, for machines that run other programs too.

A training step on a CPU has about a thousand parallel regions. Between them, the OpenMP runtime lets idle threads spin
for milliseconds. On a busy machine a spinning thread can hold the core that the working thread needs, and a step takes
ten times as long.
"""

import os
import sys

# Spins before an idle thread of GNU's runtime sleeps. Training steps per second of the demo on two cores, with this
# setting and with the runtime's default: 7.3 and 7.1 for one process; 5.8 and 3.3 for two at once, together. With 100
# spins: 5.4 for one, 6.9 for two.
SPINS = 1000
# Variables with the user's own choice, for the runtimes of GNU, LLVM and Intel.
_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def sleep_while_waiting() -> None:
    """Make idle threads sleep early, unless the environment already sets how they wait.

    The runtime, which the kernels share with torch, reads the environment once, when torch loads it.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _CHOICES):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
