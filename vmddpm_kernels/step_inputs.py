"""The tensors of a causal convolution and of one step of a selective scan, used by all functions and backends."""

from typing import NamedTuple

import torch
from torch import Tensor

from vmddpm_kernels.checks import FLOATS, check_axes, check_input, check_states

LEAST_TAPS, MOST_TAPS = 2, 4  # the widths that compiled convolutions support


class ConvInputs(NamedTuple):
    """y_l = bias + sum_k weight_k x_{l-W+1+k} for each channel; tensors are channel last."""

    x: Tensor                       # (batch, length, dim)
    weight: Tensor                  # (dim, width)
    bias: Tensor | None = None      # (dim,)
    history: Tensor | None = None   # (batch, width - 1, dim), steps before the first; zeros if None

    def check(self) -> None:
        """Raise TypeError or ValueError, naming the argument, unless shapes, dtypes and devices fit together."""
        x, weight, bias, history = self
        batch, length, channels = check_axes("x", x, "batch, length, dim")
        width = check_axes("weight", weight, "dim, width")[1]
        if width < 1:
            raise ValueError("weight (dim, width) must have at least one tap")
        device = x.device
        check_input("x", x, x, device, "batch, length, dim", (batch, length, channels), FLOATS)
        check_input("weight", weight, x, device, "dim, width", (channels, width), FLOATS)
        if bias is not None:
            check_input("bias", bias, x, device, "dim", (channels,), FLOATS)
        if history is not None:
            shape = (batch, width - 1, channels)
            check_input("initial_states", history, x, device, "batch, width - 1, dim", shape, FLOATS)

    def accumulation(self) -> torch.dtype:
        wide = self.x.dtype == torch.float64 or self.weight.dtype == torch.float64
        return torch.float64 if wide else torch.float32

    def channel_first(self) -> bool:
        """Whether x, and hence the result, is contiguous along steps and not along channels."""
        return self.x.stride(1) == 1 and self.x.stride(2) != 1


class StateInputs(NamedTuple):
    """One step for each sequence of a batch: h = exp(delta A) h + delta B u, y = C h + D u, or (C h + D u) SiLU(z).

    The comments give each shape with heads | without heads."""

    state: Tensor                       # (batch, heads, headdim, d_state) | (batch, dim, d_state)
    u: Tensor                           # (batch, heads, headdim)          | (batch, dim)
    delta: Tensor                       # (batch, heads, headdim)          | (batch, dim)
    A: Tensor                           # (heads, headdim, d_state)        | (dim, d_state)
    B: Tensor                           # (batch, groups, d_state)         | (batch, d_state)
    C: Tensor                           # (batch, groups, d_state)         | (batch, d_state)
    D: Tensor | None = None             # (heads, headdim)                 | (dim,)
    z: Tensor | None = None             # (batch, heads, headdim)          | (batch, dim)
    delta_bias: Tensor | None = None    # (heads, headdim)                 | (dim,)

    def check(self) -> None:
        """Raise TypeError or ValueError, naming the argument, unless shapes, dtypes and devices fit together."""
        state, B = self.state, self.B
        heads = isinstance(state, Tensor) and not state.is_nested and state.dim() == 4
        axes = _AXES_OF_HEADS if heads else _AXES
        shape = check_axes("state", state, axes[0])
        check_states(shape[-1])
        groups = check_axes("B", B, axes[4])[1] if heads else 1
        if heads and (groups < 1 or shape[1] % groups):
            raise ValueError(f"the {shape[1]} heads of state must divide into the {groups} groups of B ({axes[4]})")
        steps = shape[:-1]
        matrix = (shape[0], groups, shape[-1]) if heads else (shape[0], shape[-1])
        shapes = (shape, steps, steps, shape[1:], matrix, matrix, shape[1:-1], steps, shape[1:-1])
        device = state.device
        for name, tensor, letters, expected in zip(self._fields, self, axes, shapes):
            if tensor is not None or name in ("u", "delta", "A", "B", "C"):
                check_input(name, tensor, state, device, letters, tuple(expected), FLOATS)

    def accumulation(self) -> torch.dtype:
        wide = torch.float64 in (t.dtype for t in self[:6])
        return torch.float64 if wide else torch.float32


_AXES = (
    "batch, dim, d_state",
    "batch, dim",
    "batch, dim",
    "dim, d_state",
    "batch, d_state",
    "batch, d_state",
    "dim",
    "batch, dim",
    "dim",
)
_AXES_OF_HEADS = tuple(
    axes.replace("batch, d_state", "batch, groups, d_state").replace("dim", "heads, headdim") for axes in _AXES
)
