"""The limits of this processor, measured by machine_limits.cpp, which is compiled at its first use.

`python benchmarks/machine_limits.py` prints them. They show how close a kernel, measured in the same run, comes to the
limits of the machine.
"""

import atexit
import json
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).resolve().with_suffix(".cpp")
FLAGS = "-O3 -std=c++17 -march=native -ffp-contract=fast -fno-math-errno -fno-strict-aliasing -pthread -Wno-psabi"


@cache
def program() -> Path:
    """The compiled program, in a temporary folder that this process removes."""
    folder = tempfile.mkdtemp(prefix="vmddpm-limits-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder, "machine_limits")
    subprocess.run([os.environ.get("CXX", "g++"), *FLAGS.split(), SOURCE, "-o", path], check=True)
    return path


@cache
def limits(*threads: int) -> dict[int, dict[str, float]]:
    """Number of threads -> their joint rates: copy and copy_non_temporal in bytes/s, exp2 and softplus in values/s,
    forward_16, backward_16, forward_1 and backward_1 (recurrences of 16 states or one) in elements/s."""
    command = [program(), *map(str, threads)]
    measured = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {count: measured[str(count)] for count in threads}


def main() -> None:
    counts = sorted({1, os.cpu_count() or 1})
    table = limits(*counts)
    print("limit (1e9 bytes, values or elements a second)", *(f"{count} threads" for count in counts), sep="\t")
    for name in table[counts[0]]:
        print(name.ljust(46), *(f"{table[count][name] / 1e9:.3f}" for count in counts), sep="\t")


if __name__ == "__main__":
    main()
