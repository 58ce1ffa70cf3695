"""The fused operator against implementations without compiled kernels: this repository's reference, one step at a time,
a parallel scan in plain PyTorch, and mamba.py's scan in the pipeline of separate operators."""

from benchmarks.implementations import WITHOUT_KERNELS
from benchmarks.limits import Work
from benchmarks.problem import BOTH, FORWARD, Case

QUICK = [Case(1, 32, 32, 192, 1), Case(1, 32, 32, 192, 16), Case(1, 16, 16, 384, 16)]
CASES = {"quick": QUICK, "full": [*QUICK, Case(4, 32, 32, 192, 16), Case(4, 64, 64, 96, 1), Case(4, 64, 64, 96, 16)]}
DIRECTIONS = (FORWARD, BOTH)
IMPLEMENTATIONS = tuple(WITHOUT_KERNELS)


def test_without_kernels(harness, case, direction, implementation):
    harness(WITHOUT_KERNELS, case, direction, implementation, work=lambda _: Work.of_scan(case, direction))
