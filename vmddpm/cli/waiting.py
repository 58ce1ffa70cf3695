"""How threads wait for each other on a machine that others use too.

A training step on a CPU is some thousand parallel parts. The OpenMP runtime lets threads that wait for the next one
spin for milliseconds; beside another program a spinning thread holds the very processor that the thread it waits for
needs, and a step takes ten times as long.
"""

import os
import sys

# Looks before a thread of GNU's runtime sleeps. Steps a second of the demo's training on two cores: alone 7.3, and 7.1
# by the runtime's own choice; two at once, together, 5.8, and 3.3. A tenth of the looks: two 6.9, alone 5.4.
SPINS = 1000
# The user's own choice, for the runtimes of GNU, LLVM and Intel.
_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def sleep_while_waiting() -> None:
    """Has threads that wait give up their processor soon, unless the environment says how they are to wait.

    The runtime reads the environment once, when torch loads it; the kernels use the same one.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _CHOICES):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
