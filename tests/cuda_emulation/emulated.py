"""The CUDA backend on CPU tensors: the same Python and the same kernels, on an emulated GPU."""

from contextlib import nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch

from vmddpm_kernels.backends import BACKENDS
from vmddpm_kernels.backends.cuda import CudaBackend
from vmddpm_kernels.backends.cuda_runtime import Gpu, Probe

# Any problem fills the first GPU, so blocks walk whole sequences; few problems fill the second, so sequences are cut
# into segments.
FILLED, EMPTY = 0, 132
SHARED_BYTES = 227 * 1024


@dataclass
class EmulatedRuntime:
    """A GPU with these limits and the CPU's memory."""

    kernels: Any
    multiprocessors: int
    shared_bytes: int
    devices = frozenset({"cuda"})

    def missing(self) -> None:
        return None

    def gpu(self, number: int | None) -> Gpu:
        return Gpu(number or 0, "an emulated GPU", (9, 0))

    def probe(self, number: int) -> Probe:
        return Probe(*self.kernels.probe(number))

    def limits(self, device: torch.device) -> tuple[int, int]:
        return self.multiprocessors, self.shared_bytes

    def stream(self, device: torch.device) -> tuple[int, int]:
        return 0, 0

    def current(self, device: torch.device) -> nullcontext:
        return nullcontext()


class EmulatedBackend(CudaBackend):
    """Runs on CPU tensors when selected by name."""

    def runs_on(self, device: str) -> bool:
        return device in ("cpu", "cuda")


def use_emulation(
    monkeypatch: pytest.MonkeyPatch, native: ModuleType, multiprocessors: int = EMPTY, shared_bytes: int = SHARED_BYTES
) -> None:
    """Make backend="cuda" take CPU tensors and run the kernels of the emulation's `_native` module."""
    runtime = EmulatedRuntime(native.cuda, multiprocessors, shared_bytes)
    monkeypatch.setitem(BACKENDS, "cuda", EmulatedBackend(runtime))
