"""Limits of this machine, measured in the same run, and the least time that given work takes within them."""

from dataclasses import dataclass
from subprocess import CalledProcessError
from typing import Any

import torch

from benchmarks.problem import BOTH, Case
from benchmarks.timing import measure_in_turn

MATMUL = 1536


@dataclass(frozen=True)
class Work:
    """Unavoidable work: bytes to move, floating-point operations of matrix products, and elements of a scan, forward
    and backward, each with `states` states."""

    bytes: float = 0
    matmul_flops: float = 0
    forward_elements: float = 0
    backward_elements: float = 0
    states: int = 1

    @classmethod
    def of_scan(cls, case: Case, direction: str) -> "Work":
        both = direction == BOTH
        moved = case.least_bytes + both * case.least_backward_bytes
        return cls(moved, 0, case.elements, both * case.elements, case.states)

    @classmethod
    def of_attention(cls, case: Case, direction: str) -> "Work":
        """Two products of L x L x D forward, and five backward, which computes the first again."""
        flops = 2 * case.batch * case.length**2 * case.channels * (7 if direction == BOTH else 2)
        return cls(4 * case.batch * case.length * case.channels * case.dtype.itemsize, flops)


def measure_limits(device: str) -> dict[str, Any]:
    """Bytes, matrix operations and scan elements or exponentials a second."""
    limits = {"matmul_flops": matmul_rate(device)}
    if device == "cuda":
        from benchmarks.gpu.ceilings import measure_ceilings

        return {**measure_ceilings(device), **limits}
    threads = torch.get_num_threads()
    try:
        from benchmarks.machine_limits import limits as machine_limits

        return {**machine_limits(threads)[threads], **limits}
    except (ImportError, OSError, CalledProcessError) as error:  # no compiler: times have no share of the limit
        return {**limits, "missing": f"{type(error).__name__}: {error}"}


def matmul_rate(device: str) -> float:
    a, b = (torch.randn(MATMUL, MATMUL, device=device) for _ in range(2))
    best = min(measure_in_turn({"matmul": lambda _: a @ b}, device, 0.3, 5)["matmul"])
    return 2 * MATMUL**3 / best


def least_seconds(work: Work, limits: dict[str, Any]) -> float | None:
    """The longer of two times: of moving the bytes, and of the matrix products and the recurrence. None if a limit is
    unknown."""
    if "copy_bytes_per_second" in limits:
        exponentials = work.forward_elements * (work.states + 1) + work.backward_elements * (work.states + 1)
        scan = exponentials / limits["exp2_per_second"] if "exp2_per_second" in limits else None
        moving = work.bytes / limits["copy_bytes_per_second"]
    elif "forward_16" in limits:
        scan = sum(
            elements * seconds_an_element(limits, name, work.states)
            for name, elements in (("forward", work.forward_elements), ("backward", work.backward_elements))
        )
        moving = work.bytes / max(limits["copy"], limits["copy_non_temporal"])
    else:
        return None
    return None if scan is None else max(moving, scan + work.matmul_flops / limits["matmul_flops"])


def seconds_an_element(limits: dict[str, Any], direction: str, states: int) -> float:
    """Seconds of the ideal recurrence, interpolated between 1 and 16 states."""
    one, sixteen = (1 / limits[f"{direction}_{n}"] for n in (1, 16))
    return one + (sixteen - one) * (states - 1) / 15
