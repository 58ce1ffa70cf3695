"""How a scan is cut into programs and threads: a rule, and on request a search among its neighbours."""

import os
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton

from vmddpm_kernels.backends.triton.launch import warp_size


@dataclass(frozen=True)
class Plan:
    """What a program does at once, see scan_steps.py."""

    per_thread: int
    slices: int
    block: int
    steps: int

    @property
    def options(self) -> dict[str, int]:
        warps = max(1, self.slices * self.block // warp_size())
        tile = {"PER_THREAD": self.per_thread, "SLICES": self.slices, "BLOCK": self.block, "STEPS": self.steps}
        return {**tile, "num_warps": warps}


@dataclass(frozen=True)
class Scan:
    """What a plan depends on: sizes alone, as the order of sums follows from it."""

    sequences: int  # that programs walk side by side
    channels: int
    states: int
    wide: bool
    zoh: bool
    backward: bool


def plan(scan: Scan) -> Plan:
    """The plan, unless it is searched for.

    per_thread   4 states, as the backward holds those of a few steps in registers; in float64, where each takes two, 1;
                 16 in a forward where warps of 32 channels alone fill a large GPU (132 multiprocessors, 8 warps
                 each): what all slices of a channel repeat is then done once
    slices       the other states of a channel, in other threads: at most 64, beyond which a thread holds more states
    block        as many channels as 128 threads allow: at most 32, and at least 8, which are whole sectors of memory
    steps        4; half of that where 512 threads leave each half as many registers, half in the backward in float64,
                 with the terms of zero-order hold or beside 512 threads, and for a warp on its own, which the assembler
                 gives few registers, as many as make 4 states"""
    padded = 1 << (scan.states - 1).bit_length()
    fills = scan.sequences * -(-scan.channels // 32) >= 132 * 8
    per_thread = 1 if scan.wide else 16 if fills and padded <= 16 and not scan.zoh and not scan.backward else 4
    slices = min(64, max(1, padded // per_thread))
    steps = 2 if slices == 64 else 4
    if scan.backward:
        steps //= 2 if scan.wide or scan.zoh or slices == 64 else 1
        steps = min(steps, 4 // padded) if slices == 1 else steps
    return Plan(padded // slices, slices, min(32, max(8, 128 // slices)), steps)


def neighbours(scan: Scan) -> list[Plan]:
    """The plan and what a search tries beside it: twice and half the channels, the states of a channel in half and
    twice as many threads, half the steps. Left out are programs of less than a warp or more than 512 threads, and what
    holds more than 64 bytes of states a thread, in the backward for all steps together."""
    first = plan(scan)
    padded = first.per_thread * first.slices
    found = [first]
    for slices in (first.slices, first.slices // 2, first.slices * 2):
        if not 1 <= slices <= padded:
            continue
        for block in (first.block, first.block // 2, first.block * 2):
            for steps in (first.steps, max(1, first.steps // 2)):
                one = Plan(padded // slices, slices, block, steps)
                held = one.per_thread * (8 if scan.wide else 4) * (steps if scan.backward else 1)
                if one not in found and 32 <= slices * block <= 512 and held <= 64:
                    found.append(one)
    return found


_searched: dict[Any, Plan] = {}


def chosen_plan(scan: Scan, run: Callable[[Plan], Any], device: torch.device) -> Plan:
    """`plan(scan)`; with VMDDPM_TRITON_AUTOTUNE=1 in the environment the fastest of its neighbours, found by running
    them when the sizes are first seen in this process. Sums then have an order that depends on what was fastest."""
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
