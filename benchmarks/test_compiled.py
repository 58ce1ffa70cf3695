"""The reference through torch.compile, which unrolls the loop over the steps. Compile time grows with the length, so
sequences are short; it is not part of the measured time."""

import pytest

from benchmarks.implementations import compiled_reference, fused, reference
from benchmarks.limits import Work
from benchmarks.problem import FORWARD, Case

MAKERS = {"ours": fused, "reference": reference, "compiled reference": compiled_reference}
CASES = {"quick": [Case(4, 4, 4, 768, 16)], "full": [Case(4, 4, 4, 768, 16), Case(4, 8, 8, 768, 16)]}
DIRECTIONS = (FORWARD,)
IMPLEMENTATIONS = tuple(MAKERS)


def test_compiled(harness, case, direction, implementation, measuring):
    if not measuring:
        pytest.skip("compiling takes too long to be a check")
    harness(MAKERS, case, direction, implementation, work=lambda _: Work.of_scan(case, direction))
