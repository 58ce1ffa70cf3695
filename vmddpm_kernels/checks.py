"""Argument checks shared by the operators: each names the argument, what it was and what it must be."""

from typing import Any

import torch
from torch import Tensor

MAX_STATES = 256
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int32, torch.int64)
Input = tuple[str, Any, str, tuple[int, ...], tuple[torch.dtype, ...]]  # name, tensor, axes, shape, dtypes
_ONE_OF = {FLOATS: "float16, bfloat16, float32 or float64", INTEGERS: "an int32 or int64 tensor"}


def check_dense(name: str, tensor: object) -> None:
    """TypeError unless a tensor whose values lie in memory as they are."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.layout is not torch.strided or tensor.is_nested:
        layout = "nested" if tensor.is_nested else tensor.layout
        raise TypeError(f"{name} must be a dense tensor, got a {layout} one")
    if _is_negated(tensor):
        raise TypeError(f"{name} must not be a view that is still to be negated; pass {name}.resolve_neg()")


def _is_negated(tensor: Tensor) -> bool:
    """A compiler cannot ask, and resolves it by itself."""
    return not torch.compiler.is_compiling() and tensor.is_neg()


def check_float(name: str, tensor: Any, like: Tensor | None = None) -> None:
    """`check_tensor` for a real floating tensor."""
    check_tensor(name, tensor, like, FLOATS)


def check_tensor(name: str, tensor: Any, like: Tensor | None, dtypes: tuple[torch.dtype, ...]) -> None:
    """TypeError unless a dense tensor of one of the dtypes; ValueError unless on the same device as `like`."""
    check_dense(name, tensor)
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} must be {_ONE_OF[dtypes]}, got {tensor.dtype}")
    if like is not None and tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, but x is on {like.device}; move them to one device")


def check_shape(name: str, tensor: Tensor, axes: str, shape: tuple[int, ...]) -> None:
    """ValueError unless tensor.shape == shape; `axes` is how the docstring writes the shape."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape ({axes}) = {shape}, got {tuple(tensor.shape)}")


def check_axes(name: str, tensor: Any, axes: str) -> torch.Size:
    """The tensor's shape. TypeError unless dense, ValueError unless it has a size for each of the axes."""
    if not isinstance(tensor, Tensor) or tensor.is_nested or tensor.dim() != axes.count(",") + 1:
        check_dense(name, tensor)
        raise ValueError(f"{name} must have shape ({axes}), got {tuple(tensor.shape)}")
    return tensor.shape


def check_inputs(inputs: list[Input], x: Tensor) -> None:
    """`check_tensor` and `check_shape` of each input, at little cost where all is well."""
    device, compiling = x.device, torch.compiler.is_compiling()
    for name, tensor, axes, shape, dtypes in inputs:
        if (
            not isinstance(tensor, Tensor)
            or tensor.layout is not torch.strided
            or tensor.is_nested
            or tensor.shape != shape
            or tensor.dtype not in dtypes
            or tensor.device != device
            or (not compiling and tensor.is_neg())
        ):
            check_tensor(name, tensor, x, dtypes)
            check_shape(name, tensor, axes, shape)


def check_states(states: int) -> None:
    if not 1 <= states <= MAX_STATES:
        raise ValueError(f"A must have 1 to {MAX_STATES} states (its last dimension), got {states}")


def check_discretization(discretization: str) -> bool:
    """True for "zoh" (paper Eq. 6), False for "mamba"."""
    if discretization not in ("mamba", "zoh"):
        raise ValueError(f'discretization must be "mamba" or "zoh", got {discretization!r}')
    return discretization == "zoh"


def check_count(name: str, value: object) -> None:
    """A TypeError or ValueError unless a whole number, at least 1."""
    if not isinstance(value, int | torch.SymInt) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def check_flag(name: str, value: object) -> bool:
    """TypeError unless True or False, or 1 or 0."""
    if not isinstance(value, int) or value not in (0, 1):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)
