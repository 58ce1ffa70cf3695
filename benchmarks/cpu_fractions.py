"""Speed of the CPU kernels as a fraction of the limits of this processor, measured in the same run.

    python benchmarks/cpu_fractions.py [PART ...] [--results FILE.json]

Compared functions run in turn; medians are reported. A fraction is the elements per second of an operator over those
of the bare recurrence in machine_limits.cpp, so softplus, routes and memory traffic lower it. With one state it is the
bandwidth of the operator, each input read once and each result written once, over the copy bandwidth; a second figure
uses the slower of two limits: copy bandwidth, and the arithmetic of recurrence and softplus.

The baselines of `ss2d_core` are parallel scans, mamba.py's too if `mambapy` is installed. `peaks` and `ss2d_core` use
the default allocator, as users do. The other parts keep freed memory, because fresh pages cost more than some kernels;
`ss2d_core_kept` is `ss2d_core` measured this way.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from unittest import mock

import parallel_scan
import torch
import torch.nn.functional as F
from machine_limits import limits
from quiet import Others
from timing import keep_freed_memory, measure_in_turn

import vmddpm_kernels as vk
from vmddpm_kernels.backends import extension

THREADS = torch.get_num_threads()
# batch, channels, height, width; 4 routes
SHAPES = {"4x384x16x16": (4, 384, 16, 16), "4x192x32x32": (4, 192, 32, 32), "4x96x64x64": (4, 96, 64, 64)}


def problem(batch, channels, height, width, states, shuffled=False):
    K, length = 4, height * width
    x, delta = torch.randn(batch, length, channels), torch.randn(batch, K, length, channels) - 3
    A = -torch.arange(1.0, states + 1).expand(K, channels, states).contiguous()
    B, C = torch.randn(batch, K, length, states), torch.randn(batch, K, length, states)
    D, bias = torch.ones(K, channels), torch.zeros(K, channels)
    table = vk.routes(height, width, permutation=vk.patch_permutation(height, width, seed=0) if shuffled else None)
    return [x, delta, A, B, C, D, bias], table


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


def directions(tensors, table, operator=vk.cross_selective_scan):
    """The functions forward(), backward() and both()."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    y = operator(*leaves, table)
    dy = torch.randn_like(y)

    def forward():
        with torch.no_grad():
            return operator(*leaves, table)

    def backward():
        return torch.autograd.grad(y, leaves, dy, retain_graph=True)

    def both():
        return torch.autograd.grad(operator(*leaves, table), leaves, dy)

    return forward, backward, both


def of_limit(direction: str, states: int, tensors: list[torch.Tensor], ms: float, threads: int) -> dict[str, float]:
    """Fractions of the limits of the machine with `threads` threads."""
    limit, elements = limits(1, THREADS)[threads], tensors[1].numel()
    recurrence = elements / limit[f"{direction}_{states}"]
    if states != 1:
        return {"of_limit": round(recurrence / ms * 1e3, 3)}
    inputs, y = sum(t.numel() for t in tensors), tensors[0].numel()
    moved = 4 * (inputs + y if direction == "forward" else 2 * inputs + y)  # backward: dy, and a gradient per input
    memory = moved / max(limit["copy"], limit["copy_non_temporal"])
    arithmetic = recurrence + elements / limit["softplus"]
    return {
        "of_bandwidth": round(memory / ms * 1e3, 3),
        "of_plain_copy": round(moved / limit["copy"] / ms * 1e3, 3),
        "of_longer_limit": round(max(memory, arithmetic) / ms * 1e3, 3),
    }


def fractions(seconds: float) -> dict[str, dict]:
    """Fractions of the limits with ordered routes, the speed-up by threads, and the cost of shuffled routes."""
    found = {}
    for states in (16, 1):
        for name, shape in SHAPES.items():
            tensors, table = problem(*shape, states)
            _, shuffled = problem(*shape, states, shuffled=True)
            forward, backward, _ = directions(tensors, table)
            shuffled_forward, shuffled_backward, _ = directions(tensors, shuffled)
            runs = {
                "forward": forward,
                "backward": backward,
                "forward_shuffled": shuffled_forward,
                "backward_shuffled": shuffled_backward,
            }
            if THREADS > 1:
                runs |= {
                    "forward_one_thread": with_threads(1, forward),
                    "backward_one_thread": with_threads(1, backward),
                }
            ms = medians(seconds, **runs)
            case: dict = {"ms": ms}
            for direction in ("forward", "backward"):
                case[direction] = of_limit(direction, states, tensors, ms[direction], THREADS)
                case[direction]["shuffled"] = round(ms[f"{direction}_shuffled"] / ms[direction], 3)
                if one := ms.get(f"{direction}_one_thread"):
                    case[direction]["speedup_of_threads"] = round(one / ms[direction], 2)
                    case[direction]["one_thread"] = of_limit(direction, states, tensors, one, 1)
            found[f"{name} N={states}"] = case
    return found


def half_precision(seconds: float) -> dict[str, dict]:
    found = {}
    for name, shape in SHAPES.items():
        tensors, table = problem(*shape, 16)
        runs = {}
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x, delta, A, B, C, D, bias = tensors
            cast = [x.to(dtype), delta.to(dtype), A, B.to(dtype), C.to(dtype), D, bias]
            forward, backward, _ = directions(cast, table)
            word = str(dtype).removeprefix("torch.")
            runs |= {f"forward_{word}": forward, f"backward_{word}": backward}
        found[name] = {"ms": medians(seconds, **runs)}
        ms = found[name]["ms"]
        for direction in ("forward", "backward"):
            for word in ("bfloat16", "float16"):
                found[name][f"{direction}_{word}_of_float32"] = round(
                    ms[f"{direction}_{word}"] / ms[f"{direction}_float32"], 3
                )
    return found


