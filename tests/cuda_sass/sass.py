"""Counts the instructions of the recurrence loops of the CUDA kernels, per (step, state), in their disassembly. Code
around the loops costs more than they do; `python -m benchmarks.gpu.count` counts whole kernels.

python tests/cuda_sass/sass.py [--arch 90] [--every-loop] [FILE.cu ...]
"""

import argparse
import contextlib
import importlib.util
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from compile import Unavailable, build, find_nvcc, kernel_name, resources
from control_flow import Function, Instruction, Loop, parse

# Passes over the steps in each kernel; 1 for all others.
PASSES = {"scan_backward": 2, "scan_backward_alone": 2}

# Column headings, and the instructions in each by opcode up to the first dot.
COLUMNS = {
    "MUFU": {"MUFU"},
    "LDS": {"LDS", "LDSM"},
    "STS": {"STS"},
    "SHFL": {"SHFL"},
    "global": {"LDG", "STG", "LDGSTS", "RED", "REDG", "ATOMG", "LD", "ST"},
    "FP32": {"FFMA", "FMUL", "FADD", "FFMA2", "FMUL2", "FADD2"},
    "BAR": {"BAR"},
    "local": {"LDL", "STL"},
}


@dataclass(frozen=True)
class Counts:
    header: int
    ex2: int
    instructions: int
    by_column: dict[str, int]


class Kernel:
    """The recurrence loops of one kernel, and the loops that a step executes in each pass over the sequence."""

    def __init__(self, function: Function, passes: int = 1):
        self.name = kernel_name(function.name)
        self._passes, self._function = passes, function

    @property
    def instructions(self) -> list[Instruction]:
        return self._function.instructions

    @property
    def local_memory(self) -> list[str]:
        """Instructions on local memory, including subroutines."""
        return [i.text for i in self._function.instructions if i.base in COLUMNS["local"]]

    @cached_property
    def loops(self) -> dict[Loop, Counts]:
        """The innermost loops with EX2, and outer loops that contain more EX2 of their own: fully unrolled inner loops,
        but not a single peeled step. The kernel itself counts as a loop that runs once."""
        function = self._function
        whole = Loop(0, frozenset(function.reachable))
        total = {loop: counts for loop in {whole, *function.loops} if (counts := _count(function, loop)).ex2}
        found = {}
        for loop in sorted(total, key=lambda loop: loop.header):
            inner = [other for other in total if other.blocks < loop.blocks]
            own = _count(function, Loop(loop.header, loop.blocks.difference(*(other.blocks for other in inner))))
            if own.ex2 > max((total[other].ex2 for other in inner), default=0):
                found[loop] = own
        return found

    @cached_property
    def counted(self) -> list[Loop]:
        """The loops that count. The compiler may split a loop into a main loop and a remainder, or one per side of an
        invariant condition. Most steps run in the most unrolled loop; among equals the worst counts. Loops with few
        EX2 belong to softplus, which is computed once per step."""
        order = sorted(self.loops, key=lambda loop: (self.loops[loop].ex2, self.loops[loop].instructions), reverse=True)
        most = [loop for loop in order if 8 * self.loops[loop].ex2 > self.loops[order[0]].ex2]
        return most[: self._passes]

    @property
    def complete(self) -> bool:
        """Whether a loop was found for every pass."""
        return len(self.counted) == self._passes

    def figures(self, loop: Loop) -> dict[str, float]:
        """Instructions per (step, state)."""
        counts = self.loops[loop]
        return {
            heading: value / counts.ex2 for heading, value in {"all": counts.instructions, **counts.by_column}.items()
        }

    def total(self) -> dict[str, float]:
        passes = [self.figures(loop) for loop in self.counted]
        return {heading: sum(figures[heading] for figures in passes) for heading in ("all", *COLUMNS)}


def _count(function: Function, loop: Loop) -> Counts:
    found = [i for i in function.within(loop) if i.base != "NOP"]
    by_column = {heading: sum(i.base in bases for i in found) for heading, bases in COLUMNS.items()}
    ex2 = sum(i.opcode.startswith("MUFU.EX2") for i in found)
    address = function.blocks[loop.header].instructions[0].address
    return Counts(address, ex2, len(found), by_column)


def find_nvdisasm() -> str:
    folders = []
    with contextlib.suppress(Unavailable):
        folders.append(Path(find_nvcc()).parent)
    triton = importlib.util.find_spec("triton")
    if triton and triton.origin:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    for path in (None, *map(str, folders)):
        if found := shutil.which("nvdisasm", path=path):
            return found
    raise Unavailable("no nvdisasm on PATH, beside nvcc or in the triton package")


def kernels(architecture: int, sources: list[Path] | None = None) -> list[Kernel]:
    found = []
    for cubin in build([architecture], sources):
        entries = {entry.mangled for entry in resources(cubin)}
        command = [find_nvdisasm(), "-c", str(cubin.path)]
        for function in parse(subprocess.run(command, check=True, capture_output=True, text=True).stdout):
            if function.name in entries:
                name = kernel_name(function.name).partition("<")[0]
                found.append(Kernel(function, PASSES.get(name, 1)))
    return sorted(found, key=lambda kernel: kernel.name)


def table(found: list[Kernel], every_loop: bool = False) -> str:
    """A line per counted loop with its number of EX2, and the total."""
    headings = ["all", *COLUMNS]
    width = max((len(kernel.name) for kernel in found), default=0)

    def line(name: str, loop: str, ex2: str, figures: dict[str, float], note: str = "") -> str:
        return f"{name:{width}}  {loop:>8}  {ex2:>5}" + "".join(f"{figures[h]:8.2f}" for h in headings) + note

    lines = [f"{'per (step, state)':{width}}  {'loop':>8}  {'EX2':>5}" + "".join(f"{h:>8}" for h in headings)]
    for kernel in found:
        for loop in kernel.loops if every_loop else kernel.counted:
            counts, mark = kernel.loops[loop], "" if loop in kernel.counted else " (not counted)"
            lines.append(line(kernel.name, f"{counts.header:#x}", str(counts.ex2), kernel.figures(loop), mark))
        if kernel.loops:
            lines.append(line("", "total", "", kernel.total(), "" if kernel.complete else "  a pass was not found"))
    without = [kernel.name for kernel in found if not kernel.loops]
    return "\n".join([*lines, *([f"without EX2: {', '.join(without)}"] if without else [])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, default=90, help="architecture, for example 90 for sm_90")
    parser.add_argument("--every-loop", action="store_true", help="also the loops with EX2 that do not count")
    parser.add_argument("sources", nargs="*", type=Path, help="CUDA sources (default: csrc/*/*.cu)")
    options = parser.parse_args()
    sources = [path.resolve() for path in options.sources] or None
    used = {entry.mangled: entry for cubin in build([options.arch], sources) for entry in resources(cubin)}
    print(f"sm_{options.arch}: registers, stack, spill stores, spill loads, static shared memory")
    for entry in sorted(used.values(), key=lambda entry: entry.name):
        figures = (entry.registers, entry.stack, entry.spill_stores, entry.spill_loads, entry.shared)
        print("".join(f"{figure:7}" for figure in figures), "", entry.name)
    print(f"\n{table(kernels(options.arch, sources), options.every_loop)}")


if __name__ == "__main__":
    main()
