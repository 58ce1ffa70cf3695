"""The CUDA backend on CPU tensors: the same Python and the same kernels, on an emulated GPU."""

import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import pytest

from vmddpm_kernels.backends import cuda, extension

# Any problem fills the first of these GPUs, so that blocks walk whole sequences; few fill the second, where sequences
# are cut into segments.
FILLED, EMPTY = 0, 132
SHARED_BYTES = 227 * 1024


def use_emulation(
    monkeypatch: pytest.MonkeyPatch, native: ModuleType, multiprocessors: int = EMPTY, shared_bytes: int = SHARED_BYTES
) -> None:
    """Makes backend="cuda" take CPU tensors and run the kernels of the emulation's `_native` module."""
    registry = sys.modules["vmddpm_kernels.backends"]
    monkeypatch.setattr(extension, "native", SimpleNamespace(**{**vars(extension.native), "cuda": native.cuda}))
    monkeypatch.setattr(cuda, "available", lambda: (True, "emulated"))
    monkeypatch.setattr(cuda, "_call", lambda device: (0, 0))
    monkeypatch.setattr(cuda, "_current", lambda device: nullcontext())
    monkeypatch.setattr(cuda, "_limits", lambda device: (multiprocessors, shared_bytes))
    monkeypatch.setitem(registry._DEVICES, "cuda", {"cpu", "cuda"})
