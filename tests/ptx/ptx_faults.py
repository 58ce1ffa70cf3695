"""Faults planted in the PTX of the CUDA kernels, and the problems that are to find them.

A kernel is compiled once with every fault in it, of which one at a time is switched on (FAULT in machine.h):

    barrier   a bar.sync is left out
    wait      one more group of copies may be under way after a cp.async.wait_group
    guard     a predicate is inverted
    offset    an address in shared or global memory is off by 4 bytes

    python tests/ptx/ptx_faults.py [--seed 0] [--each 10] [PATTERN ...]    kernels whose names have a pattern in them
"""

import argparse
import itertools
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TRITON_INTERPRET", "1")
sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in ("kernels", "cuda_emulation", "cuda_sass"))
sys.path.insert(0, str(Path(__file__).parents[2]))

import cuda_kernels
import emulation_build
import pytest
import torch
from oracle import relative_error
from ptx import Kernel
from ptx_cases import Case
from test_scan_accuracy import run

import vmddpm_kernels as vk

KINDS = {"barrier": 1, "wait": 2, "guard": 3, "offset": 4}
ORDERS = ("forward", "reverse", "random:1")
ARCHITECTURE = 90
SAME_BOTH_WAYS = "a division by 32 bits or by 64: both give the same"


@dataclass(frozen=True)
class Fault:
    kind: str
    line: int
    instruction: str


def faults(kernel: Kernel) -> dict[str, list[Fault]]:
    """All that there are, by their kind."""
    found: dict[str, list[Fault]] = {kind: [] for kind in KINDS}
    for i in kernel.instructions:
        text = f"{f'@{i.guard} ' * bool(i.guard)}{i.opcode} {', '.join(i.operands)}"
        if i.base == "bar":
            found["barrier"].append(Fault("barrier", i.line, text))
        if i.opcode == "cp.async.wait_group":
            found["wait"].append(Fault("wait", i.line, text))
        if i.guard:
            found["guard"].append(Fault("guard", i.line, text))
        if i.base in ("ld", "st", "cp") and "[" in text and ".param" not in i.opcode:
            found["offset"].append(Fault("offset", i.line, text))
    return found


def sample(kernel: Kernel, each: int, seed: int) -> list[Fault]:
    """Every barrier and wait; of the others so many."""
    chosen = []
    for kind, some in faults(kernel).items():
        count = len(some) if kind in ("barrier", "wait") else min(each, len(some))
        chosen += random.Random(f"{seed} {kernel.name} {kind}").sample(some, count)
    return chosen


@dataclass(frozen=True)
class Problem:
    """Something to compute by kernels, and on which GPU."""

    name: str
    dtype: torch.dtype
    multiprocessors: int
    compute: Callable[[], list[torch.Tensor]]


def problems() -> Iterator[Problem]:
    """Every kind of launch that the nightly cases make, small."""
    float32, float64, bfloat16, float16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
    shapes = (
        ((2, 2, 77, 40, 16), float32), ((1, 2, 64, 33, 16), bfloat16), ((2, 2, 77, 40, 16), bfloat16),
        ((1, 2, 40, 5, 16), float16), ((1, 1, 37, 5, 16), float32), ((1, 4, 45, 72, 4), float32),
        ((2, 1, 70, 33, 1), float32), ((1, 2, 33, 40, 33), float16), ((1, 2, 72, 40, 1), bfloat16),
        ((1, 2, 72, 33, 1), float16), ((1, 2, 50, 33, 5), float64), ((1, 1, 20, 5, 2), float64),
    )  # fmt: skip
    for sizes, dtype in shapes:
        for zoh in (False, True):
            for multiprocessors in (0, 132):
                for summed, last, offset in itertools.product((True, False), (True, False), (True, False)):
                    case = Case(sizes, dtype, zoh, last or not summed, summed, summed and not offset, last, offset,
                                multiprocessors, "forward", 3)  # fmt: skip
                    yield Problem(str(case), dtype, multiprocessors, lambda case=case: _scan(case))
    for dtype in (float32, float64, bfloat16, float16):
        yield Problem(f"cross scan {dtype}", dtype, 132, lambda dtype=dtype: list(_cross_scan(dtype)))


def _scan(case: Case) -> list[torch.Tensor]:
    return run(case.tensors(), lambda *t: case.operator("cuda", *t))


def _cross_scan(dtype: torch.dtype) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    for height, width in ((5, 9), (40, 45), (130, 140)):
        permutation = vk.patch_permutation(height, width, seed=1)
        channels = 40 if height < 10 else 6 if height < 100 else 3
        for first in (True, False):
            for last in (True, False):
                x = torch.randn(1, channels, height, width, generator=generator).to(dtype)
                x = x if first else x.movedim(1, -1).contiguous()
                yield vk.cross_scan(x, first, last, permutation=permutation, backend="cuda")
                y = torch.randn(1, 4, channels, height, width, generator=generator).to(dtype)
                y = y if last else y.permute(0, 3, 4, 1, 2).contiguous()
                yield vk.cross_merge(y, first, last, permutation=permutation, backend="cuda")


