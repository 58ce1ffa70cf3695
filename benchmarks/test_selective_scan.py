"""The selective scan over sequences, in both layouts, against attention, scans of other projects, and plain PyTorch
through torch.compile. Compiling is not part of the time."""

import pytest
import torch

from benchmarks.implementations import COMPILED, SEQUENCES
from benchmarks.limits import Work
from benchmarks.problem import BOTH, FORWARD, Case

QUICK = [
    *(Case(4, 0, 1024, 384, states) for states in (16, 4, 1)),
    Case(4, 0, 1023, 384, 16),
    Case(1, 0, 4096, 192, 16),
    Case(4, 0, 1024, 384, 16, torch.bfloat16),
    *(Case(64, 0, length, 1536, states) for length in (1, 4) for states in (1, 16)),
]
MORE = [
    *(Case(1, 0, 65536, 192, states) for states in (1, 16)),
    *(Case(batch, 0, 256, 1536, 16) for batch in (1, 16)),
    *(Case(4, 0, 1024, 384, states, torch.float16) for states in (1, 16)),
]
CASES = {"quick": QUICK, "full": [*QUICK, *MORE]}
DIRECTIONS = (FORWARD, BOTH)
IMPLEMENTATIONS = tuple(SEQUENCES)


def test_selective_scan(harness, case, direction, implementation, measuring):
    if implementation in COMPILED and not measuring:
        pytest.skip("compiling takes too long to be a check")

    def work(name):
        return (Work.of_attention if name == "attention" else Work.of_scan)(case, direction)

    harness(SEQUENCES, case, direction, implementation, work=work)
