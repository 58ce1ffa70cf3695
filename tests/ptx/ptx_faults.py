"""Faults planted in the PTX of the CUDA kernels, and the problems that should find them.

A kernel is compiled once with all its faults, and one at a time is switched on (FAULT in machine.h):

    barrier   a bar.sync is left out
    wait      one more group of copies may be under way after a cp.async.wait_group
    guard     a predicate is inverted
    offset    an address in shared or global memory is off by 4 bytes

    python tests/ptx/ptx_faults.py [--kernels N] [--each 10] [--seed 0] [--out FILE] [PATTERN ...]

Without --kernels, the search covers every kernel, or those whose names contain a pattern. FILE collects the results, a
JSON line per kernel; kernels in it are not searched again, so an interrupted search continues.
"""

import argparse
import itertools
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")
sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in ("kernels", "cuda_emulation", "cuda_sass"))
sys.path.insert(0, str(Path(__file__).parents[2]))

import cuda_kernels
import emulation_build
import numpy as np
import pytest
import torch
from ptx import Kernel
from ptx_cases import CROSS_SCANS, FLOATS, SCANS, Case, CrossCase

AnyCase = Case | CrossCase
KINDS = {"barrier": 1, "wait": 2, "guard": 3, "offset": 4}
# Orders of threads, which reveal missing barriers.
ORDERS = {kind: ("forward", "reverse", "random:1") if kind in ("barrier", "wait") else ("forward",) for kind in KINDS}
MOST_CASES = 60  # the shortest cases that execute a fault
RESAMPLED = 2000  # resamples for a confidence interval
ARCHITECTURE = 90
SAME_BOTH_WAYS = "chooses between a division of 32 bits and one of 64, which give the same"
BESIDE_ANOTHER = "another barrier, the start or the end is beside it, with no access between"
NOT_EXECUTED = "no case executes it"
ACCESSES = ("ld", "st", "cp", "atom", "red", "ldmatrix", "stmatrix", "ldu", "prefetch")


@dataclass(frozen=True)
class Fault:
    kind: str
    line: int
    instruction: str


def faults(kernel: Kernel) -> dict[str, list[Fault]]:
    """All possible faults of a kernel, by kind."""
    found: dict[str, list[Fault]] = {kind: [] for kind in KINDS}
    for i in kernel.instructions:
        text = f"{f'@{i.guard} ' * bool(i.guard)}{i.opcode} {', '.join(i.operands)}"
        if i.base == "bar":
            found["barrier"].append(Fault("barrier", i.line, text))
        if i.opcode == "cp.async.wait_group":
            found["wait"].append(Fault("wait", i.line, text))
        if i.guard:
            found["guard"].append(Fault("guard", i.line, text))
        if i.base in ("ld", "st", "red", "cp") and "[" in text and ".param" not in i.opcode:
            found["offset"].append(Fault("offset", i.line, text))
    return found


def equivalent(fault: Fault, kernel: Kernel) -> str:
    """Why the fault cannot change the kernel's results; empty if it can."""
    if fault.kind == "guard" and _chooses_division(fault, kernel):
        return SAME_BOTH_WAYS
    if fault.kind == "barrier" and _needless(fault, kernel):
        return BESIDE_ANOTHER
    return ""


def _chooses_division(fault: Fault, kernel: Kernel) -> bool:
    """nvcc makes two versions of a 64-bit division, and uses the 32-bit one if the upper halves of both operands are
    zero; the other gives the same result. Operands with upper halves would need tensors of 2^32 tiles."""
    block = next(b for b in kernel.blocks if any(i.line == fault.line for i in b.instructions))
    return any(i.opcode == "and.b64" and "-4294967296" in i.operands for i in block.instructions)


