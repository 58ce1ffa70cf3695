"""The tensors of a causal convolution and of one step of a selective scan, for every function and backend."""

from typing import NamedTuple

import torch
from torch import Tensor

from vmddpm_kernels.checks import FLOATS, check_axes, check_input, check_states

LEAST_TAPS, MOST_TAPS = 2, 4  # of the compiled convolutions


class ConvInputs(NamedTuple):
    """y_l = bias + sum_k weight_k x_{l-W+1+k} for every channel, in the order of the steps and channel last."""

    x: Tensor                       # (B, L, D)
    weight: Tensor                  # (D, W)
    bias: Tensor | None = None      # (D,)
    history: Tensor | None = None   # (B, W - 1, D), the steps before the first; zeros if not given

    def check(self) -> None:
        """Raise TypeError or ValueError, naming the argument, unless shapes, dtypes and devices fit together."""
        x, weight, bias, history = self
        batch, length, channels = check_axes("x", x, "B, L, D")
        width = check_axes("weight", weight, "D, W")[1]
        if width < 1:
            raise ValueError("weight (D, W) must have at least one tap, got W = 0")
        device = x.device
        check_input("x", x, x, device, "B, L, D", (batch, length, channels), FLOATS)
        check_input("weight", weight, x, device, "D, W", (channels, width), FLOATS)
        if bias is not None:
            check_input("bias", bias, x, device, "D", (channels,), FLOATS)
        if history is not None:
            check_input("initial_states", history, x, device, "B, W - 1, D", (batch, width - 1, channels), FLOATS)

    def accumulation(self) -> torch.dtype:
        wide = self.x.dtype == torch.float64 or self.weight.dtype == torch.float64
        return torch.float64 if wide else torch.float32

    def channel_first(self) -> bool:
        """Whether steps lie side by side in x, and channels do not: so they will in the result."""
        return self.x.stride(1) == 1 and self.x.stride(2) != 1


class StateInputs(NamedTuple):
    """h = exp(delta A) h + delta B u, y = C h + D u, or (C h + D u) SiLU(z), for every sequence of a batch: one step.

    Axes: batch B, head H, channel P of a head, state N, group G of heads; or without heads and groups, as in the
    second column."""

    state: Tensor                       # (B, H, P, N) | (B, D, N)
    u: Tensor                           # (B, H, P)    | (B, D)
    delta: Tensor                       # (B, H, P)    | (B, D)
    A: Tensor                           # (H, P, N)    | (D, N)
    B: Tensor                           # (B, G, N)    | (B, N)
    C: Tensor                           # (B, G, N)    | (B, N)
    D: Tensor | None = None             # (H, P)       | (D,)
    z: Tensor | None = None             # (B, H, P)    | (B, D)
    delta_bias: Tensor | None = None    # (H, P)       | (D,)

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


_AXES = ("B, D, N", "B, D", "B, D", "D, N", "B, N", "B, N", "D", "B, D", "D")
_AXES_OF_HEADS = ("B, H, P, N", "B, H, P", "B, H, P", "H, P, N", "B, G, N", "B, G, N", "H, P", "B, H, P", "H, P")
