"""How many instructions the fused CPU kernel executes, counted by valgrind: a cost with no clock in it.

What runs under valgrind is one_scan.py, without torch, whose import alone would take minutes there. The instructions
of one call are the difference between two calls and one, so that nothing else counts. Valgrind has no AVX-512; the
kernels choose AVX2 or the baseline there."""

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

DRIVER = Path(__file__).with_name("one_scan.py")


def unavailable() -> str | None:
    """Why instructions cannot be counted here, if they cannot."""
    if shutil.which("valgrind") is None:
        return "no valgrind"
    return None if find_spec("vmddpm_kernels._native") else "the extension is not built"


def count(length: int) -> int:
    """Of one forward call of one image with `length` pixels."""
    one, two = (total(find_spec("vmddpm_kernels._native").origin, length, calls) for calls in (1, 2))
    return two - one


def total(native: str, length: int, calls: int) -> int:
    command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null",
               sys.executable, "-IS", str(DRIVER), native, str(length), str(calls)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(re.search(r"I +refs: +([\d,]+)", done.stderr).group(1).replace(",", ""))
