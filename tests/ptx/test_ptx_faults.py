"""The nightly cases find faults planted in the PTX."""

import pytest
from ptx_tools import require_nvcc

KERNELS, EACH = 2, 6  # kernels per family, guards and offsets per kernel; ptx_faults.py plants more


@pytest.mark.slow
def test_planted_faults_are_found():
    require_nvcc(90)
    import ptx_faults

    names = ptx_faults.sample_of_kernels(KERNELS, seed=0)
    hunt = ptx_faults.Hunt(names)
    results = [ptx_faults.searched(hunt, name, EACH, seed=0) for name in names]
    planted = [(r["kernel"], fault) for r in results for fault in r["faults"]]
    print(f"\n{ptx_faults.report(results)}", *(p for p in planted if not p[1]["found"]), sep="\n")
    assert hunt.kernels() == sorted(names)
    assert len(planted) > 350
    assert sum(bool(fault["found"]) for _, fault in planted) >= 0.9 * len(planted)


def test_what_cannot_be_told_apart_is_not_planted():
    """A barrier at the start or next to another one cannot be noticed, unless a wait for copies precedes it."""
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
