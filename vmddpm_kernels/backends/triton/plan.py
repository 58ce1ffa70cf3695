"""Splits a scan into programs: by a rule, or on request by a search among the rule's neighbours."""

import os
import timeit
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton

from vmddpm_kernels.backends.triton.launch import warp_size


@dataclass(frozen=True)
class LaunchPlan:
    """A program's work: its channels, the routes of an image that it walks, the states that it holds, the steps that it
    takes at once; and the registers of a thread, or None to let NVIDIA's assembler choose."""

    block: int
    walked: int
    group: int
    steps: int
    registers: int | None = None


@dataclass(frozen=True)
class Scan:
    """The inputs of a plan. They are sizes and options alone, because the plan fixes the order of sums."""

    batch: int
    routes: int
    channels: int
    states: int
    sum_routes: bool
    wide: bool
    zoh: bool
    backward: bool

    def groups(self, plan: LaunchPlan) -> int:
        return -(-self.states // plan.group)

    def adds(self, plan: LaunchPlan) -> bool:
        """Whether a program adds to results that it has stored."""
        return plan.walked * self.groups(plan) > 1


def plan(scan: Scan) -> LaunchPlan:
    """The rule's plan.

    block    the lanes of a warp
    walked   one route, with an image per route that is summed afterwards; or, for summed routes, all in order, which
             needs no memory for these images, if that still makes two waves of warps: 16 per multiprocessor, or 8 in
             the backward, whose registers allow no more
    group    at most 16 states, in even groups; at most 8 in float64, where each takes two registers, and 4 in its
             backward
    steps    4, so that all loads precede their uses; 2 where the forward adds to y, and in the backward, which holds
             the states and decays of each step in registers; 1 in float64 and with zero-order hold. The assembler
             spills with more
    registers  set where the assembler would rather spill a few bytes than give a thread more than 128 or 168"""
    most = (4 if scan.backward else 8) if scan.wide else 16
    groups = -(-scan.states // most)
    group = -(-scan.states // groups)
    if groups > 1 and scan.states % 4 == 0:
        group += -group % 4  # whole vectors of a row
    block = warp_size()
    waves = scan.batch * -(-scan.channels // block) / (2 * 132 * (8 if scan.backward else 16))
    walked = scan.routes if scan.sum_routes and waves >= 1 else 1
    steps = 1 if scan.wide or scan.zoh else 2 if scan.backward or walked * groups > 1 else 4
    registers = None
    if scan.wide or (scan.zoh and not scan.backward):
        registers = 255
    elif scan.backward and 4 < group <= 8:
        registers = 168
    return LaunchPlan(block, walked, group, steps, registers)


def neighbours(scan: Scan) -> list[LaunchPlan]:
    """The plans that a search tries: the rule's, half and twice its steps, and routes walked in order or not."""
    first = plan(scan)
    walks = [first.walked] + [n for n in {1, scan.routes} - {first.walked} if scan.sum_routes]
    steps = [n for n in (first.steps, first.steps // 2, first.steps * 2) if n]
    return [replace(first, walked=w, steps=n) for w in walks for n in steps]


_searched: dict[Any, LaunchPlan] = {}


def chosen_plan(scan: Scan, run: Callable[[LaunchPlan], Any], device: torch.device) -> LaunchPlan:
    """`plan(scan)`; with VMDDPM_TRITON_AUTOTUNE=1 in the environment the fastest of its neighbours, found by running
    them when this process first sees the sizes. The order of sums then depends on which was fastest."""
    if os.environ.get("VMDDPM_TRITON_AUTOTUNE") != "1":
        return plan(scan)
    key = (scan, device)
    if key not in _searched:
        _searched[key] = min(neighbours(scan), key=lambda one: _milliseconds(lambda: run(one), device))
    return _searched[key]


def _milliseconds(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cpu":
        return 1000 * timeit.timeit(run, number=1)
    return float(triton.testing.do_bench(run))
