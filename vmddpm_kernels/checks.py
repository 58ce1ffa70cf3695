"""Argument checks of the operators. Each error names the argument, its value and what it must be."""

import sys
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from vmddpm_kernels.interception import traced

MAX_STATES = 256
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int32, torch.int64)
_ONE_OF = {
    FLOATS: "float16, bfloat16, float32 or float64",
    INTEGERS: "an int32 or int64 tensor",
    (torch.float32,): "float32",
    (torch.float64,): "float64, as the scan accumulates in it",
}

_COMPAT = (
    "Functions with the names and the order of mamba_ssm are in vmddpm_kernels.compat.mamba_ssm, those of VMamba in "
    "vmddpm_kernels.compat.vmamba"
)
_NAMES_HERE = {
    "dt_bias": "delta_bias", "dt_softplus": "delta_softplus", "softplus": "delta_softplus", "routes": "table",
    "initial_states": "initial_state", "return_final_states": "return_last_state",
}  # fmt: skip


def check_dense(name: str, tensor: object) -> None:
    """Raise TypeError unless `tensor` is dense and not distributed over processes."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}{_of_another_order(name, tensor)}")
    if tensor.layout is not torch.strided or tensor.is_nested:
        layout = "nested" if tensor.is_nested else tensor.layout
        raise TypeError(f"{name} must be a dense tensor, got a {layout} one")
    if _is_distributed(tensor):
        raise TypeError(
            f"{name} must not be a DTensor: a scan runs on the tensors of one process. Pass {name}.to_local(), or wrap "
            "the call in torch.distributed.tensor.experimental.local_map"
        )


def _is_distributed(tensor: Tensor) -> bool:
    if type(tensor) is Tensor or torch.compiler.is_compiling():
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def check_float(name: str, tensor: Any, like: Tensor | None = None) -> None:
    """`check_tensor` for floating-point tensors."""
    check_tensor(name, tensor, like, FLOATS)


def check_tensor(name: str, tensor: Any, like: Tensor | None, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise TypeError unless `tensor` is dense and has one of `dtypes`, ValueError unless it is on the device of
    `like`."""
    check_dense(name, tensor)
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} must be {_ONE_OF[dtypes]}, got {tensor.dtype}{_of_another_order(name, tensor)}")
    if like is not None and tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, but x is on {like.device}; move them to one device")


