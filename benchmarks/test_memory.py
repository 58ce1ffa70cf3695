"""Peak memory of one call without its inputs: the fused operator, the pipeline of separate operators, attention, and
scans of other projects."""

import pytest

from benchmarks.baselines import Missing
from benchmarks.memory import peak
from benchmarks.problem import BOTH, FORWARD, Case

QUICK = [Case(1, 64, 64, 192, 16), Case(1, 128, 128, 192, 16)]
CASES = {"quick": QUICK, "full": [*QUICK, Case(1, 256, 256, 192, 16), Case(1, 128, 128, 192, 1)]}
DIRECTIONS = (FORWARD, BOTH)
IMPLEMENTATIONS = ("ours", "ours unfused", "attention", "mamba.py", "parallel scan", "VMamba")
LONGEST = {"attention": 16384, "ours": 1 << 20, "ours unfused": 1 << 20}  # steps at most on a CPU; 4096 for others


def test_memory(case, direction, implementation, results, measuring, device):
    if measuring and device == "cpu" and case.length > LONGEST.get(implementation, 4096):
        pytest.skip("takes too long on a CPU")
    try:
        found = peak(implementation, case if measuring else case.tiny(), direction, device)
    except Missing as why:
        results.miss(implementation, str(why))
        pytest.skip(str(why))
    inputs = case.least_bytes - case.batch * case.length * case.channels * case.dtype.itemsize
    sizes = {"bytes": found, "input_bytes": inputs, "length": case.length}
    results.add("memory", "memory", case.name, direction, implementation, **sizes)
