"""Estimates how often each basic block of a kernel's machine code was executed, from the counts of its PTX.

ptxas moves and copies code, so blocks do not correspond one to one. But threads follow the control flow of the machine
code, and ptxas keeps some instructions: an ex2 becomes one MUFU.EX2, a cp.async one LDGSTS, and both name their source
line and all calls they were inlined at. A linear programme finds the flow through the control flow graph that agrees
best with the counts of these instructions. The range of the total instruction count over equally good flows is the
error of the estimate.
"""

import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from ptx import Kernel
from ptx_launcher import Counts
from scipy.optimize import linprog
from scipy.sparse import coo_matrix, csr_matrix, hstack, vstack

sys.path.append(str(Path(__file__).resolve().parents[1] / "cuda_sass"))

from control_flow import ENDS, Function, parse
from sass import find_nvdisasm

# Instructions that ptxas keeps: in PTX, in machine code.
ANCHORS = {
    "ex2": (r"ex2\.", r"MUFU\.EX2"),
    "barrier": (r"bar\.|barrier\.", r"BAR\."),
    "copy": (r"cp\.async\.c[ag]\.", r"LDGSTS"),
    "commit": (r"cp\.async\.commit", r"LDGDEPBAR"),
    "wait": (r"cp\.async\.wait", r"DEPBAR"),
    "shuffle": (r"shfl\.", r"SHFL"),
    "reciprocal": (r"rcp\.approx\.ftz\.f32", r"MUFU\.RCP\b"),
    "maximum": (r"(min|max)\.f32", r"FMNMX"),
    # A division becomes code that begins with a conversion; a 64-bit division becomes a subroutine call.
    "division": (r"(div|rem)\.[su]32", r"I2F"),
    "long division": (r"(div|rem)\.[su]64", r"CALL"),
    "from half": (r"cvt\.f32\.f16", r"HADD2\.F32"),
    "to half": (r"cvt\.rn\.f16\.f32", r"F2FP\.F16|F2F\.F16"),
    "to bfloat16": (r"cvt\.rn\.bf16\.f32", r"F2FP\.BF16"),
    # Distinguished by the bits they move, because ptxas may merge neighbours.
    "global load": (r"ld\.global", r"LDG\b"),
    "global store": (r"st\.global", r"STG\b"),
    "global sum": (r"red\.global", r"REDG?\b"),
    "shared load": (r"ld\.shared", r"LDS\b"),
    "shared store": (r"st\.shared", r"STS\b"),
}


def _anchor(opcode: str, machine_code: bool) -> tuple[str, int] | None:
    for name, patterns in ANCHORS.items():
        if re.match(patterns[machine_code], opcode):
            return name, _width(opcode, machine_code) if name.endswith(("load", "store")) else 0
    return None


def _width(opcode: str, machine_code: bool) -> int:
    modifiers = opcode.split(".")[1:]
    if machine_code:
        sizes = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128}
        return next((sizes[m] for m in modifiers if m in sizes), 32)
    vector = next((int(m[1:]) for m in modifiers if re.fullmatch(r"v\d", m)), 1)
    return vector * int(re.sub(r"\D", "", modifiers[-1]))