def check_shape(name: str, tensor: Tensor, axes: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `tensor` has this shape; `axes` names the axes for the message."""
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"{name} must have shape ({axes}) = {shape}, got {tuple(tensor.shape)}{_of_another_order(name, tensor)}"
        )


def check_optional(name: str, tensor: Tensor | None, like: Tensor, axes: str, shape: tuple[int, ...]) -> None:
    """`check_float` and `check_shape`, unless `tensor` is None."""
    if tensor is not None:
        check_float(name, tensor, like)
        check_shape(name, tensor, axes, shape)


def _of_another_order(name: str, value: object) -> str:
    """A hint for an argument that was passed in the wrong position; empty if there is none."""
    if isinstance(value, bool):
        return f"; pass flags by keyword, as delta_softplus={value}. {_COMPAT}"
    if not isinstance(value, Tensor):
        return ""
    if value.dtype in INTEGERS and name != "table":
        return "; pass visit orders as table="
    if name == "z" and value.dim() == 1:
        return f"; pass a bias as delta_bias=. {_COMPAT}"
    return ""


def misnamed(function: str, positions: tuple[object, ...], names: Mapping[str, object]) -> TypeError:
    """The error for a call with arguments that the function does not have."""
    for name in names:
        here = f"; here it is {_NAMES_HERE[name]}" if name in _NAMES_HERE else ""
        return TypeError(f"{function} has no argument {name}{here}. {_COMPAT}")
    many = "argument" if len(positions) == 1 else "arguments"
    return TypeError(f"{function} got {len(positions)} positional {many} too many; pass options by keyword. {_COMPAT}")


def warn_of_change(text: str) -> None:
    """Issue a FutureWarning at the line that calls the operator, except while torch.compile traces, which does not
    support warnings."""
    if not torch.compiler.is_compiling():
        warnings.warn(text, FutureWarning, stacklevel=3)


def check_axes(name: str, tensor: Any, axes: str) -> torch.Size:
    """The tensor's shape. Raise TypeError unless it is dense, ValueError unless it has these axes."""
    if not isinstance(tensor, Tensor) or tensor.is_nested or tensor.dim() != axes.count(",") + 1:
        check_dense(name, tensor)
        raise ValueError(f"{name} must have shape ({axes}), got {tuple(tensor.shape)}")
    return tensor.shape


def check_input(
    name: str, tensor: Any, x: Tensor, device: torch.device, axes: str, shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
) -> None:  # fmt: skip
    """`check_tensor` and `check_shape`, with a fast path for valid tensors."""
    if (
        (type(tensor) is not Tensor and (not isinstance(tensor, Tensor) or _is_distributed(tensor)))
        or tensor.is_nested  # first: a nested tensor has no shape
        or tensor.shape != shape
        or tensor.dtype not in dtypes
        or tensor.device != device
        or tensor.layout is not torch.strided
    ):
        check_tensor(name, tensor, x, dtypes)
        check_shape(name, tensor, axes, shape)


def check_memory(tensors: Iterable[Tensor | None]) -> None:
    """Raise ValueError if the storage of a tensor is too small for its elements, as it can be after a resize."""
    for tensor in tensors:
        if tensor is None or tensor.numel() == 0:
            continue
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
        bytes_needed = (tensor.storage_offset() + last + 1) * tensor.element_size()
        if tensor.untyped_storage().nbytes() < bytes_needed or tensor.data_ptr() == 0:
            raise ValueError(
                f"a tensor of shape {tuple(tensor.shape)} has no memory for all of its elements: its storage was "
                "resized, or it wraps another tensor"
            )


def check_states(states: int) -> None:
    if not 1 <= states <= MAX_STATES:
        raise ValueError(f"A must have 1 to {MAX_STATES} states (its last dimension), got {states}")


def check_discretization(discretization: str) -> bool:
    """True for "zoh" (VM-DDPM's Eq. 6), False for "mamba"."""
    if discretization not in ("mamba", "zoh"):
        raise ValueError(f'discretization must be "mamba" or "zoh", got {discretization!r}')
    return discretization == "zoh"


def check_count(name: str, value: Any) -> int:
    """`value` as an int. Raise TypeError or ValueError unless it is an int of at least 1. Under torch.jit.trace tensor
    sizes are 0-D tensors; they are converted."""
    if isinstance(value, Tensor) and traced() and value.dtype == torch.int64 and value.dim() == 0:
        value = int(value)
    if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value  # type: ignore[return-value]


def check_truth(name: str, value: Any) -> bool:
    """The truth value of a flag, converted as compiled extensions do: None, numbers and NumPy or torch scalars are
    allowed. Raise TypeError for strings, sequences and tensors of several elements."""
    if value is None or isinstance(value, (bool, int, float)):
        return bool(value)
    if isinstance(value, (str, bytes)) or (hasattr(value, "__len__") and getattr(value, "ndim", 1) != 0):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def check_flag(name: str, value: object) -> bool:
    """`value` as a bool. Raise TypeError unless it is True, False, 1 or 0."""
    if not isinstance(value, int) or value not in (0, 1):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def is_non_overlapping(tensor: Tensor) -> bool:
    """Whether no two elements share memory, so that the tensor can be changed in place; an expanded tensor fails this.
    Also False for the rare layouts whose axes interleave."""
    if tensor.is_contiguous():
        return True
    extent = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape) if n > 1):
        if stride < extent:
            return False
        extent += (size - 1) * stride
    return True
