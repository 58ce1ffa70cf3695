"""The launches of a scan on a GPU and their instructions, found on a CPU: the backend plans and launches as on a GPU,
and the PTX of a few blocks of each launch is executed (tests/ptx) and counted for all blocks."""

import argparse
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.assumptions import ASSUMED, Gpu

# Read when Triton is imported; another process compiles its kernels.
os.environ.setdefault("TRITON_INTERPRET", "1")
sys.path.extend(str(Path(__file__).resolve().parents[2] / "tests" / f) for f in ("ptx", "cuda_emulation", "cuda_sass"))

import cuda_kernels
import emulation_build
import pytest
import sass
import sass_counts

import vmddpm_kernels as vk

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class Shape:
    """Sizes of a scan: an image along several routes, which are summed, or a plain sequence with one route."""

    batch: int
    routes: int
    channels: int
    length: int
    states: int

    @classmethod
    def parse(cls, text: str) -> "Shape":
        try:
            sizes = [int(word) for word in text.split(",")]
        except ValueError:
            sizes = []
        if len(sizes) != 5 or min(sizes) < 1:
            raise argparse.ArgumentTypeError(f"{text!r}: five positive sizes B,K,D,L,N, for example 16,4,192,1024,16")
        return cls(*sizes)

    def __str__(self) -> str:
        return f"{self.batch},{self.routes},{self.channels},{self.length},{self.states}"

    @property
    def warp_pairs(self) -> float:
        """(step, state) pairs of all channels, routes and images, by 32 lanes."""
        return self.batch * self.routes * self.channels * self.length * self.states / 32


@dataclass(frozen=True)
class Launch:
    """A launch. Counts are of warp instructions, and None if the launch was only recorded."""

    direction: str
    kernel: str
    blocks: int
    threads: int
    shared_bytes: int
    registers: int
    ptx: float | None = None                  # instructions of the PTX
    opcodes: "Counter[str] | None" = None     # of the machine code
    low: float | None = None                  # bounds of all instructions of the machine code
    high: float | None = None
    residual: float | None = None
    bytes_read: float | None = None           # sectors of 32 bytes, once for all lanes of a warp
    bytes_written: float | None = None

    @property
    def instructions(self) -> float:
        return sum(self.opcodes.values()) if self.opcodes else 0.0


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="+", type=Shape.parse, metavar="SHAPE", help="B,K,D,L,N")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    return parser


def recorded(shape: Shape, dtype: str, gpu: Gpu) -> list[Launch]:
    """The launches of the CUDA backend's forward, with checkpoints, and backward on the GPU, in order."""
    with pytest.MonkeyPatch.context() as patch:
        found = _cuda(patch, gpu.architecture, gpu, mode="record")
        return [
            Launch(direction, _name(one.name), one.blocks, one.threads, one.shared_bytes,
                   _compiled(one.architecture)[one.name][1])
            for direction, one in _run(found, "cuda", shape, dtype, DIRECTIONS)
        ]  # fmt: skip


def counted(
    shape: Shape, dtype: str, backend: str = "cuda", gpu: Gpu = ASSUMED.gpus[90], most_blocks: int = 16,
    directions: tuple[str, ...] = DIRECTIONS, triton: str | None = None,
) -> list[Launch]:  # fmt: skip
    """The launches with their counts, for which `most_blocks` blocks of each are executed. `triton` is the version of
    Triton that compiles, by default the installed one."""
    with pytest.MonkeyPatch.context() as patch:
        if backend == "cuda":
            found: Any = _cuda(patch, gpu.architecture, gpu, mode="count", most_blocks=most_blocks)
        else:
            import triton_kernels

            options = {"mode": "count", "most_blocks": most_blocks, "triton": triton or triton_kernels.PINNED}
            found = triton_kernels.use_ptx(patch, gpu.architecture, **options)
        return [_costs(direction, one) for direction, one in _run(found, backend, shape, dtype, directions)]


