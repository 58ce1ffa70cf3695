"""What this GPU can do at most, measured in the same run: bytes a second of a copy, and exponentials a second, which is
what a selective scan of many states ends at."""

from typing import Any

import torch

from benchmarks.timing import measure

COPY_BYTES = 1 << 30
EXP2_PROGRAMS, EXP2_BLOCK, EXP2_ROUNDS = 132 * 64, 2048, 512


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


def measure_ceilings(device: str) -> dict[str, Any]:
    ceilings: dict[str, Any] = {"copy_bytes_per_second": copy_bandwidth(device)}
    if device == "cuda":
        try:
            ceilings["exp2_per_second"] = exp2_rate()
        except Exception as error:  # a figure beside the point of the run
            ceilings["exp2_error"] = f"{type(error).__name__}: {error}"
    return ceilings
