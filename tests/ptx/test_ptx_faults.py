"""Faults planted in the PTX: the problems find them, or it is known why not."""

from collections import Counter

import pytest
from ptx_tools import require_nvcc

# Parts of mangled names.
KERNELS = ("scan_forwardIfLi16ELb0", "scan_forwardIfLi4ELb0ELNS1_4WalkE0", "scan_backwardIfLi4ELb0",
           "combine_segmentsIf")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_planted_faults_are_found(kernel):
    require_nvcc(90)
    import cuda_kernels
    import ptx_faults

    hunt = ptx_faults.Hunt()
    (name,) = (name for name in cuda_kernels.kernels(90) if kernel in name)
    users = hunt.users()[name]
    compiled, _ = cuda_kernels.kernels(90)[name]
    planted = ptx_faults.sample(compiled, each=12, seed=0)
    found = hunt.search(name, users, planted)
    executed = hunt.executed(name, users)
    missed = {fault: ptx_faults.why_not(fault, compiled, executed) for fault, report in found.items() if not report}
    print(f"\n{kernel}: {len(planted) - len(missed)} of {len(planted)} found; not: {Counter(missed.values())}")
    # What no problem executes, and branches whose two ways give the same, are no failures of the checks.
    there = [fault for fault in planted if fault.line in executed and missed.get(fault) != ptx_faults.SAME_BOTH_WAYS]
    assert sum(fault not in missed for fault in there) >= 0.9 * len(there), missed
