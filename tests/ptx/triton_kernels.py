"""The Triton backend's kernels, compiled for a GPU ahead of time, run from their PTX on the emulated GPU.

In the test process Triton is an interpreter, so another process compiles (triton_compiler.py); the backend's own Python
runs here, and a launch runs the compiled kernel.
"""

import atexit
import inspect
import json
import os
import pkgutil
import struct
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from ptx import parse
from ptx_launcher import BUILD, HERE, ROOT, TAG_SHIFT, Argument, Counts, Launcher, sample
from torch import Tensor

sys.path.append(str(HERE.parent / "triton_aot"))

from versions import python_path

ARCHITECTURES = (80, 90)
PINNED = version("triton")
_FORMATS = {"i1": "b", "u1": "b", "i8": "b", "i16": "h", "i32": "i", "i64": "q", "u32": "I", "u64": "Q",
            "fp32": "f", "fp64": "d"}  # fmt: skip


class Compiler:
    """The compiler process, with the requested version of Triton."""

    def __init__(self, architecture: int, triton: str) -> None:
        folder = BUILD / f"triton_{triton}_sm_{architecture}"
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(BUILD / "triton_cache")}
        environment["PYTHONPATH"] = os.pathsep.join([*python_path(triton), str(ROOT), *sys.path])
        command = [sys.executable, str(HERE / "triton_compiler.py"), f"sm_{architecture}", str(folder), triton]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        atexit.register(self._process.terminate)

    def compile(self, request: dict[str, Any]) -> Path:
        """Compile a request; returns the path of the results without suffix."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the compiler of Triton kernels ended with {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{request['kernel']}: {answer['error']}")
        return self._folder / answer["name"]


@cache
def compiler(architecture: int, triton: str) -> Compiler:
    return Compiler(architecture, triton)


@dataclass(frozen=True)
class Compiled:
    path: Path
    launcher: Launcher
    warps: int
    shared: int
    signature: dict[str, str]


@cache
def compiled(architecture: int, triton: str, request: str, mode: str) -> Compiled:
    path = compiler(architecture, triton).compile(json.loads(request))
    (kernel,) = parse(path.with_suffix(".ptx").read_text())
    about = json.loads(path.with_suffix(".json").read_text())
    file = f"{path.name.partition('-')[0]}.sm_{architecture}"
    return Compiled(path, Launcher(kernel, file, mode), about["warps"], about["shared"], about["signature"])


@dataclass
class Launched:
    compiled: Compiled | None  # None if the launch was only recorded
    name: str
    architecture: int
    blocks: int
    threads: int
    shared_bytes: int
    counts: Counts | None = None
    counted_blocks: int = 0


@dataclass
class TritonPtx:
    architecture: int
    mode: str = "plain"  # or "count", or "record", which records launches without running them
    triton: str = PINNED
    most_blocks: int | None = None
    launched: list[Launched] = field(default_factory=list)

    def launch(self, kernel: Any, programs: int, device: torch.device, **arguments: Any) -> None:
        if not programs:
            return
        function = getattr(kernel, "fn", kernel)
        if self.mode == "record":
            self.launched.append(Launched(None, function.__name__, self.architecture, programs, 0, 0))
            return
        parameters = inspect.signature(function).parameters
        values = {n: arguments[n] for n in parameters}
        options = {n: v for n, v in arguments.items() if n not in parameters}
        constants = {n for n, p in parameters.items() if "constexpr" in str(p.annotation)} | set(options)
        request = {
            "module": function.__module__, "kernel": function.__name__,
            "options": {n: _described(v, n in constants) for n, v in arguments.items()},
        }  # fmt: skip
        one = compiled(self.architecture, self.triton, json.dumps(request), self.mode)
        tensors = [Argument.of(n, values[n]) for n, t in one.signature.items() if isinstance(values.get(n), Tensor)]
        packed = _packed(one.signature, values, tensors)
        packed += b"\0" * (one.launcher.kernel.parameter_bytes - len(packed))  # scratch memory, which no kernel uses
        chosen = sample(programs, self.most_blocks)
        threads = 32 * one.warps
        one.launcher.launch(function.__name__, packed, tensors, programs, threads, one.shared, chosen)
        found = Launched(one, function.__name__, self.architecture, programs, threads, one.shared)
        if self.mode == "count":
            found.counts, found.counted_blocks = one.launcher.counts(), len(chosen) if chosen else programs
        self.launched.append(found)


def _described(value: Any, constant: bool) -> list[Any]:
    if isinstance(value, Tensor):
        return ["tensor", [str(value.dtype).removeprefix("torch."), value.data_ptr() % 16 == 0]]
    if type(value).__module__.startswith("triton"):
        return ["dtype", value.name.replace("fp", "float")]
    if isinstance(value, int) and not isinstance(value, bool) and not constant:
        return ["value", 2**40 if abs(value) >= 2**31 else 2]  # one kernel for all integers of one width
    return ["value", value]


def _packed(signature: dict[str, str], values: dict[str, Any], tensors: list[Argument]) -> bytes:
    numbers = {a.name: n for n, a in enumerate(tensors)}
    packed = b""
    for name, kind in signature.items():
        if kind == "constexpr":
            continue
        if kind.startswith("*"):
            data = struct.pack("<Q", 0 if values[name] is None else _pointer(values[name], numbers[name]))
        else:
            data = struct.pack(f"<{_FORMATS[kind]}", values[name])
        packed += b"\0" * (-len(packed) % len(data)) + data
    return packed


def _pointer(tensor: Tensor, number: int) -> int:
    return tensor.data_ptr() | (number + 1) << TAG_SHIFT if tensor.data_ptr() else 0


def use_ptx(monkeypatch: pytest.MonkeyPatch, architecture: int, **options: Any) -> TritonPtx:
    """Make backend="triton" on CPU tensors run the architecture's PTX instead of the interpreter."""
    package = import_module("vmddpm_kernels.backends.triton")
    found = TritonPtx(architecture, **options)
    for module in pkgutil.iter_modules(package.__path__):
        if module.name == "launch":
            continue
        loaded = import_module(f"{package.__name__}.{module.name}")
        for name, value in (("launch", found.launch), ("INTERPRETED", False)):
            if hasattr(loaded, name):
                monkeypatch.setattr(loaded, name, value)
    return found
