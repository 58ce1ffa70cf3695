"""What the kernels of csrc/ execute: the machine code's counts where they can be known, and csrc/BUDGET.md."""

import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from ptx_tools import require_nvcc

sys.path.insert(0, str(Path(__file__).parents[2]))

import vmddpm_kernels as vk
from benchmarks.gpu.count import figures
from benchmarks.gpu.kernel_counts import DIRECTIONS, Shape, counted

BUDGET = Path(__file__).parents[2] / "csrc" / "BUDGET.md"


def test_a_kernel_without_branches_is_counted_exactly(run_ptx):
    """Of invert_table every thread that has an element runs the same straight piece of code; here all have."""
    import cuda_kernels
    from sass_counts import functions, join

    kernels = run_ptx("cuda", 90, mode="count")
    vk.cross_merge(torch.randn(1, 16, 16, 4, 3), False, False, backend="cuda")
    (launched,) = (one for one in kernels.launched if "invert_table" in one.name)
    kernel, _ = cuda_kernels.kernels(90)[launched.name]
    cubin = next(c for c in cuda_kernels.nvcc.build([90]) if c.source.name == "cross_scan.cu")
    function = functions(cubin.path)[kernel.name]
    executed = join(kernel, launched.counts, function, launched.blocks * launched.threads)
    # The one branch is for a division of 64 bits, which these sizes do not need.
    long_division = next(b for b in function.blocks if any(i.base == "CALL" for i in b.instructions))
    blocks = [block for block in function.blocks if block is not long_division]
    straight = [i for block in blocks for i in block.instructions if i.base != "NOP"]
    count = next(n for n, i in enumerate(straight) if i.base == "EXIT" and not i.predicated) + 1
    warps = launched.blocks * launched.threads // 32
    assert warps == 4 * 256 // 32
    assert executed.residual == 0
    assert executed.low == pytest.approx(executed.high, rel=1e-4)
    assert executed.total == pytest.approx(warps * count, rel=1e-4)
    assert executed.opcodes["STG"] == pytest.approx(warps)


def budget():
    """The table's rows by their shape and type: the most instructions per (step, state) in each direction."""
    pattern = r"^\| `([\d,]+)` \| (\w+) \| (forward|backward) \| ([\d.]+) \|"
    limits = defaultdict(dict)
    for shape, dtype, direction, limit in re.findall(pattern, BUDGET.read_text(), re.MULTILINE):
        limits[shape, dtype][direction] = float(limit)
    for (shape, dtype), most in limits.items():
        one = Shape.parse(shape)
        marks = [pytest.mark.slow] if one.length > 256 or one.states == 1 or dtype != "bfloat16" else []
        yield pytest.param(one, dtype, most, marks=marks, id=f"{shape} {dtype}")


@pytest.mark.parametrize(("shape", "dtype", "most"), list(budget()))
def test_the_whole_cost_is_within_budget(shape, dtype, most):
    require_nvcc(90)
    launches = counted(shape, dtype)
    found = {d: figures(shape, [one for one in launches if one.direction == d])["all"] for d in DIRECTIONS}
    assert set(most) == set(found)
    over = [f"{d}: {found[d]:.1f}, more than {most[d]:g}" for d in DIRECTIONS if found[d] > most[d]]
    assert not over, f"instructions per (step, state): {', '.join(over)}"


def test_the_budget_is_read():
    assert len(list(budget())) >= 10
