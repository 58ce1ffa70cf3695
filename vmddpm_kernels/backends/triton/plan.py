"""Splits a scan into programs: by a rule, or on request by a search among the rule's neighbours."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton

from vmddpm_kernels.backends.triton.launch import warp_size
from vmddpm_kernels.scan_inputs import ScanSizes


@dataclass(frozen=True)
class LaunchPlan:
    """A program's work: its channels, the routes of an image that it walks, the states that it holds, the steps that it
    takes at once; and the registers of a thread, or None to let NVIDIA's assembler choose."""

    block: int
    walked: int
    group: int
    steps: int
    registers: int | None = None


def plan(sizes: ScanSizes, zoh: bool, backward: bool) -> LaunchPlan:
    """The rule's plan. It depends on sizes and options alone, and on no length, because it fixes the order of sums.

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
    most = (4 if backward else 8) if sizes.wide else 16
    groups = -(-sizes.states // most)
    group = -(-sizes.states // groups)
    if groups > 1 and sizes.states % 4 == 0:
        group += -group % 4  # whole vectors of a row
    block = warp_size()
    waves = sizes.batch * -(-sizes.channels // block) / (2 * 132 * (8 if backward else 16))
    walked = sizes.routes if sizes.sum_routes and waves >= 1 else 1
    steps = 1 if sizes.wide or zoh else 2 if backward or walked * groups > 1 else 4
    registers = None
    if sizes.wide or (zoh and not backward):
        registers = 255
    elif backward and 4 < group <= 8:
        registers = 168
    return LaunchPlan(block, walked, group, steps, registers)


def neighbours(sizes: ScanSizes, zoh: bool, backward: bool) -> list[LaunchPlan]:
    """The plans that a search tries: the rule's, half and twice its steps, and routes walked in order or not."""
    first = plan(sizes, zoh, backward)
    walks = [first.walked] + [n for n in {1, sizes.routes} - {first.walked} if sizes.sum_routes]
    steps = [n for n in (first.steps, first.steps // 2, first.steps * 2) if n]
    return [replace(first, walked=w, steps=n) for w in walks for n in steps]


_searched: dict[Any, LaunchPlan] = {}


def chosen_plan(
    sizes: ScanSizes, zoh: bool, backward: bool, run: Callable[[LaunchPlan], Any], device: torch.device
) -> LaunchPlan:
    """`plan(...)`; on a GPU with VMDDPM_TRITON_AUTOTUNE=1 in the environment the fastest of its neighbours, found by
    running them when this process first sees the sizes. The order of sums then depends on which was fastest."""
    if device.type == "cpu" or os.environ.get("VMDDPM_TRITON_AUTOTUNE") != "1":
        return plan(sizes, zoh, backward)
    key = sizes._replace(length=0), zoh, backward, device
    if key not in _searched:
        tried = neighbours(sizes, zoh, backward)
        _searched[key] = min(tried, key=lambda one: triton.testing.do_bench(lambda: run(one)))
    return _searched[key]
