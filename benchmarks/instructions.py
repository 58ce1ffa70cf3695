"""How many instructions the fused CPU kernel executes, counted by valgrind: a cost with no clock in it.

What runs under valgrind is this file, `python -m benchmarks.instructions NATIVE LENGTH CALLS`: the compiled extension
without torch, whose import alone would take minutes there. The instructions of one call are the difference between two
calls and one, so that nothing else counts. Valgrind has no AVX-512; the kernels choose AVX2 or the baseline there."""

import re
import shutil
import subprocess
import sys
from array import array
from importlib.machinery import ExtensionFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_loader
from pathlib import Path

CHANNELS, STATES, ROUTES = 32, 16, 4
ROOT = Path(__file__).resolve().parents[1]


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
    command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null", sys.executable, "-S",
               "-m", "benchmarks.instructions", native, str(length), str(calls)]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return int(re.search(r"I +refs: +([\d,]+)", done.stderr).group(1).replace(",", ""))


def main(native: str, length: int, calls: int) -> None:
    loader = ExtensionFileLoader("vmddpm_kernels._native", native)
    module = module_from_spec(spec_from_loader(loader.name, loader))
    loader.exec_module(module)

    def floats(count: int, value: float) -> array:
        return array("f", [value]) * count

    pixels = length * CHANNELS
    x, y = floats(pixels, 0.5), floats(pixels, float("nan"))
    delta = floats(ROUTES * pixels, -3.0)
    B, C = (floats(ROUTES * length * STATES, value) for value in (0.5, 0.25))
    A, D = floats(ROUTES * CHANNELS * STATES, -1.0), floats(ROUTES * CHANNELS, 1.0)
    last_state = floats(ROUTES * CHANNELS * STATES, float("nan"))
    table = array("i", range(length)) * ROUTES

    def address(values: array) -> int:
        return values.buffer_info()[0]

    def view(values: array, *strides: int) -> tuple[int, int, tuple[int, ...]]:
        return address(values), 0, strides

    arguments = {
        "x": view(x, pixels, 0, CHANNELS, 1),
        "delta": view(delta, ROUTES * pixels, pixels, CHANNELS, 1),
        "B": view(B, ROUTES * length * STATES, length * STATES, STATES, 1),
        "C": view(C, ROUTES * length * STATES, length * STATES, STATES, 1),
        "A": address(A),
        "D": address(D),
        "delta_bias": address(D),
        "initial_state": 0,
        "table": address(table),
    }
    sizes = (1, ROUTES, length, CHANNELS, STATES, False, True, False, True, 1)
    for _ in range(calls):
        module.scan_forward(sizes, arguments, view(y, pixels, 0, CHANNELS, 1), address(last_state), 0)
    assert y[0] == y[0] and y[-1] == y[-1], "the kernel left an element unwritten"


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