def _needless(fault: Fault, kernel: Kernel) -> bool:
    """Whether no path from the barrier to the next one or the end accesses memory, or no path to it from the previous
    one or the start does."""
    blocks = kernel.blocks
    of_label = {label: number for number, block in enumerate(blocks) for label in block.labels}
    after: list[set[int]] = []
    for number, block in enumerate(blocks):
        last = block.instructions[-1] if block.instructions else None
        following = {number + 1} if (last is None or last.follows) and number + 1 < len(blocks) else set()
        jumps = {of_label[last.operands[0]]} if last is not None and last.base == "bra" else set()
        after.append(following | jumps)
    before = [{j for j, some in enumerate(after) if i in some} for i in range(len(blocks))]
    (at, place), *_ = (
        (n, k) for n, block in enumerate(blocks) for k, i in enumerate(block.instructions) if i.line == fault.line
    )

    def free(edges: list[set[int]], step: int) -> bool:
        """Whether no path along the edges accesses memory before another barrier."""
        rest = blocks[at].instructions[place + 1 :] if step > 0 else blocks[at].instructions[:place]
        ways, seen = [(at, rest)], set()
        while ways:
            number, instructions = ways.pop()
            for i in instructions[::step]:
                # A wait for copies before the barrier makes them visible to the threads after it.
                if i.base in ACCESSES and ".param" not in i.opcode and not (step > 0 and "wait" in i.opcode):
                    return False
                if i.base in ("bar", "barrier"):
                    break
            else:
                ways += [(n, blocks[n].instructions) for n in edges[number] - seen]
                seen |= edges[number]
        return True

    return free(after, 1) or free(before, -1)


def sample(kernel: Kernel, each: int, seed: int) -> list[Fault]:
    """Every barrier and wait, and a sample of the others, without equivalent faults."""
    chosen = []
    for kind, some in plantable(kernel).items():
        count = len(some) if kind in ("barrier", "wait") else min(each, len(some))
        chosen += random.Random(f"{seed} {kernel.name} {kind}").sample(some, count)
    return chosen


def plantable(kernel: Kernel) -> dict[str, list[Fault]]:
    """The faults that can change results."""
    return {kind: [f for f in some if not equivalent(f, kernel)] for kind, some in faults(kernel).items()}


def family(name: str) -> str:
    """The name of a kernel without its template arguments."""
    return cuda_kernels.nvcc.kernel_name(name).partition("<")[0]


def sample_of_kernels(most: int | None, seed: int, patterns: Sequence[str] = ("",)) -> list[str]:
    """A random sample of each family, or all kernels; one of each family comes first, in case the search is stopped."""
    names = [n for n in sorted(cuda_kernels.kernels(ARCHITECTURE)) if any(pattern in n for pattern in patterns)]
    random.Random(f"kernels {seed}").shuffle(names)
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(family(name), []).append(name)
    rounds = itertools.zip_longest(*(some[:most] for _, some in sorted(families.items())))
    return [name for some in rounds for name in some if name]


def cases() -> Iterator[AnyCase]:
    """All cases of the nightly tests on one architecture (test_ptx_kernels.py)."""
    for dtype in FLOATS:
        for zoh in (False, True):
            yield from Case.chosen(dtype, zoh)
            yield from (Case.random(seed, dtype, zoh) for seed in range(SCANS["cuda"]))
        yield from CrossCase.chosen(dtype)
        yield from (CrossCase.random(seed, dtype) for seed in range(CROSS_SCANS["cuda"]))


@dataclass
class Clean:
    """A case run without faults: its reference results, its time, and the basic blocks it executes in each kernel."""

    case: AnyCase
    reference: list[torch.Tensor]
    exact: list[torch.Tensor]
    seconds: float
    visited: dict[str, set[int]]


