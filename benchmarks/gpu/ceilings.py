"""What this GPU can do at most, measured in the same run: bytes a second of a copy, exponentials a second, which is
what a selective scan of many states ends at, its clock, and what a launch costs after another."""

from typing import Any

import torch

from benchmarks.timing import measure

COPY_BYTES = 1 << 30
EXP2_PROGRAMS, EXP2_BLOCK, EXP2_ROUNDS = 132 * 64, 2048, 512
SLEEP_CYCLES = 20_000_000
LAUNCHES = 200


def copy_bandwidth(device: str) -> float:
    """Bytes a second, those read and those written counted."""
    size = COPY_BYTES if device == "cuda" else 1 << 20
    pairs = [[torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2)] for _ in range(2)]
    result = measure(lambda pair: pair[0].copy_(pair[1]), pairs, device)
    return 2 * size / (1e-3 * result["ms"])


def exp2_rate() -> float:
    """exp2 a second, from a kernel that does little else: every value is fed back 512 times."""
    from benchmarks.gpu.exp2_kernel import exp2_kernel

    out = torch.empty(EXP2_PROGRAMS * EXP2_BLOCK, device="cuda")
    grid = (EXP2_PROGRAMS,)
    result = measure(lambda o: exp2_kernel[grid](o, EXP2_ROUNDS, EXP2_BLOCK), [out], "cuda")
    return out.numel() * EXP2_ROUNDS / (1e-3 * result["ms"])


def clock() -> float:
    """Cycles a second of the multiprocessors, from a kernel that waits for a number of them."""
    result = measure(lambda _: torch.cuda._sleep(SLEEP_CYCLES), [None], "cuda")
    return SLEEP_CYCLES / (1e-3 * result["ms"])


def launch_seconds() -> float:
    """Seconds of an almost empty launch after another one, in a CUDA graph, without the host."""
    one = torch.zeros(1, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            one.add_(1)
    return 1e-3 * float(measure(lambda _: graph.replay(), [None], "cuda")["ms"]) / LAUNCHES


def measure_ceilings(device: str) -> dict[str, Any]:
    ceilings: dict[str, Any] = {"copy_bytes_per_second": copy_bandwidth(device)}
    if device == "cuda":
        more = {"exp2_per_second": exp2_rate, "clock_hertz": clock, "launch_seconds": launch_seconds}
        for name, function in more.items():
            try:
                ceilings[name] = function()
            except Exception as error:  # a figure beside the point of the run
                ceilings[f"{name.split('_')[0]}_error"] = f"{type(error).__name__}: {error}"
    return ceilings
