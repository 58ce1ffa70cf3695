"""Instructions executed by the kernels of csrc/: machine code counts that are known exactly, and csrc/BUDGET.md."""

import re
import struct
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from ptx_tools import require_nvcc

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gpu.count import figures
from benchmarks.gpu.kernel_counts import DIRECTIONS, Shape, counted

BUDGET = Path(__file__).parents[2] / "csrc" / "BUDGET.md"


def test_a_kernel_without_branches_is_counted_exactly():
    """Each warp executes every machine instruction up to the end once."""
    require_nvcc(90)
    import compile as nvcc
    from ptx import parse
    from ptx_launcher import Launcher, arguments_of, tagged
    from sass_counts import functions, join

    (cubin,) = nvcc.build([90], [Path(__file__).with_name("straight.cu")])
    (kernel,) = parse(cubin.ptx.read_text())
    launcher = Launcher(kernel, "straight.cu", "count")
    given, out = torch.rand(3 * 64) / 9, torch.empty(3 * 64)
    arguments = arguments_of(("out", out), ("in", given))
    pointers = tagged(struct.pack("<2Q", out.data_ptr(), given.data_ptr()), arguments)
    launcher.launch("straight", pointers, arguments, blocks=3, threads=64, shared_bytes=0)
    expected = given.view(3, 64)[:, torch.arange(64) ^ 33].flatten()
    for _ in range(5):
        expected = expected * expected + torch.exp2(expected)
    torch.testing.assert_close(out, expected)

    (function,) = functions(cubin.path).values()
    executed = join(kernel, launcher.counts(), function, 3 * 64)
    straight = [i for i in function.instructions if i.base != "NOP"]
    count = next(n for n, i in enumerate(straight) if i.base == "EXIT") + 1
    assert executed.residual == 0
    assert executed.low == pytest.approx(executed.high, rel=1e-9)
    assert executed.total == pytest.approx(6 * count, rel=1e-9)
    every_warp = {opcode: round(n) for opcode, n in executed.opcodes.items()}
    assert [every_warp[o] for o in ("MUFU.EX2", "BAR", "LDG", "STG", "LDS", "STS")] == [5 * 6, 6, 6, 6, 6, 6]


def budget():
    """The table's limits on instructions per (step, state) in each direction, by shape and dtype."""
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