class Hunt:
    """The nightly cases, and their search for faults in a kernel."""

    def __init__(self, kernels: Iterable[str]) -> None:
        """Selects the cases that launch one of these kernels."""
        self._native = emulation_build.load(emulation_build.build())
        self._empty = torch.empty
        self._modes = dict.fromkeys(kernels, "faults")
        self.clean: list[Clean] = []
        for case in cases():
            names = {name for name in self._launched(case) if name in self._modes}
            if names:
                self.clean.append(self._visits(case, names))
        self.clean.sort(key=lambda clean: clean.seconds)

    def kernels(self) -> list[str]:
        return sorted({name for clean in self.clean for name in clean.visited})

    def executed(self, name: str) -> set[int]:
        """The lines of the kernel that at least one case executes."""
        kernel, _ = cuda_kernels.kernels(ARCHITECTURE)[name]
        blocks = set().union(*(clean.visited.get(name, set()) for clean in self.clean))
        return {i.line for number in blocks for i in kernel.blocks[number].instructions}

    def search(self, name: str, planted: list[Fault]) -> dict[Fault, str]:
        """For each fault the case that found it, or an empty string."""
        kernel, _ = cuda_kernels.kernels(ARCHITECTURE)[name]
        launcher = cuda_kernels.launcher(name, ARCHITECTURE, "faults")
        block_of = {i.line: number for number, block in enumerate(kernel.blocks) for i in block.instructions}
        found = {}
        for fault in planted:
            there = [clean for clean in self.clean if block_of[fault.line] in clean.visited.get(name, ())][:MOST_CASES]
            launcher.plant(KINDS[fault.kind], fault.line)
            try:
                reports = (self._differs(clean, order) for order in ORDERS[fault.kind] for clean in there)
                found[fault] = next(filter(None, reports), "")
            finally:
                launcher.plant(0, 0)
        return found

    def _visits(self, case: AnyCase, names: set[str]) -> Clean:
        launchers = {name: cuda_kernels.launcher(name, ARCHITECTURE, "faults") for name in names}
        before = {name: launcher.visited() for name, launcher in launchers.items()}
        began = time.process_time()
        results = self._results(case, "forward")
        seconds = time.process_time() - began
        reference, exact = case.compute("reference"), case.exact()
        if what := case.wrong(results, reference, exact):
            raise AssertionError(f"without a fault: {what}")
        visited = {
            name: {n for n, (a, b) in enumerate(zip(before[name], launcher.visited())) if b > a}
            for name, launcher in launchers.items()
        }
        return Clean(case, reference, exact, seconds, visited)

    def _differs(self, clean: Clean, order: str) -> str:
        try:
            results = self._results(clean.case, order)
        except RuntimeError as error:
            return f"{order}: {error}"
        what = clean.case.wrong(results, clean.reference, clean.exact)
        return f"{order}: {what}" if what else ""

    def _results(self, case: AnyCase, order: str) -> list[torch.Tensor]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VMDDPM_EMULATION_ORDER", order)
            self._use(patch, case, "plain", self._modes)
            return [t.detach() for t in case.compute("cuda")]

    def _launched(self, case: AnyCase) -> set[str]:
        with pytest.MonkeyPatch.context() as patch:
            kernels = self._use(patch, case, "record", {})
            case.compute("cuda")
            return {launched.name for launched in kernels.launched}

    def _use(
        self, patch: pytest.MonkeyPatch, case: AnyCase, mode: str, modes: dict[str, str]
    ) -> cuda_kernels.PtxKernels:
        patch.setattr(torch, "empty", self._poisoned)
        limits = case.multiprocessors, case.shared_bytes
        return cuda_kernels.use_ptx(patch, self._native, ARCHITECTURE, *limits, mode=mode, modes=modes)

    def _poisoned(self, *args: object, **kwargs: object) -> torch.Tensor:
        tensor = self._empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor


def searched(hunt: Hunt, name: str, each: int, seed: int) -> dict[str, Any]:
    """The result for a kernel, as a line of the file."""
    kernel, _ = cuda_kernels.kernels(ARCHITECTURE)[name]
    found, executed = hunt.search(name, sample(kernel, each, seed)), hunt.executed(name)
    return {
        "kernel": cuda_kernels.nvcc.kernel_name(name), "name": name, "family": family(name), "seed": seed, "each": each,
        "all": {kind: len(some) for kind, some in plantable(kernel).items()},
        "equivalent": Counter(why for some in faults(kernel).values() for f in some if (why := equivalent(f, kernel))),
        "faults": [
            {**asdict(f), "executed": f.line in executed, "found": by, "why": "" if by else why_not(f, executed)}
            for f, by in found.items()
        ],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=10, help="guards and offsets of each kernel")
    parser.add_argument("--kernels", type=int, help="of each family, at most; by default all")
    parser.add_argument("--out", type=Path, help="where what is found is kept, and taken from")
    parser.add_argument("patterns", nargs="*", default=[""])
    options = parser.parse_args()
    names = sample_of_kernels(options.kernels, options.seed, options.patterns)
    known = options.out.read_text().splitlines() if options.out and options.out.exists() else []
    results = [json.loads(line) for line in known]
    if any((r["seed"], r["each"]) != (options.seed, options.each) for r in results):
        parser.error(f"{options.out} has results of another --seed or --each; name another file")
    left = [name for name in names if name not in {r["name"] for r in results}]
    hunt = Hunt(left) if left else None
    for name in left:
        results.append(searched(hunt, name, options.each, options.seed))
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(results[-1]) + "\n")
        print(results[-1]["kernel"], flush=True)
        for fault in results[-1]["faults"]:
            if not fault["found"]:
                print("    line {line} {kind} `{instruction}`: {why}".format(**fault), flush=True)
    print(report([r for r in results if r["name"] in names]))