class Hunt:
    """The problems that launch a kernel, and whether they find a fault in it."""

    def __init__(self) -> None:
        self._native = emulation_build.load(emulation_build.build())
        self._empty = torch.empty

    def users(self) -> dict[str, list[Problem]]:
        """By the kernel's name, what launches it; the shortest first."""
        found: dict[str, list[tuple[float, Problem]]] = {}
        for problem in problems():
            with pytest.MonkeyPatch.context() as patch:
                kernels = self._use(patch, problem, mode="record")
                began = time.perf_counter()
                problem.compute()
                seconds = time.perf_counter() - began
                for name in {launched.name for launched in kernels.launched}:
                    found.setdefault(name, []).append((seconds, problem))
        return {name: [p for _, p in sorted(some, key=lambda pair: pair[0])] for name, some in found.items()}

    def executed(self, name: str, users: list[Problem]) -> set[int]:
        """The lines of the kernel that the problems execute."""
        lines: set[int] = set()
        kernel, _ = cuda_kernels.kernels(ARCHITECTURE)[name]
        for problem in users:
            with pytest.MonkeyPatch.context() as patch:
                kernels = self._use(patch, problem, modes={name: "count"})
                problem.compute()
                for launched in kernels.launched:
                    if launched.counts:
                        counted = zip(kernel.blocks, launched.counts.blocks)
                        lines |= {i.line for block, n in counted if n for i in block.instructions}
        return lines

    def search(self, name: str, users: list[Problem], planted: list[Fault]) -> dict[Fault, str]:
        """For each fault what found it, or an empty string."""
        launcher = cuda_kernels.launcher(name, ARCHITECTURE, "faults")
        clean = {problem.name: self._results(problem, name, ORDERS[0]) for problem in users}
        found = {}
        for fault in planted:
            launcher.plant(KINDS[fault.kind], fault.line)
            found[fault] = next(
                (r for order in ORDERS for problem in users if (r := self._differs(problem, name, order, clean))),
                "",
            )
            launcher.plant(0, 0)
        return found

    def _differs(self, problem: Problem, name: str, order: str, clean: dict[str, list[torch.Tensor]]) -> str:
        try:
            results = self._results(problem, name, order)
        except RuntimeError as error:
            return f"{order}: {error}"
        unit = torch.finfo(problem.dtype).eps
        wrong = any(not relative_error(a, b) <= 2 * unit for a, b in zip(results, clean[problem.name]))
        return f"{order}: wrong results of {problem.name}" if wrong else ""

    def _results(self, problem: Problem, name: str, order: str) -> list[torch.Tensor]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VMDDPM_EMULATION_ORDER", order)
            self._use(patch, problem, modes={name: "faults"})
            return [t.detach() for t in problem.compute()]

    def _use(self, patch: pytest.MonkeyPatch, problem: Problem, **options: object) -> cuda_kernels.PtxKernels:
        patch.setattr(torch, "empty", self._poisoned)
        return cuda_kernels.use_ptx(patch, self._native, ARCHITECTURE, problem.multiprocessors, **options)

    def _poisoned(self, *args: object, **kwargs: object) -> torch.Tensor:
        tensor = self._empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor


def why_not(fault: Fault, kernel: Kernel, executed: set[int]) -> str:
    """What is known of a fault that nothing finds."""
    if fault.line not in executed:
        return "none of the problems executes it"
    if fault.kind == "guard":
        # Of a 64-bit division nvcc makes two, of which the 32-bit one is chosen where the operands allow it.
        return SAME_BOTH_WAYS if _chooses_division(fault, kernel) else "the branch makes no difference here"
    return {
        "barrier": "another barrier, or the order of the warps here, does as well",
        "wait": "a later wait completes the copies in time",
        "offset": "what it reads or writes in place of the other makes no difference here",
    }[fault.kind]


def _chooses_division(fault: Fault, kernel: Kernel) -> bool:
    block = next(b for b in kernel.blocks if any(i.line == fault.line for i in b.instructions))
    return any(i.opcode == "and.b64" and "-4294967296" in i.operands for i in block.instructions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=10, help="guards and offsets of each kernel")
    parser.add_argument("patterns", nargs="*", default=[""])
    options = parser.parse_args()
    hunt = Hunt()
    totals: Counter[str] = Counter()
    for name, users in sorted(hunt.users().items()):
        if not any(pattern in name for pattern in options.patterns):
            continue
        kernel, _ = cuda_kernels.kernels(ARCHITECTURE)[name]
        planted = sample(kernel, options.each, options.seed)
        found, executed = hunt.search(name, users, planted), hunt.executed(name, users)
        print(f"{cuda_kernels.nvcc.kernel_name(name)}: {len(users)} problems", flush=True)
        for kind in KINDS:
            of_kind = [fault for fault in planted if fault.kind == kind]
            totals[f"{kind} planted"] += len(of_kind)
            totals[f"{kind} found"] += sum(bool(found[fault]) for fault in of_kind)
            print(f"  {kind:8} {sum(bool(found[f]) for f in of_kind)} of {len(of_kind)}", flush=True)
        for fault, report in found.items():
            if not report:
                reason = why_not(fault, kernel, executed)
                totals[f"not found: {reason}"] += 1
                print(f"    not found: line {fault.line} {fault.kind} `{fault.instruction}`: {reason}", flush=True)
    for what, count in totals.items():
        print(f"{count:6} {what}")


if __name__ == "__main__":
    main()
