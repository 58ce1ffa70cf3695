"""What the kernels of csrc/ execute: the machine code's counts where they can be known, and csrc/BUDGET.md."""

import re
import sys
from pathlib import Path

import pytest
import torch
from ptx_tools import require_nvcc

sys.path.insert(0, str(Path(__file__).parents[2]))

import vmddpm_kernels as vk
from benchmarks.gpu.count import figures
from benchmarks.gpu.kernel_counts import Shape, counted

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
    """Rows of the table: a shape, the type, the direction, and the most instructions per (step, state)."""
    pattern = r"^\| `([\d,]+)` \| (\w+) \| (forward|backward) \| ([\d.]+) \|"
    for shape, dtype, direction, limit in re.findall(pattern, BUDGET.read_text(), re.MULTILINE):
        one = Shape.parse(shape)
        marks = [pytest.mark.slow] if one.length > 256 or one.states == 1 or dtype != "bfloat16" else []
        yield pytest.param(one, dtype, direction, float(limit), marks=marks, id=f"{shape} {dtype} {direction}")


_COUNTED = {}


@pytest.mark.parametrize(("shape", "dtype", "direction", "limit"), list(budget()))
def test_the_whole_cost_is_within_budget(shape, dtype, direction, limit):
    require_nvcc(90)
    if (shape, dtype) not in _COUNTED:
        _COUNTED[shape, dtype] = counted(shape, dtype)
    launches = [one for one in _COUNTED[shape, dtype] if one.direction == direction]
    all_of_them = figures(shape, launches)["all"]
    assert all_of_them <= limit, f"{all_of_them:.1f} instructions per (step, state): more than {limit:g}"