def ss2d_core(seconds: float) -> dict:
    """Projections, scan and merge of four routes at (4, 96, 64, 64), N = 16; the baselines are parallel scans."""
    rank, states, (batch, channels, height, width) = 6, 16, SHAPES["4x96x64x64"]
    (x, _, A, _, _, D, bias), table = problem(batch, channels, height, width, states)
    x_proj = torch.randn(4, rank + 2 * states, channels) * channels**-0.5
    dt_proj = torch.randn(4, channels, rank) * rank**-0.5

    def core(scan):
        def operator(x, x_proj, dt_proj, A, D, bias, table):
            projected = F.linear(x, x_proj.flatten(0, 1)).unflatten(2, (4, -1)).transpose(1, 2)
            low_rank, B, C = projected.split([rank, states, states], dim=3)                     # (B, K, L, .)
            delta = low_rank @ dt_proj.transpose(1, 2)                                          # (B, K, L, D)
            return scan(x, delta, A, B, C, D, bias - 3, table)

        return directions((x, x_proj, dt_proj, A, D, bias), table, operator)

    scans = {"vmddpm_kernels": vk.cross_selective_scan, "parallel_scan": parallel_scan.cross_selective_scan}
    try:
        from mambapy.pscan import pscan
    except ImportError:
        pass
    else:
        def mambapy_scan(a, b):  # (B, D, L, N), it takes (B, L, D, N)
            return pscan(a.transpose(1, 2), b.transpose(1, 2)).transpose(1, 2)

        scans["mambapy"] = lambda *t: parallel_scan.cross_selective_scan(*t, scan=mambapy_scan)
    forward, both = {}, {}
    for name, scan in scans.items():
        forward[name], _, both[name] = core(scan)
    found = {"forward_ms": medians(seconds, **forward), "forward_backward_ms": medians(seconds, **both)}
    for direction in ("forward", "forward_backward"):
        ms = found[f"{direction}_ms"]
        found[f"{direction}_times_faster_than"] = {
            name: round(ms[name] / ms["vmddpm_kernels"], 1) for name in scans if name != "vmddpm_kernels"
        }
    return found


def long_scans() -> Iterator[tuple[int, Callable[[], object]]]:
    """(length, forward and backward pass) with batch 1, 96 channels, one route, N = 16."""
    for length in (256, 1024, 4096, 16384, 65536, 262144):
        x, B, C = torch.randn(1, length, 96), torch.randn(1, length, 16), torch.randn(1, length, 16)
        delta, A = torch.rand(1, length, 96) - 3, -torch.rand(96, 16) - 0.1
        leaves, dy = [t.requires_grad_() for t in (x, delta, A, B, C)], torch.randn(1, length, 96)

        def run(leaves=leaves, dy=dy):
            y = vk.selective_scan(*leaves, delta_softplus=True, channel_last=True)
            return torch.autograd.grad(y, leaves, dy)

        yield length, run


def peaks(seconds: float) -> list[dict]:
    """The growth of the process's memory, in megabytes, in the first pass over a long scan."""
    found = []
    for length, run in long_scans():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        run()
        extra = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - pages * resource.getpagesize()
        found.append({"length": length, "peak_extra_mb": round(extra / 1e6, 1)})
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


def lengths(seconds: float) -> list[dict]:
    """Nanoseconds per step of a forward and backward pass over a long scan: for the whole pass, and for its kernels
    without the fixed cost of a call. The lengths run in turn."""
    scans = dict(long_scans())
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

    def ns(seconds: float, length: int) -> float:
        return round(seconds / length * 1e9, 1)

    median = statistics.median
    return [
        {"length": n, "ns_a_step": ns(median(whole[n]), n), "kernel_ns_a_step": ns(median(inside[n]), n)} for n in scans
    ]


# PARTS run first, with the default allocator.
PARTS = {"peaks": peaks, "ss2d_core": ss2d_core}
PARTS_KEPT = {
    "lengths": lengths,
    "fractions": fractions,
    "half_precision": half_precision,
    "ss2d_core_kept": ss2d_core,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"any of {', '.join(PARTS | PARTS_KEPT)}; by default all")
    parser.add_argument("--results", type=Path, help="JSON file to write or to update")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds for each case")
    options = parser.parse_args()
    if unknown := set(options.parts) - (PARTS | PARTS_KEPT).keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS | PARTS_KEPT)}")
    torch.manual_seed(0)
    found = json.loads(options.results.read_text()) if options.results and options.results.exists() else {}
    found |= {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "backend": vk.backends()["cpu"].detail,
        "threads": THREADS,
        "limits": limits(1, THREADS),
    }
    for part, measure in (PARTS | PARTS_KEPT).items():
        if options.parts and part not in options.parts:
            continue
        if part in PARTS_KEPT:
            keep_freed_memory()
        others = Others()
        found[part] = measure(options.seconds)
        found.setdefault("share_of_other_programs", {})[part] = others.share()
    text = json.dumps(found, indent=1)
    print(text)
    if options.results:
        options.results.write_text(text + "\n")


if __name__ == "__main__":
    main()