def _cuda(patch: pytest.MonkeyPatch, architecture: int, gpu: Gpu, **options: Any) -> Any:
    native = _native()
    limits = {"multiprocessors": gpu.multiprocessors, "shared_bytes": gpu.shared_bytes_of_block}
    return cuda_kernels.use_ptx(patch, native, architecture, **limits, **options)


@cache
def _native() -> Any:
    return emulation_build.load(emulation_build.build())


def _run(found: Any, backend: str, shape: Shape, dtype: str, directions: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    tensors, table = _inputs(shape, DTYPES[dtype])
    leaves = [tensor.detach().requires_grad_("backward" in directions) for tensor in tensors]
    y = vk.cross_selective_scan(*leaves, table, delta_softplus=True, backend=backend)
    seen = len(found.launched)
    if "backward" in directions:
        torch.autograd.grad(y, leaves, torch.ones_like(y))
    for i, one in enumerate(found.launched):
        direction = "forward" if i < seen else "backward"
        if direction in directions:
            yield direction, one


def _inputs(shape: Shape, dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """x, delta, A, B, C, D and the bias of delta, and the table. All images are the same memory, so that the largest
    batch takes little."""
    B, K, D, L, N = shape.batch, shape.routes, shape.channels, shape.length, shape.states
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator)

    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    x = normal(1, L, D).to(dtype).expand(B, L, D)
    delta, matrices = normal(1, K, L, D).to(dtype).expand(B, K, L, D), normal(2, 1, K, L, N).to(dtype)
    A = -torch.rand(K, D, N, generator=generator).to(parameters) - 0.1
    B_and_C = [matrix.expand(B, K, L, N).contiguous() for matrix in matrices]
    height = max(d for d in range(1, int(L**0.5) + 1) if L % d == 0)
    table = vk.routes(height, L // height)[:K] if K > 1 else None
    return [x, delta, A, *B_and_C, normal(K, D).to(parameters), normal(K, D).to(parameters)], table


def _costs(direction: str, one: Any) -> Launch:
    if hasattr(one, "compiled"):
        kernel, cubin = one.compiled.launcher.kernel, one.compiled.path.with_suffix(".cubin")
        name, registers = one.name, _registers_of_cubin(cubin)
    else:
        kernel, _ = cuda_kernels.kernels(one.architecture)[one.name]
        (cubin, registers), name = _compiled(one.architecture)[one.name], _name(one.name)
    function = sass_counts.functions(cubin)[kernel.name]
    executed = sass_counts.join(kernel, one.counts, function, one.counted_blocks * one.threads)
    scale = one.blocks / one.counted_blocks
    ptx = sum(n * len(block.instructions) for n, block in zip(one.counts.blocks, kernel.blocks))
    read, written = (32 * sum(by_line) * scale for by_line in one.counts.sectors)
    return Launch(
        direction, name, one.blocks, one.threads, one.shared_bytes, registers, ptx * scale,
        Counter({opcode: n * scale for opcode, n in executed.opcodes.items()}), executed.low * scale,
        executed.high * scale, executed.residual, read, written,
    )  # fmt: skip


@cache
def _compiled(architecture: int) -> dict[str, tuple[Path, int]]:
    """The cubin and the registers of each of our CUDA kernels."""
    return {
        cuda_kernels.plain_name(entry.mangled): (cubin.path, entry.registers)
        for cubin in cuda_kernels.nvcc.build([architecture])
        for entry in cuda_kernels.nvcc.resources(cubin)
    }


def _registers_of_cubin(cubin: Path) -> int:
    cuobjdump = Path(sass.find_nvdisasm()).with_name("cuobjdump")
    command = [str(cuobjdump), "--dump-resource-usage", str(cubin)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return max(int(n) for n in re.findall(r"REG:(\d+)", text))


def _name(symbol: str) -> str:
    return str(cuda_kernels.nvcc.kernel_name(symbol))
