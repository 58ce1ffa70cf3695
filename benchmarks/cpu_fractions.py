"""Speed of the CPU kernels as a fraction of the limits of this processor, measured in the same run.

    python -m benchmarks.cpu_fractions [PART ...] [--results FILE.json]

Compared functions run in turn; medians are reported. A fraction is the elements per second of an operator over those
of the bare recurrence in machine_limits.cpp, so softplus, routes and memory traffic lower it. With one state it is the
bandwidth of the operator, each input read once and each result written once, over the copy bandwidth; a second figure
uses the slower of two limits: copy bandwidth, and the arithmetic of recurrence and softplus.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from unittest import mock

import torch

import vmddpm_kernels as vk
from benchmarks.baselines import Baselines
from benchmarks.implementations import fused, sequence_channel_last, shuffled
from benchmarks.machine_limits import limits
from benchmarks.problem import BOTH, FORWARD, Case, Implementation, Problem
from benchmarks.quiet import Others
from benchmarks.timing import keep_freed_memory, measure_in_turn
from vmddpm_kernels.backends import extension

THREADS = torch.get_num_threads()
IMAGES = [(4, 16, 16, 384), (4, 32, 32, 192), (4, 64, 64, 96)]  # batch, height, width, channels; 4 routes
LENGTHS = (256, 1024, 4096, 16384, 65536, 262144)


def medians(seconds: float, **runs: Callable[[], object]) -> dict[str, float]:
    """Median milliseconds of each of `runs`, measured in turn."""
    calls = {name: lambda _, run=run: run() for name, run in runs.items()}
    times = measure_in_turn(calls, "cpu", seconds / len(runs), 3)
    return {name: round(1e3 * statistics.median(t), 3) for name, t in times.items()}


def with_threads(count: int, run: Callable[[], object]) -> Callable[[], object]:
    def threaded() -> None:
        torch.set_num_threads(count)
        run()
        torch.set_num_threads(THREADS)

    return threaded


def directions(one: Implementation) -> dict[str, Callable[[], object]]:
    y = one.run(*one.leaves)
    return {
        "forward": lambda: one.call(FORWARD),
        "backward": lambda: torch.autograd.grad(y, one.leaves, one.dy, retain_graph=True),
    }


def of_limit(direction: str, case: Case, ms: float, threads: int) -> dict[str, float]:
    """Fractions of the limits of the machine with `threads` threads."""
    limit = limits(1, THREADS)[threads]
    recurrence = case.elements / limit[f"{direction}_{case.states}"]
    if case.states != 1:
        return {"of_limit": round(recurrence / ms * 1e3, 3)}
    moved = case.least_bytes if direction == "forward" else case.least_backward_bytes
    memory = moved / max(limit["copy"], limit["copy_non_temporal"])
    arithmetic = recurrence + case.elements / limit["softplus"]
    return {
        "of_bandwidth": round(memory / ms * 1e3, 3),
        "of_plain_copy": round(moved / limit["copy"] / ms * 1e3, 3),
        "of_longer_limit": round(max(memory, arithmetic) / ms * 1e3, 3),
    }


def fractions(seconds: float) -> dict[str, dict]:
    """Fractions of the limits with ordered routes, the speed-up by threads, and the cost of shuffled routes."""
    found = {}
    for case in [Case(*image, states) for states in (16, 1) for image in IMAGES]:
        problem = Problem.draw(case, "cpu", seed=0)
        runs = directions(fused(problem, "cpu", Baselines()))
        one_thread = {f"{name}_one_thread": with_threads(1, run) for name, run in runs.items() if THREADS > 1}
        along_shuffled = directions(shuffled(problem, "cpu", Baselines()))
        ms = medians(seconds, **runs, **{f"{n}_shuffled": run for n, run in along_shuffled.items()}, **one_thread)
        record: dict = {"ms": ms}
        for direction in runs:
            record[direction] = of_limit(direction, case, ms[direction], THREADS)
            record[direction]["shuffled"] = round(ms[f"{direction}_shuffled"] / ms[direction], 3)
            if one := ms.get(f"{direction}_one_thread"):
                record[direction]["speedup_of_threads"] = round(one / ms[direction], 2)
                record[direction]["one_thread"] = of_limit(direction, case, one, 1)
        found[case.name] = record
    return found


class TimedKernels:
    """The compiled extension, with a timer around its scans."""

    def __init__(self, native: object):
        self.native, self.seconds = native, 0.0

    def __getattr__(self, name: str) -> object:
        return getattr(self.native, name)

    def _timed(self, kernel: Callable[..., None], *args: object) -> None:
        start = time.perf_counter()
        kernel(*args)
        self.seconds += time.perf_counter() - start

    def scan_forward(self, *args: object) -> None:
        self._timed(self.native.scan_forward, *args)

    def scan_backward(self, *args: object) -> None:
        self._timed(self.native.scan_backward, *args)


def touch_memory(run: Callable[[], object], calls: int = 20) -> None:
    """Call `run` until it causes no more page faults, which would slow the timed calls."""
    for _ in range(calls):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        run()
        if resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 16:
            return


def long_scan(length: int) -> Callable[[], object]:
    """Forward and backward pass with batch 1, 96 channels, one route, N = 16."""
    problem = Problem.draw(Case(1, 0, length, 96, 16), "cpu", seed=0)
    scan = sequence_channel_last(problem, "cpu", Baselines())
    return lambda: scan.call(BOTH)


def lengths(seconds: float) -> list[dict]:
    """Nanoseconds per step of a forward and backward pass over a long scan: for the whole pass, and for its kernels
    without the fixed cost of a call. The lengths run in turn."""
    scans = {length: long_scan(length) for length in LENGTHS}
    whole: dict[int, list[float]] = {length: [] for length in scans}
    inside: dict[int, list[float]] = {length: [] for length in scans}
    with mock.patch.object(extension, "native", TimedKernels(extension.native)) as kernels:
        for run in scans.values():
            touch_memory(run)
        end = time.perf_counter() + seconds * len(scans)
        while time.perf_counter() < end or min(map(len, inside.values())) < 3:
            for length, run in scans.items():
                for _ in range(max(1, 65536 // length)):
                    kernels.seconds, start = 0.0, time.perf_counter()
                    run()
                    whole[length].append(time.perf_counter() - start)
                    inside[length].append(kernels.seconds)

    def ns(seconds: list[float], length: int) -> float:
        return round(statistics.median(seconds) / length * 1e9, 1)

    return [{"length": n, "ns_a_step": ns(whole[n], n), "kernel_ns_a_step": ns(inside[n], n)} for n in scans]


PARTS = {"lengths": lengths, "fractions": fractions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}; by default all")
    parser.add_argument("--results", type=Path, help="JSON file to write or to update")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds for each case")
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    keep_freed_memory()
    found = json.loads(options.results.read_text()) if options.results and options.results.exists() else {}
    found |= {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "backend": vk.backends()["cpu"].detail,
        "threads": THREADS,
        "limits": limits(1, THREADS),
    }
    for part in options.parts or PARTS:
        others = Others()
        found[part] = PARTS[part](options.seconds)
        found.setdefault("share_of_other_programs", {})[part] = others.share()
    text = json.dumps(found, indent=1)
    print(text)
    if options.results:
        options.results.write_text(text + "\n")


if __name__ == "__main__":
    main()
