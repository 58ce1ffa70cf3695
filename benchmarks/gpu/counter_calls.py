"""The program that ncu profiles: it makes each call of counters.py once. A launch of MARKER precedes each call, so the
launches between two markers belong to one call."""

import argparse
from dataclasses import dataclass

import torch

from benchmarks.baselines import Baselines
from benchmarks.implementations import fused
from benchmarks.problem import ROUTES, Case, Problem

MARKER = "spin_kernel"  # the kernel of torch.cuda._sleep


@dataclass(frozen=True)
class Call:
    """One direction of a scan of shape B, K, D, L, N, and the property of the kernels that it shows."""

    shape: tuple[int, int, int, int, int]
    dtype: torch.dtype
    direction: str
    shows: str

    @property
    def name(self) -> str:
        return f"{','.join(map(str, self.shape))} {str(self.dtype).removeprefix('torch.')} {self.direction}"


FILLED, STAGE = (128, 4, 192, 784, 16), (16, 4, 192, 1024, 16)
LONG, ONE_STATE = (4, 4, 192, 4096, 16), (64, 4, 192, 3136, 1)
CALLS = [
    Call(FILLED, torch.bfloat16, "forward", "16 states a thread"),
    Call(FILLED, torch.bfloat16, "backward", "whole sequences"),
    Call(STAGE, torch.bfloat16, "forward", "4 states a thread, images of routes"),
    Call(LONG, torch.bfloat16, "forward", "segments and the walk before them"),
    Call(FILLED, torch.float32, "backward", "float32"),
    Call(ONE_STATE, torch.bfloat16, "backward", "one state"),
]


def run(call: Call, device: str, tiny: bool) -> None:
    batch, _, channels, length, states = (2, ROUTES, 6, 16, call.shape[4]) if tiny else call.shape
    side = int(length**0.5)
    case = Case(batch, side, side, channels, states, call.dtype)
    scan = fused(Problem.draw(case, device, seed=0), device, Baselines())
    if call.direction == "forward":
        with profiled(device):
            scan.run(*scan.leaves)  # with checkpoints, as in training
        return
    y = scan.run(*scan.leaves)
    with profiled(device):
        torch.autograd.grad(y, scan.leaves, scan.dy)


class profiled:
    """A context in which ncu profiles all launches."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def __enter__(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
            torch.cuda._sleep(1)

    def __exit__(self, *exception: object) -> None:
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU")
    dry_run = parser.parse_args().dry_run
    for call in CALLS:
        run(call, "cpu" if dry_run else "cuda", dry_run)
        print(call.name, flush=True)


if __name__ == "__main__":
    main()