@cache
def functions(cubin: Path) -> dict[str, Function]:
    """Every function of a cubin by name, with the source locations of its instructions."""
    command = [find_nvdisasm(), "-gi", "-c", str(cubin)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {function.name: function for function in parse(text)}


@dataclass(frozen=True)
class Executed:
    """Executions of a kernel's machine code by warps, in one launch."""

    blocks: np.ndarray            # of each basic block, midway between low and high
    opcodes: Counter[str]         # of each opcode up to the first dot; MUFU.EX2 separate from other MUFU
    residual: float               # the share of the anchors' executions that contradicts the flow
    low: float                    # least and most instructions that agree equally well with the anchors
    high: float

    @property
    def total(self) -> float:
        return sum(self.opcodes.values())


def join(kernel: Kernel, counts: Counts, function: Function, threads: int) -> Executed:
    """`threads`: threads of the counted launch."""
    flow = _Flow(function, threads)
    costs = _costs(kernel, counts, function)
    residual = flow.fit(costs)
    # Warps per thread come from the PTX blocks with the same locations.
    per_thread = _warps_per_thread(kernel, counts, function)
    weights = np.array([sum(i.base != "NOP" for i in block.instructions) for block in function.blocks]) * per_thread
    least, most = flow.extremes(costs, weights)
    blocks = (least + most) / 2 * per_thread
    opcodes: Counter[str] = Counter()
    for block, executions in zip(function.blocks, blocks):
        for i in block.instructions:
            if i.base != "NOP":
                opcodes["MUFU.EX2" if i.opcode.startswith("MUFU.EX2") else i.base] += executions
    return Executed(blocks, opcodes, residual, float(weights @ least), float(weights @ most))


@dataclass(frozen=True)
class _Anchor:
    """sum(sure * f) <= count <= sum(sure * f) + sum(guarded * f) of the blocks' executions f."""

    sure: dict[int, int]
    guarded: dict[int, int]
    count: float


@dataclass(frozen=True)
class _Costs:
    anchors: list[_Anchor]
    most: np.ndarray  # upper bound of each block's executions, from its locations


def _costs(kernel: Kernel, counts: Counts, function: Function) -> _Costs:
    in_ptx: Counter = Counter()
    most_at: dict = defaultdict(float)
    for block, executions in zip(kernel.blocks, counts.threads):
        for i in block.instructions:
            most_at[i.location] = max(most_at[i.location], executions)
            if anchor := _anchor(i.opcode, machine_code=False):
                in_ptx[anchor, i.location] += executions
    places: dict = defaultdict(lambda: (Counter(), Counter()))
    for number, block in enumerate(function.blocks):
        for i in block.instructions:
            if anchor := _anchor(i.opcode, machine_code=True):
                places[anchor, i.location][i.predicated][number] += 1
    anchors = [_Anchor(*places[key], in_ptx[key]) for key in places if key in in_ptx]
    most = np.array([
        max((most_at.get(i.location, np.inf) for i in block.instructions), default=np.inf) for block in function.blocks
    ])  # fmt: skip
    return _Costs(anchors, most)


def _warps_per_thread(kernel: Kernel, counts: Counts, function: Function) -> np.ndarray:
    """For each block of the machine code, warp executions per thread execution."""
    warps: Counter = Counter()
    threads: Counter = Counter()
    for block, by_warp, by_thread in zip(kernel.blocks, counts.blocks, counts.threads):
        for i in block.instructions:
            warps[i.location] += by_warp
            threads[i.location] += by_thread
    ratios = np.full(len(function.blocks), 1 / 32)
    for number, block in enumerate(function.blocks):
        found = [warps[i.location] / threads[i.location] for i in block.instructions if threads[i.location]]
        if found:
            ratios[number] = np.median(found)
    return ratios


class _Flow:
    """A flow of threads through a control flow graph: as many enter a block as leave it."""

    def __init__(self, function: Function, threads: int) -> None:
        self.count = len(function.blocks)
        edges = [(i, j) for i, block in enumerate(function.blocks) for j in sorted(block.successors)]
        leaving = [i for i, block in enumerate(function.blocks) if block.instructions[-1].base in ENDS]
        calls = [
            (i, callee)
            for i, block in enumerate(function.blocks)
            for instruction in block.instructions
            if (callee := function.called(instruction)) is not None
        ]
        # Columns: executions of blocks, flows along edges, threads that exit.
        width = self.count + len(edges) + len(leaving)
        rows, columns, values = [], [], []

        def put(row: int, column: int, value: float) -> None:
            rows.append(row), columns.append(column), values.append(value)

        for block in range(self.count):  # threads that enter equal threads that leave
            put(block, block, -1)
            put(self.count + block, block, -1)
        for number, (i, j) in enumerate(edges):
            put(self.count + i, self.count + number, 1)
            put(j, self.count + number, 1)
        for number, i in enumerate(leaving):
            put(self.count + i, self.count + len(edges) + number, 1)
        for caller, callee in calls:
            put(callee, caller, 1)
        self._width = width
        self._equal = coo_matrix((values, (rows, columns)), shape=(2 * self.count, width)).tocsr()
        self._target = np.zeros(2 * self.count)
        self._target[0] = -1  # every thread of the launch
        self._scale = float(threads)

    def fit(self, costs: _Costs) -> float:
        """The share of the anchors' executions that contradicts even the best flow."""
        problem = self._problem(costs)
        solved = linprog(**problem, method="highs")
        if solved.status != 0:
            raise ArithmeticError(f"no flow agrees with the counts: {solved.message}")
        self._best = solved.fun
        total = sum(anchor.count for anchor in costs.anchors) or 1.0
        return solved.x[self._width : self._width + 2 * len(costs.anchors)].sum() * self._scale / total

    def extremes(self, costs: _Costs, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Thread executions of the blocks with the least and the greatest sum(weights * executions), over all flows
        that agree as well as the best one."""
        problem = self._problem(costs)
        slack = 1e-6 * sum(anchor.count for anchor in costs.anchors) / self._scale
        problem["A_ub"] = vstack([problem["A_ub"], csr_matrix(problem["c"])])
        problem["b_ub"] = np.append(problem["b_ub"], self._best + slack)
        cost = np.zeros(len(problem["c"]))
        found = []
        for sign in (1, -1):
            cost[: self.count] = sign * weights
            solved = linprog(**{**problem, "c": cost}, method="highs")
            if solved.status != 0:
                raise ArithmeticError(f"no bounds of the flow: {solved.message}")
            found.append(solved.x[: self.count] * self._scale)
        return found[0], found[1]

    def _problem(self, costs: _Costs) -> dict:
        """Columns after the flow's: excess and deficit of each anchor, and each block's excess over its upper bound, in
        units of the launch's threads."""
        anchors = costs.anchors
        limited = np.flatnonzero(np.isfinite(costs.most))
        width = self._width + 2 * len(anchors) + len(limited)
        rows, columns, values, bounds = [], [], [], []

        def put(row: int, column: int, value: float) -> None:
            rows.append(row), columns.append(column), values.append(value)

        for number, anchor in enumerate(anchors):
            over, under = self._width + 2 * number, self._width + 2 * number + 1
            for block, n in anchor.sure.items():
                put(2 * number, block, n)
                put(2 * number + 1, block, -n)
            for block, n in anchor.guarded.items():
                put(2 * number + 1, block, -n)
            put(2 * number, over, -1)
            put(2 * number + 1, under, -1)
            bounds += [anchor.count / self._scale, -anchor.count / self._scale]
        for number, block in enumerate(limited):
            put(2 * len(anchors) + number, block, 1)
            put(2 * len(anchors) + number, self._width + 2 * len(anchors) + number, -1)
            bounds.append(costs.most[block] / self._scale)
        cost = np.zeros(width)
        cost[self._width :] = 1
        extra = coo_matrix((2 * self.count, width - self._width))
        return {
            "c": cost, "A_ub": coo_matrix((values, (rows, columns)), shape=(len(bounds), width)).tocsr(),
            "b_ub": np.array(bounds), "A_eq": hstack([self._equal, extra]).tocsr(), "b_eq": self._target,
            "bounds": (0, None),
        }  # fmt: skip
