"""What is asked of the CPU kernels, held against what cpu_fractions.py has measured."""

import statistics
from typing import Any

SHAPES = ("4x384x16x16", "4x96x64x64")  # what the fractions of limits are asked of


def acceptance(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is asked of what was measured -> the least favourable figure found, the bound, and whether it holds."""
    asked: dict[str, dict[str, Any]] = {}

    def at_least(bound: float, what: str, *figures: float) -> None:
        if figures:
            asked[what] = {"found": min(figures), "at_least": bound, "holds": min(figures) >= bound}

    def at_most(bound: float, what: str, *figures: float) -> None:
        if figures:
            asked[what] = {"found": round(max(figures), 3), "at_most": bound, "holds": max(figures) <= bound}

    cases = found.get("fractions", {})
    both = [case[direction] for case in cases.values() for direction in ("forward", "backward")]
    for direction, bound in (("forward", 0.55), ("backward", 0.45)):
        sixteen = [cases[f"{shape} N=16"][direction] for shape in SHAPES if cases]
        one = [cases[f"{shape} N=1"][direction] for shape in SHAPES if cases]
        at_least(bound, f"{direction}, 16 states, of the limit", *(c["of_limit"] for c in sixteen))
        at_least(0.6, f"{direction}, one state, of the bandwidth", *(c["of_bandwidth"] for c in one))
        at_least(0.6, f"{direction}, one state, of the longer limit", *(c["of_longer_limit"] for c in one))
    asked_of = [case for name, case in cases.items() if name.startswith(SHAPES)]
    speedups = [case[d].get("speedup_of_threads") for case in asked_of for d in ("forward", "backward")]
    at_least(1.8, "two threads over one", *filter(None, speedups))
    if both:
        at_most(1.03, "shuffled routes over ordered, median", statistics.median(c["shuffled"] for c in both))
    for name, case in found.get("half_precision", {}).items():
        at_most(1.0, f"half precision over float32, {name}", *(v for k, v in case.items() if k != "ms"))
    for part, allocator in (("ss2d_core", ""), ("ss2d_core_kept", ", freed memory kept")):
        for direction, bound in (("forward", 50), ("forward_backward", 60)):
            faster = found.get(part, {}).get(f"{direction}_times_faster_than", {})
            baseline = [times for name, times in faster.items() if name == "mambapy"]
            at_least(bound, f"SS2D core {direction} over mamba.py{allocator}", *baseline)
    for key, of in (("kernel_ns_a_step", "kernels"), ("ns_a_step", "whole calls")):
        if steps := [case[key] for case in found.get("lengths", [])]:
            middle = statistics.median(steps)
            at_most(1.15, f"a step at any length over the median, {of}", max(steps) / middle, middle / min(steps))
    return asked
