"""Argument checks shared by the operators: each names the argument, what it was and what it must be."""

import torch
from torch import Tensor

MAX_STATES = 256
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_float(name: str, tensor: object, like: Tensor | None = None) -> None:
    """TypeError unless a real floating tensor; ValueError unless on the same device as `like`."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in _FLOATS:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")
    if like is not None and tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, but x is on {like.device}; move them to one device")


def check_shape(name: str, tensor: Tensor, axes: str, shape: tuple[int, ...]) -> None:
    """ValueError unless tensor.shape == shape; `axes` is how the docstring writes the shape."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape ({axes}) = {shape}, got {tuple(tensor.shape)}")


def check_input(name: str, tensor: object, like: Tensor, axes: str, shape: tuple[int, ...]) -> None:
    """`check_float` and `check_shape` in one, which costs little where all is well."""
    if (
        not isinstance(tensor, Tensor)
        or tensor.shape != shape
        or tensor.dtype not in _FLOATS
        or tensor.device != like.device
    ):
        check_float(name, tensor, like)
        check_shape(name, tensor, axes, shape)


def check_states(states: int) -> None:
    if not 1 <= states <= MAX_STATES:
        raise ValueError(f"A must have 1 to {MAX_STATES} states (its last dimension), got {states}")


def check_discretization(discretization: str) -> bool:
    """True for "zoh" (paper Eq. 6), False for "mamba"."""
    if discretization not in ("mamba", "zoh"):
        raise ValueError(f'discretization must be "mamba" or "zoh", got {discretization!r}')
    return discretization == "zoh"


def check_table_tensor(table: object, routes: int, length: int, like: Tensor) -> None:
    """Type, shape and device of a visit-order table; its values are checked by the backend that reads them."""
    if not isinstance(table, Tensor) or table.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"table must be an int32 tensor (K, L), got {getattr(table, 'dtype', type(table).__name__)}")
    check_shape("table", table, "K, L", (routes, length))
    if table.device != like.device:
        raise ValueError(f"table is on {table.device}, but x is on {like.device}; move them to one device")