def report(results: list[dict[str, Any]]) -> str:
    """A table of planted, executed and found faults by family and kind, the reasons for those not found, and the
    estimated share of all plantable faults that is found."""
    lines = [f"{'':22}{'kernels':>10}{'planted':>10}{'executed':>10}{'found':>10}{'share':>8}"]

    def row(title: str, kernels: int | str, planted: list[dict[str, Any]]) -> None:
        executed, found = (sum(bool(f[key]) for f in planted) for key in ("executed", "found"))
        share = f"{100 * found / len(planted):6.1f} %" if planted else ""
        lines.append(f"{title:22}{kernels:>10}{len(planted):10}{executed:10}{found:10}{share:>8}")

    for one in sorted({r["family"] for r in results}):
        of_family = [r for r in results if r["family"] == one]
        row(one, len(of_family), [f for r in of_family for f in r["faults"]])
    planted = [f for r in results for f in r["faults"]]
    for kind in KINDS:
        row(kind, "", [f for f in planted if f["kind"] == kind])
    row("all", len(results), planted)
    low, share, high = share_of_all(results)
    lines.append(f"of all {int(sum(population().values()))}: {share:.1%}, 95 % between {low:.1%} and {high:.1%}")
    reasons = Counter(f"not found: {f['why']}" for f in planted if not f["found"])
    for r in results:
        reasons.update({f"not planted: {why}": count for why, count in r["equivalent"].items()})
    return "\n".join([*lines, *(f"{count:6} {reason}" for reason, count in reasons.most_common())])


@cache
def population() -> Counter[tuple[str, str]]:
    """The number of plantable faults of each family and kind, over all kernels."""
    counts: Counter[tuple[str, str]] = Counter()
    for name, (kernel, _) in cuda_kernels.kernels(ARCHITECTURE).items():
        counts.update({(family(name), kind): len(some) for kind, some in plantable(kernel).items()})
    return counts


def share_of_all(results: list[dict[str, Any]], seed: int = 0) -> tuple[float, float, float]:
    """The estimated share of all faults that is found, with a 95 % interval. Each sampled fault is weighted by the
    number of its kind in its kernel, each kernel by the size of its family. The interval comes from resampling the
    kernels of each family and the faults of each kernel."""
    generator = np.random.default_rng(seed)
    families: dict[str, list[dict[str, Any]]] = {}
    for r in results:
        families.setdefault(r["family"], []).append(r)
    everything = {key: count for key, count in population().items() if key[0] in families}

    def share(draw: bool) -> float:
        found = 0.0
        for one, kernels in families.items():
            chosen = generator.integers(len(kernels), size=len(kernels)) if draw else range(len(kernels))
            totals: dict[str, list[float]] = {kind: [0.0, 0.0] for kind in KINDS}
            for r in (kernels[i] for i in chosen):
                for kind, total in totals.items():
                    hits = np.array([bool(f["found"]) for f in r["faults"] if f["kind"] == kind])
                    if hits.size:
                        drawn = generator.choice(hits, hits.size) if draw and hits.size < r["all"][kind] else hits
                        total[0] += r["all"][kind] * float(drawn.mean())
                        total[1] += r["all"][kind]
            found += sum(everything[one, kind] * (a / b) for kind, (a, b) in totals.items() if b)
        return found / sum(everything.values())

    low, high = np.quantile([share(True) for _ in range(RESAMPLED)], (0.025, 0.975))
    return float(low), share(False), float(high)


def why_not(fault: Fault, executed: set[int]) -> str:
    """The known reason why a fault is not found."""
    if fault.line not in executed:
        return NOT_EXECUTED
    return {
        "guard": "both ways give the same results in every case",
        "barrier": "in every order the values arrive in time",
        "wait": "a later wait completes the copies in time",
        "offset": "what it reads or writes in place of the other makes no difference",
    }[fault.kind]


if __name__ == "__main__":
    main()
