"""The backends `cuda` (CUDA C++), `triton`, `cpu` (C++) and `reference` (PyTorch); each call chooses one."""

import os

import torch
from torch import Tensor

from vmddpm_kernels.backends.cpu import CpuBackend
from vmddpm_kernels.backends.cuda import CudaBackend
from vmddpm_kernels.backends.protocol import Backend, BackendStatus
from vmddpm_kernels.backends.reference import ReferenceBackend
from vmddpm_kernels.backends.triton import TritonBackend

# Best first.
BACKENDS: dict[str, Backend] = {
    "cuda": CudaBackend(),
    "triton": TritonBackend(),
    "cpu": CpuBackend(),
    "reference": ReferenceBackend(),
}


# A lookup in os.environ itself takes a microsecond.
_ENVIRONMENT = getattr(os.environ, "_data", os.environ)
_VARIABLE = os.environ.encodekey("VMDDPM_BACKEND") if _ENVIRONMENT is not os.environ else "VMDDPM_BACKEND"


def backends() -> dict[str, BackendStatus]:
    """The status of each backend in this process, best backend first.

    Example:
        >>> backends()["reference"].active
        True
    """
    return {name: backend.status() for name, backend in BACKENDS.items()}


def select(name: str | None, x: Tensor) -> str:
    """The name of the backend for `x`: `name`, else the environment variable VMDDPM_BACKEND, else the best one for the
    device.

    Raises:
        ValueError: if the name is unknown, or the backend does not run on x's device.
        RuntimeError: if the backend is not available; the message says how to build it.
    """
    if not name and _VARIABLE in _ENVIRONMENT:
        name = os.environ["VMDDPM_BACKEND"]
    return _named(name, *_place(x)) if name else _best(*_place(x))


def by_name(name: str, x: Tensor) -> Backend:
    """The backend with this name, which must run on x's device. Raises the errors of `select`."""
    return BACKENDS[_named(name, *_place(x))]


_CPU = ("cpu", None)


def _place(x: Tensor) -> tuple[str, int | None]:
    """The type and the index of x's device, as constants of a traced graph."""
    return _CPU if x.is_cpu else (x.device.type, x.device.index)  # device.type makes a string


def _best(device: str, index: int | None) -> str:
    for name, backend in BACKENDS.items():
        if device in backend.devices and backend.status(_numbered(device, index)).active:
            return name
    return "reference"


def _named(name: str, device: str, index: int | None) -> str:
    if not isinstance(name, str) or name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; backend must be one of {', '.join(BACKENDS)}")
    status = BACKENDS[name].status(_numbered(device, index))
    if not status.active:
        raise RuntimeError(f"backend {name!r} is not available: {status.detail}")
    if not BACKENDS[name].runs_on(device):
        raise ValueError(
            f"backend {name!r} does not run on device {device}; use backend='reference' or move the tensors"
        )
    return name


def _numbered(device: str, index: int | None) -> torch.device | None:
    return None if index is None else torch.device(device, index)


# Makes the choice a constant of a traced graph. torch.compiler.assume_constant_result sets the same attribute, but
# imports the compiler.
_best._dynamo_marked_constant = True  # type: ignore[attr-defined]
_named._dynamo_marked_constant = True  # type: ignore[attr-defined]
