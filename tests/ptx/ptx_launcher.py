"""Compiles kernels translated from PTX and launches them on the emulated GPU, on tensors of the CPU."""

import ctypes
import fcntl
import hashlib
import os
import re
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ptx import Kernel
from ptx_to_cpp import translate
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1] / "cuda_emulation"))

import emulation_build

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "ptx"
MODES = ("plain", "count", "faults")
_DEFINITIONS = {"plain": [], "count": ["-DPTX_COUNT"], "faults": ["-DPTX_FAULTS"]}
TAG_SHIFT = 48


@dataclass(frozen=True)
class Argument:
    """The memory of a kernel's tensor argument, from its first byte to one past its last."""

    name: str
    begin: int
    low: int
    high: int

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> "Argument":
        begin = tensor.data_ptr()
        if tensor.numel() == 0:
            return cls(name, begin, begin, begin)
        extents = [(size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride())]
        low = begin + sum(min(0, e) for e in extents) * tensor.element_size()
        high = begin + (sum(max(0, e) for e in extents) + 1) * tensor.element_size()
        return cls(name, begin, low, high)


@dataclass(frozen=True)
class Counts:
    """Counts of the warps' work in a launch."""

    blocks: list[int]            # executions of each basic block
    threads: list[int]           # executions by single threads
    bytes: tuple[list[int], list[int]]    # loaded and stored in global memory, by line of the PTX
    sectors: tuple[list[int], list[int]]  # 32-byte sectors, counted once per warp


