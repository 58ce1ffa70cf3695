"""Which implementation runs: `cuda` (CUDA C++), `triton`, `cpu` (C++) or `reference` (PyTorch), chosen per call by
device and availability."""

import os
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

from vmddpm_kernels.backends import cpu, cuda, reference, triton

# Best first. Each module says whether it can run here; it is chosen for tensors on these device types.
_BACKENDS: dict[str, ModuleType] = {"cuda": cuda, "triton": triton, "cpu": cpu, "reference": reference}
_DEVICES = {"cuda": {"cuda"}, "triton": set(triton.GPUS), "cpu": {"cpu"}}


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can run in this process, and what it is, or why it cannot and what to do about it."""

    active: bool
    detail: str


def backends() -> dict[str, BackendStatus]:
    """Every backend by name, best first, with its state in this process."""
    return {name: BackendStatus(*module.available()) for name, module in _BACKENDS.items()}


def select(name: str | None, x: Tensor) -> str:
    """The backend to run for `x`: `name`, else the environment's VMDDPM_BACKEND, else the best one for the device.

    Raises:
        ValueError: on an unknown name, or a backend that cannot take x's device.
        RuntimeError: on a backend that was not built, with the way to build it.
    """
    name = name or os.environ.get("VMDDPM_BACKEND")
    return _select(name, x.device.type) if name else _best(x.device.type)


def _best(device: str) -> str:
    for name, module in _BACKENDS.items():
        if device in _DEVICES.get(name, (device,)) and module.available()[0]:
            return name
    raise AssertionError("the reference runs everywhere")


def _select(name: str, device: str) -> str:
    if not isinstance(name, str) or name not in _BACKENDS:
        raise ValueError(f"unknown backend {name!r}; backend must be one of {', '.join(_BACKENDS)}")
    active, detail = _BACKENDS[name].available()
    if not active:
        raise RuntimeError(f"backend {name!r} is not available: {detail}")
    interpreted = name == "triton" and device == "cpu" and triton.interpreted()
    if device not in _DEVICES.get(name, (device,)) and not interpreted:
        raise ValueError(
            f"backend {name!r} does not run on device {device}; use backend='reference' or move the tensors"
        )
    return name


# A choice is made while a graph is traced and is a constant of it: this is what torch.compiler.assume_constant_result
# does, which would import the compiler with the package.
_best._dynamo_marked_constant = True  # type: ignore[attr-defined]
_select._dynamo_marked_constant = True  # type: ignore[attr-defined]


def implementation(name: str) -> ModuleType:
    """The module of a backend that `select` chose."""
    return _BACKENDS[name]
