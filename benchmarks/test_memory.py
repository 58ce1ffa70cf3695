"""The most memory one call needs beside its inputs: the fused operator, the pipeline of single operators, attention and
others' scans."""

import pytest

from benchmarks.memory import peak
from benchmarks.problem import BOTH, FORWARD, Case
from benchmarks.rivals import Missing

QUICK = [Case(1, 64, 64, 192, 16), Case(1, 128, 128, 192, 16)]
CASES = {"quick": QUICK, "full": [*QUICK, Case(1, 256, 256, 192, 16), Case(1, 128, 128, 192, 1)]}
DIRECTIONS = (FORWARD, BOTH)
CONTENDERS = ("ours", "ours unfused", "attention", "mamba.py", "VMamba", "reference")
TOO_SLOW = {"reference": 4096, "VMamba": 4096, "mamba.py": 16384, "attention": 16384}  # steps, at most, on a CPU


def test_memory(case, direction, contender, results, measuring, device):
    if measuring and device == "cpu" and case.length > TOO_SLOW.get(contender, case.length):
        pytest.skip("takes too long on a CPU")
    try:
        found = peak(contender, case if measuring else case.tiny(), direction, device)
    except Missing as why:
        results.miss(contender, str(why))
        pytest.skip(str(why))
    inputs = case.least_bytes - case.batch * case.length * case.channels * case.dtype.itemsize
    sizes = {"bytes": found, "input_bytes": inputs, "length": case.length}
    results.add("memory", "memory", case.name, direction, contender, **sizes)
