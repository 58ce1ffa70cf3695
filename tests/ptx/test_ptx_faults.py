"""Faults planted in the PTX: the nightly cases find them."""

from collections import Counter

import pytest
from ptx_tools import require_nvcc

EVERY = 8  # kernel; ptx_faults.py plants them in all


@pytest.mark.slow
def test_planted_faults_are_found():
    require_nvcc(90)
    import cuda_kernels
    import ptx_faults

    kernels = cuda_kernels.kernels(90)
    hunt = ptx_faults.Hunt(set(sorted(kernels)[::EVERY]).__contains__)
    counts, missed = Counter(), []
    for name in hunt.kernels():
        kernel, _ = kernels[name]
        planted = ptx_faults.sample(kernel, each=12, seed=0)
        found, executed = hunt.search(name, planted), hunt.executed(name)
        counts["planted"] += len(planted)
        counts["executed"] += sum(fault.line in executed for fault in planted)
        counts["found"] += sum(bool(report) for report in found.values())
        missed += [f"{name}: {f}: {ptx_faults.why_not(f, executed)}" for f, report in found.items() if not report]
    print(f"\n{counts}", *missed, sep="\n")
    assert len(hunt.kernels()) == len(sorted(kernels)[::EVERY])
    assert counts["found"] >= 0.9 * counts["executed"]
    assert counts["executed"] >= 0.9 * counts["planted"]


def test_what_cannot_be_told_apart_is_not_planted():
    """A barrier at the start, or with another beside it; but not one that a wait for copies comes before."""
    from ptx import parse
    from ptx_faults import equivalent, faults

    barrier, wait = "bar.sync 0;", "cp.async.wait_group 0;"
    load, store = "ld.shared.u32 %r1, [0];", "st.shared.u32 [0], %r1;"
    expected = {
        (barrier, load, barrier, "add.s32 %r1, %r1, 1;", barrier, store): [True, True, True],
        (store, barrier, wait, barrier, store): [True, False],
        (store, barrier, load): [False],
    }
    for body, needless in expected.items():
        text = "\n".join(body)
        (kernel,) = parse(f".entry one()\n{{\n.reg .b32 %r<2>;\n{text}\nret;\n}}\n")
        assert [bool(equivalent(fault, kernel)) for fault in faults(kernel)["barrier"]] == needless
