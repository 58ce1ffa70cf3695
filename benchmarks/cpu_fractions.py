"""How far the CPU kernels are from the limits of this processor, measured in the same run.

    python benchmarks/cpu_fractions.py [--results FILE.json]

Whatever is compared takes turns, and medians are reported. A fraction is an operator's elements per second over those
of the bare recurrence in machine_limits.cpp: softplus, routes and all memory traffic count against the operator.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import parallel_scan
import torch
import torch.nn.functional as F
from machine_limits import limits
from test_operators import problem

import vmddpm_kernels as vk

THREADS = torch.get_num_threads()
SHAPES = {"4x384x16x16": (4, 384, 16, 16), "4x96x64x64": (4, 96, 64, 64)}  # batch, channels, height, width; 4 routes


def medians(seconds: float, **runs: Callable[[], object]) -> dict[str, float]:
    """Median milliseconds of each of `runs`, which take turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 3:
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: round(statistics.median(t), 3) for name, t in times.items()}


def with_threads(count: int, run: Callable[[], object]) -> Callable[[], object]:
    def threaded() -> None:
        torch.set_num_threads(count)
        run()
        torch.set_num_threads(THREADS)

    return threaded


def directions(tensors, table, operator=vk.cross_selective_scan):
    """forward, backward and both as functions of nothing."""
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


def fractions(seconds: float) -> dict[str, dict]:
    """N = 16 against the bare recurrence, N = 1 against the copy bandwidth for the bytes that must move."""
    limit, found = limits(1, THREADS), {}
    for states in (16, 1):
        for name, (batch, channels, height, width) in SHAPES.items():
            for shuffled in (False, True):
                tensors, table = problem(batch, channels, height, width, states, shuffled)
                forward, backward, _ = directions(tensors, table)
                ms = medians(
                    seconds,
                    forward=forward,
                    backward=backward,
                    forward_one_thread=with_threads(1, forward),
                    backward_one_thread=with_threads(1, backward),
                )
                case = {"ms": ms}
                for direction in ("forward", "backward"):
                    one = ms[f"{direction}_one_thread"]
                    case[f"{direction}_speedup_of_threads"] = round(one / ms[direction], 2)
                    if states == 16:
                        elements = tensors[1].numel()
                        for count, time_ms in ((THREADS, ms[direction]), (1, one)):
                            rate = elements / time_ms * 1e3
                            of = rate / limit[count][f"{direction}_16"]
                            case[f"{direction}_of_limit_{count}_threads"] = round(of, 3)
                    else:
                        moved = 4 * sum(t.numel() for t in tensors) + 4 * tensors[0].numel()
                        if direction == "backward":  # the inputs and dy in, a gradient for each input out
                            moved = 4 * (2 * sum(t.numel() for t in tensors) + tensors[0].numel())
                        bandwidth = max(limit[THREADS]["copy"], limit[THREADS]["copy_non_temporal"])
                        case[f"{direction}_of_bandwidth"] = round(moved / ms[direction] * 1e3 / bandwidth, 3)
                found[f"{name} N={states}{' shuffled' if shuffled else ''}"] = case
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
    return found


def ss2d_core(seconds: float) -> dict:
    """Projections, scan along four routes and merge at (4, 96, 64, 64), N = 16, beside parallel scans in PyTorch."""
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


def lengths(seconds: float) -> list[dict]:
    """Nanoseconds a step of forward and backward at batch 1, 96 channels, one route, N = 16, and peak extra memory."""
    found = []
    for length in (256, 1024, 4096, 16384, 65536, 262144):
        x, B, C = torch.randn(1, length, 96), torch.randn(1, length, 16), torch.randn(1, length, 16)
        delta, A = torch.rand(1, length, 96) - 3, -torch.rand(96, 16) - 0.1
        leaves = [t.requires_grad_() for t in (x, delta, A, B, C)]

        def run(leaves=leaves):
            y = vk.selective_scan(*leaves, delta_softplus=True, channel_last=True)
            return torch.autograd.grad(y, leaves, torch.ones_like(y))

        pages = int(Path("/proc/self/statm").read_text().split()[1])
        run()
        extra = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - pages * resource.getpagesize()
        ms = medians(seconds, step=run)["step"]
        nanoseconds, megabytes = round(ms / length * 1e6, 1), round(extra / 1e6, 1)
        found.append({"length": length, "ns_a_step": nanoseconds, "peak_extra_mb": megabytes})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="JSON file to write")
    parser.add_argument("--seconds", type=float, default=1.0, help="to measure each case for")
    options = parser.parse_args()
    torch.manual_seed(0)
    found = {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "backend": vk.backends()["cpu"].detail,
        "threads": THREADS,
        "lengths": lengths(options.seconds),  # first, as the peak of a process never falls
        "limits": limits(1, THREADS),
        "fractions": fractions(options.seconds),
        "half_precision": half_precision(options.seconds),
        "ss2d_core": ss2d_core(options.seconds),
    }
    text = json.dumps(found, indent=1)
    print(text)
    if options.results:
        options.results.write_text(text + "\n")


if __name__ == "__main__":
    main()
