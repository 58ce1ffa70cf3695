"""The limits of this GPU, measured in the same run: bytes per second of a copy; exponentials per second, which limit a
selective scan with many states; the clock; and the cost of a launch that follows another one."""

from typing import Any

import torch

from benchmarks.timing import measure

COPY_BYTES = 1 << 30
EXP2_PROGRAMS, EXP2_BLOCK, EXP2_ROUNDS = 132 * 64, 2048, 512
SLEEP_CYCLES = 20_000_000
LAUNCHES = 200


def copy_bandwidth(device: str) -> float:
    """Bytes per second, read and written."""
    size = COPY_BYTES if device == "cuda" else 1 << 20
    pairs = [[torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2)] for _ in range(2)]
    result = measure(lambda pair: pair[0].copy_(pair[1]), pairs, device)
    return 2 * size / (1e-3 * result["ms"])


def exp2_rate() -> float:
    """exp2 per second, from a kernel that does little else: it applies exp2 512 times to every value."""
    from benchmarks.gpu.exp2_kernel import exp2_kernel

    out = torch.empty(EXP2_PROGRAMS * EXP2_BLOCK, device="cuda")
    grid = (EXP2_PROGRAMS,)
    result = measure(lambda o: exp2_kernel[grid](o, EXP2_ROUNDS, EXP2_BLOCK), [out], "cuda")
    return out.numel() * EXP2_ROUNDS / (1e-3 * result["ms"])


def clock() -> float:
    """Cycles per second of the multiprocessors, from a kernel that waits for a given number of cycles."""
    result = measure(lambda _: torch.cuda._sleep(SLEEP_CYCLES), [None], "cuda")
    return SLEEP_CYCLES / (1e-3 * result["ms"])


def launch_seconds() -> float:
    """Seconds of a launch of an almost empty kernel after another one, in a CUDA graph, without the host."""
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
            except Exception as error:  # the run can do without this figure
                ceilings[f"{name.split('_')[0]}_error"] = f"{type(error).__name__}: {error}"
    return ceilings
