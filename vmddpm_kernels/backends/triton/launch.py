"""Declares and launches kernels, on any device that Triton supports."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Triton reads TRITON_INTERPRET when it is imported.
INTERPRETED = not isinstance(tl.sum, triton.JITFunction)
# Options of all launches: fused multiply-adds, whatever the default of this version of Triton.
OPTIONS = {"enable_fp_fusion": True}


def kernel(function: Callable[..., Any]) -> Any:
    """`triton.jit` that compiles one kernel for all sizes, strides and addresses: the compiler knows only the values of
    tl.constexpr parameters. (By default Triton compiles separate kernels for values divisible by 16.)"""
    parameters = inspect.signature(function).parameters.values()
    return triton.jit(do_not_specialize=[p.name for p in parameters if p.annotation is not tl.constexpr])(function)


@lru_cache
def warp_size() -> int:
    return 32 if INTERPRETED else int(triton.runtime.driver.active.get_current_target().warp_size)


def registers(most: int | None) -> dict[str, int]:
    """The launch option that limits a thread to `most` registers; only NVIDIA's compiler has it."""
    if most is None or INTERPRETED or triton.runtime.driver.active.get_current_target().backend != "cuda":
        return {}
    return {"maxnreg": most}


def launch(kernel: Any, programs: int, device: torch.device, **arguments: Any) -> None:
    """Runs `programs` programs of a kernel on `device`. The grid has one axis, because the others end at 65,535."""
    if programs == 0:
        return
    try:
        with _current(device):
            kernel[(programs,)](**arguments, **OPTIONS)
    except RuntimeError as error:
        if "captur" not in str(error):
            raise
        raise RuntimeError(
            "Triton loads a kernel when it is first called, which the capture of a CUDA graph does not allow: call the "
            "operator once before it, with inputs of the same dtypes"
        ) from error


def strided(name: str, tensor: Tensor | None, axes: str = "bkld") -> dict[str, Any]:
    """A tensor and its strides as keyword arguments of a kernel: `name`, and `name_` plus a letter for each axis. A
    tensor without the second axis, that of the routes, is shared by all routes."""
    strides = (0,) * len(axes) if tensor is None else tensor.stride()
    if len(strides) < len(axes):
        strides = (strides[0], 0, *strides[1:])
    return {name: tensor, **{f"{name}_{axis}": stride for axis, stride in zip(axes, strides, strict=True)}}


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which `device` is current, because Triton launches on the current device."""
    return nullcontext() if device.type == "cpu" else torch.get_device_module(device).device(device)
