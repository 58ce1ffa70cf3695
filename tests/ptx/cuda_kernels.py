"""Runs nvcc's PTX of csrc/ instead of the emulation's kernels, under the `cuda` backend's Python and C++.

`_native`, compiled for the emulated GPU, plans and launches as usual; a launch then runs the PTX of the same name.
"""

import ctypes
import re
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ptx import Kernel, parse
from ptx_launcher import HERE, Argument, Counts, Launcher, arguments_of, sample, tagged

sys.path.append(str(HERE.parent / "cuda_sass"))

import compile as nvcc
from emulated import EMPTY, SHARED_BYTES, EmulatedBackend, EmulatedRuntime

from vmddpm_kernels.backends import BACKENDS

ARCHITECTURES = (80, 90)


@cache
def kernels(architecture: int) -> dict[str, tuple[Kernel, str]]:
    """Every kernel of csrc/, by its name without compiler-generated numbers, with the name of its PTX file."""
    found = {}
    for cubin in nvcc.build([architecture]):
        for kernel in parse(cubin.ptx.read_text()):
            found[plain_name(kernel.name)] = (kernel, f"{cubin.source.name}.sm_{architecture}")
    return found


def plain_name(symbol: str) -> str:
    """The part of a kernel's mangled name that is common to g++ and nvcc. nvcc numbers the unnamed namespace, and the
    half-precision types have other names here."""
    for numbered in re.finditer(r"(?=(\d+)(_GLOBAL__N__))", symbol):
        after = numbered.start(2) + int(numbered[1])
        if int(numbered[1]) >= 12 and re.match(r"\d+\w", symbol[after:]):
            symbol = f"{symbol[: numbered.start(1)]}12_GLOBAL__N_1{symbol[after:]}"
            break
    return symbol.replace("13__nv_bfloat16", "NS0_8BFloat16E").replace("6__half", "NS0_4HalfE")


@cache
def launcher(name: str, architecture: int, mode: str = "plain") -> Launcher:
    kernel, file = kernels(architecture)[name]
    return Launcher(kernel, file, mode)


@dataclass
class Launched:
    """A launch: its arguments and its counts."""

    name: str
    architecture: int
    blocks: int
    threads: int
    shared_bytes: int
    counts: Counts | None = None
    counted_blocks: int = 0


@dataclass
class PtxKernels:
    """`_native.cuda` with launches that run PTX on the call's tensors."""

    native: ModuleType
    path: Path
    architecture: int
    mode: str = "plain"                # or "count", "faults", or "record", which records launches without running them
    most_blocks: int | None = None     # most blocks of a launch that run
    modes: dict[str, str] = field(default_factory=dict)  # modes of single kernels
    launched: list[Launched] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._kernels = self.native.cuda
        self._arguments: list[Argument] = []
        self._symbols = _symbols(self.path)
        self._problem = b""
        prototype = ctypes.CFUNCTYPE(
            ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
            ctypes.c_int, ctypes.c_int64,
        )  # fmt: skip
        self._substitute = prototype(self._launch)
        self._library = ctypes.CDLL(str(self.path))
        base = ctypes.cast(self._library.vmddpm_emulation_substitute, ctypes.c_void_p).value
        self._base = base - self._symbols.by_name["vmddpm_emulation_substitute"]

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._kernels, name)
        if name not in ("scan_forward", "scan_backward", "cross_scan", "cross_merge"):
            return function

        def call(*arguments: object) -> None:
            self._arguments = arguments_of(*((f"{name}'s {i}th", a) for i, a in enumerate(arguments)))
            self._library.vmddpm_emulation_substitute(self._substitute)
            try:
                function(*arguments)
            finally:
                self._library.vmddpm_emulation_substitute(None)

        return call

    def _launch(
        self, name: bytes, kernel: int, parameters: int, size: int, blocks: int, threads: int, shared: int
    ) -> int | None:
        try:
            self._run(self._symbols.by_place[kernel - self._base], name, ctypes.string_at(parameters, size), blocks,
                      threads, shared)  # fmt: skip
        except Exception as error:
            self._problem = ctypes.create_string_buffer(f"{type(error).__name__}: {error}".encode())
            return ctypes.addressof(self._problem)
        return None

    def _run(self, symbol: str, name: bytes, parameters: bytes, blocks: int, threads: int, shared: int) -> None:
        found = Launched(symbol, self.architecture, blocks, threads, shared)
        self.launched.append(found)
        mode = self.modes.get(symbol, self.mode)
        if mode == "record":
            return
        one = launcher(symbol, self.architecture, mode)
        chosen = sample(blocks, self.most_blocks)
        arguments = self._arguments
        one.launch(name.decode(), tagged(parameters, arguments), arguments, blocks, threads, shared, chosen)
        if mode == "count":
            found.counts, found.counted_blocks = one.counts(), len(chosen) if chosen else blocks


@dataclass(frozen=True)
class _Symbols:
    by_place: dict[int, str]
    by_name: dict[str, int]


@cache
def _symbols(path: Path) -> _Symbols:
    lines = subprocess.run(["nm", str(path)], check=True, capture_output=True, text=True).stdout.splitlines()
    fields = [line.split() for line in lines]
    places = [(int(f[0], 16), f[2]) for f in fields if len(f) == 3 and f[1] in "tTwW"]
    return _Symbols(dict(places), {name: place for place, name in places})


def use_ptx(
    monkeypatch: pytest.MonkeyPatch, native: ModuleType, architecture: int, multiprocessors: int = EMPTY,
    shared_bytes: int = SHARED_BYTES, **options: Any,
) -> PtxKernels:  # fmt: skip
    """Make backend="cuda" take CPU tensors and run the architecture's PTX."""
    found = PtxKernels(native, Path(native.__file__), architecture, **options)
    monkeypatch.setitem(BACKENDS, "cuda", EmulatedBackend(EmulatedRuntime(found, multiprocessors, shared_bytes)))
    return found