class Launcher:
    """One kernel, compiled."""

    def __init__(self, kernel: Kernel, file: str, mode: str = "plain") -> None:
        self.kernel, self.mode = kernel, mode
        self.library = ctypes.CDLL(str(_compiled(translate(kernel, file), mode)))
        self.library.ptx_launch.restype = ctypes.c_char_p

    def plant(self, kind: int, line: int) -> None:
        self.library.ptx_plant(kind, line)

    def visited(self) -> list[int]:
        """How often threads executed each basic block, in all launches of a library with faults."""
        self.library.ptx_visits.restype = ctypes.POINTER(ctypes.c_int64)
        return self.library.ptx_visits()[: len(self.kernel.blocks)]

    def launch(
        self, name: str, parameters: bytes, arguments: Sequence[Argument], blocks: int, threads: int,
        shared_bytes: int, chosen: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        """Run the `chosen` blocks, or all. Pointers in the parameters carry argument numbers (`tagged`)."""
        ranges = (ctypes.c_uint64 * (2 * len(arguments) + 1))(*(x for a in arguments for x in (a.low, a.high)))
        numbers = None if chosen is None else (ctypes.c_int64 * len(chosen))(*chosen)
        held = (ctypes.c_uint64 * ((len(parameters) + 7) // 8 + 2))()
        # Parameters are 16-byte aligned.
        begin = (ctypes.addressof(held) + 15) // 16 * 16
        ctypes.memmove(begin, parameters, len(parameters))
        problem = self.library.ptx_launch(
            name.encode(), ctypes.c_void_p(begin), ctypes.c_int64(len(parameters)), ranges,
            ctypes.c_int64(len(arguments)), numbers, ctypes.c_int64(blocks if chosen is None else len(chosen)), threads,
            ctypes.c_int64(shared_bytes + self.kernel.static_shared),
        )  # fmt: skip
        if problem:
            names = ", ".join(f"{i} = {a.name}" for i, a in enumerate(arguments))
            raise RuntimeError(f"{problem.decode()} (arguments: {names})")

    def counts(self) -> Counts:
        """Counts of the latest launch."""

        def read(function: str, size: int, *which: int) -> list[int]:
            call = getattr(self.library, function)
            call.restype = ctypes.POINTER(ctypes.c_int64)
            return call(*which)[:size]

        lines = max((i.line for i in self.kernel.instructions), default=0) + 1
        by_line = [tuple(read(f, lines, w) for w in (0, 1)) for f in ("ptx_line_bytes", "ptx_line_sectors")]
        blocks = len(self.kernel.blocks)
        return Counts(read("ptx_block_counts", blocks), read("ptx_thread_counts", blocks), *by_line)


def tagged(parameters: bytes, arguments: Sequence[Argument]) -> bytes:
    """Tag every 8-byte word that points into an argument with its number. A pointer to the start of an argument belongs
    to it, any other to the first argument that contains it."""
    words = list(struct.unpack(f"<{len(parameters) // 8}Q", parameters[: len(parameters) // 8 * 8]))
    for i, word in enumerate(words):
        begins = [n for n, a in enumerate(arguments) if word == a.begin]
        inside = [n for n, a in enumerate(arguments) if a.low <= word < a.high]
        if word and (begins or inside):
            # If an empty and another argument start at the same address, the larger one counts.
            number = max(begins, key=lambda n: arguments[n].high - arguments[n].low) if begins else inside[0]
            words[i] = word | (number + 1) << TAG_SHIFT
    return struct.pack(f"<{len(words)}Q", *words) + parameters[len(words) * 8 :]


def sample(blocks: int, most: int | None) -> list[int] | None:
    """A sample of a grid's blocks; None for all. The golden ratio spreads them evenly, whatever pattern repeats."""
    if most is None or blocks <= most:
        return None
    return sorted({int((i + 0.5) * 0.6180339887498949 % 1 * blocks) for i in range(most)})


def arguments_of(*named: tuple[str, object]) -> list[Argument]:
    """The tensors among the values and in named tuples of them."""
    found = []
    for name, value in named:
        if isinstance(value, Tensor):
            found.append(Argument.of(name, value))
        elif hasattr(value, "_asdict"):
            found += arguments_of(*value._asdict().items())
    return found


@cache
def _emulator() -> Path:
    return emulation_build.build("none", "emulator_archive")


@cache
def _has_fma() -> bool:
    """Whether this CPU has FMA; the C library's function gives the same result, ten times slower."""
    info = Path("/proc/cpuinfo")
    return info.exists() and bool(re.search(r"\bfma\b", info.read_text()))


@cache
def _headers() -> str:
    folders = (HERE, HERE.parent / "cuda_emulation")
    files = sorted(path for folder in folders for path in folder.iterdir() if path.suffix in (".h", ".cpp"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _compiled(source: str, mode: str) -> Path:
    """The library of a kernel's C++."""
    # Compiling such long functions takes less memory without these passes.
    options = ("-O1", "-fno-tree-pre", "-fno-tree-fre", "-fno-tree-dominator-opts")
    return _built(source, mode, options, "so", (str(_machine(mode)), str(_emulator())))


@cache
def _machine(mode: str) -> Path:
    """Compile machine.cpp, which all kernels share."""
    return _built((HERE / "machine.cpp").read_text(), mode, ("-O2",), "o", ())


def _built(source: str, mode: str, options: tuple[str, ...], suffix: str, objects: tuple[str, ...]) -> Path:
    compiler = os.environ.get("CXX", "g++")
    command = [compiler, "-std=c++17", "-fPIC", "-w", "-ffp-contract=off", "-fvisibility=hidden", *options]
    command += [*_DEFINITIONS[mode], *(["-mfma"] if _has_fma() else [])]
    name = hashlib.sha256("\n".join([source, _headers(), *command, suffix]).encode()).hexdigest()[:24]
    built = BUILD / f"{name}.{suffix}"
    if built.exists():
        return built
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            text, partial = BUILD / f"{name}.cpp", BUILD / f"{name}.partial.{suffix}"
            text.write_text(source)
            kind = "-shared" if suffix == "so" else "-c"
            includes = [f"-I{HERE}", f"-I{HERE.parent / 'cuda_emulation'}"]
            whole = [*command, *includes, kind, str(text), *objects, "-o", str(partial)]
            done = subprocess.run(whole, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(whole)}\n{done.stderr[-4000:]}")
            partial.replace(built)
            text.unlink()
    (BUILD / f"{name}.lock").unlink(missing_ok=True)
    return built
