"""Time and memory of a call. On a GPU there are two times: `ms`, between events around each call while the host runs
ahead of the GPU, which is the time of the kernels; and `wall_ms`, the time per call of a loop on the host."""

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

WARM_UPS = 3
LEAST_REPETITIONS, MOST_REPETITIONS = 20, 40
SECONDS_TO_FILL = 0.05
CACHE_TIMES = 3  # size of all input sets over that of the cache, so that no call finds its inputs there
MOST_SETS = 16
clock = time.perf_counter
HOST_SECONDS = 2e-3  # for the host to queue the launches of a call
CYCLES_A_SECOND = 2e9  # of a GPU in torch.cuda._sleep; an overestimate only lengthens the sleep


def keep_freed_memory() -> None:
    """Make the C library keep freed memory for later allocations, as torch's allocator on a GPU does. By default it
    returns the memory of large results to the system in some runs, and fresh pages then take a third of the time of a
    long scan. Does nothing without glibc."""
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(trim_threshold, -1)  # never trim: some baselines free more than two gigabytes at once
        mallopt(mmap_max, 0)


def quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(q * (len(ordered) - 1)))]


def cache_bytes(device: str) -> int:
    """The size of the last-level cache."""
    if device == "cuda":
        return torch.cuda.get_device_properties(0).L2_cache_size
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((1024 * int(size.read_text().strip().removesuffix("K")) for size in sizes), default=32 << 20)


def sets_needed(input_bytes: int, device: str) -> int:
    """The number of input sets to rotate."""
    return max(3, min(MOST_SETS, -(-CACHE_TIMES * cache_bytes(device) // input_bytes)))


def repetitions_for(seconds: float, least: int) -> int:
    return max(least, min(MOST_REPETITIONS, int(SECONDS_TO_FILL / max(seconds, 1e-9))))


def gpu_times(call: Callable[[Any], Any], inputs: Sequence[Any], repetitions: int, host_seconds: float) -> list[float]:
    """Milliseconds of each call. The GPU sleeps while the host queues all calls, so that gaps between launches do not
    count."""
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(repetitions)] for _ in range(2)]
    torch.cuda._sleep(int(min(0.5, 1.5 * repetitions * host_seconds) * CYCLES_A_SECOND))
    for i in range(repetitions):
        events[0][i].record()
        call(inputs[i % len(inputs)])
        events[1][i].record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in zip(*events)]


def peak_bytes(call: Callable[[Any], Any], one: Any) -> int:
    """Peak memory of torch's allocator during the call, minus the memory allocated before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = call(one)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del kept
    return peak


def measure(
    call: Callable[[Any], Any], inputs: Sequence[Any], device: str, least: int = LEAST_REPETITIONS
) -> dict[str, Any]:
    """Time `call` on several inputs in turn, so that it finds none of its inputs in the cache."""
    gpu = device == "cuda"

    def call_seconds(count: int) -> tuple[float, float]:
        """Seconds of one of `count` calls in a loop: of the host alone, and until the device has finished."""
        start = time.perf_counter()
        for i in range(count):
            call(inputs[i % len(inputs)])
        host = time.perf_counter() - start
        if gpu:
            torch.cuda.synchronize()
        return host / count, (time.perf_counter() - start) / count

    call_seconds(WARM_UPS)
    host_seconds, seconds = call_seconds(WARM_UPS)
    repetitions = repetitions_for(seconds, least)
    _, wall = call_seconds(repetitions)
    if gpu:
        times = gpu_times(call, inputs, repetitions, host_seconds)
    else:
        times = [1e3 * one_time(lambda i: call(inputs[i % len(inputs)]), i, device) for i in range(repetitions)]
    return {
        "ms": statistics.median(times),
        "p20_ms": quantile(times, 0.2),
        "p80_ms": quantile(times, 0.8),
        "wall_ms": 1e3 * wall,
        "repetitions": repetitions,
        "input_sets": len(inputs),
        "peak_bytes": peak_bytes(call, inputs[0]) if gpu else None,
    }


def measure_in_turn(
    implementations: dict[str, Callable[[int], Any]], device: str, seconds: float, least: int
) -> dict[str, list[float]]:
    """Seconds of each call of each implementation; `call(i)` takes the i-th set of inputs.

    The calls of all implementations are interleaved, so that disturbances of the machine affect all of them alike. Each
    is called for about `seconds`, `least` to MOST_REPETITIONS times, after at most WARM_UPS warm-up calls."""
    counts = {}
    for name, call in implementations.items():
        begun = time.perf_counter()
        for i in range(WARM_UPS):
            one = one_time(call, i, device)
            if time.perf_counter() - begun > seconds:
                break
        counts[name] = max(least, min(MOST_REPETITIONS, int(seconds / max(one, 1e-6))))
    turns = sorted(((i + 0.5) / count, name) for name, count in counts.items() for i in range(count))
    times: dict[str, list[float]] = {name: [] for name in implementations}
    gc.collect()
    gc.disable()
    try:
        for i, (_, name) in enumerate(turns):
            times[name].append(one_time(implementations[name], i, device))
    finally:
        gc.enable()
    return times


def one_time(call: Callable[[int], Any], i: int, device: str) -> float:
    """Seconds of one call; on a GPU between events, after the host has queued the whole call."""
    if device == "cpu":
        start = clock()
        call(i)
        return clock() - start
    return gpu_times(call, [i], 1, HOST_SECONDS)[0] / 1e3
