"""One description of a selective scan: its tensors, its options and its sizes, for every function and backend."""

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from vmddpm_kernels.checks import FLOATS, INTEGERS, check_axes, check_input, check_states

# The inputs, how the docstrings write their shapes, and their dtypes.
_NAMES = ("x", "delta", "A", "B", "C", "D", "delta_bias", "initial_state", "table")
_AXES = ("B, K, L, D", "B, K, L, D", "K, D, N", "B, K, L, N", "B, K, L, N", "K, D", "K, D", "B, K, D, N", "K, L")
_AXES_OF_ONE_IMAGE = ("B, L, D", *_AXES[1:])
_DTYPES = (*[FLOATS] * 8, INTEGERS)


class ScanSizes(NamedTuple):
    """What plans and shapes depend on. Sizes may be symbols while a graph is traced."""

    batch: int
    routes: int
    length: int
    channels: int
    states: int
    wide: bool        # accumulate in float64 instead of float32
    sum_routes: bool  # the routes share x, and y and dx are summed over them


class ScanInputs(NamedTuple):
    """The tensors of a selective scan over K routes, in pixel order and channel last, any strides."""

    x: Tensor                             # (B, K, L, D), or (B, L, D): one image for all routes
    delta: Tensor                         # (B, K, L, D)
    A: Tensor                             # (K, D, N)
    B: Tensor                             # (B, K, L, N)
    C: Tensor                             # (B, K, L, N)
    D: Tensor | None = None               # (K, D)
    delta_bias: Tensor | None = None      # (K, D)
    initial_state: Tensor | None = None   # (B, K, D, N)
    table: Tensor | None = None           # (K, L) visit orders

    def sizes(self) -> ScanSizes:
        wide = torch.float64 in (self.x.dtype, self.delta.dtype, self.A.dtype, self.B.dtype, self.C.dtype)
        batch, routes, length, channels = self.delta.shape
        return ScanSizes(batch, routes, length, channels, self.A.shape[2], wide, self.x.dim() == 3)

    def check(self) -> None:
        """Raise TypeError or ValueError, naming the argument, unless shapes, dtypes and devices fit together. The
        values of the table are for a backend to check."""
        x, delta, A, B, C, D, delta_bias, initial_state, table = self
        axes = _AXES if isinstance(x, Tensor) and x.dim() == 4 else _AXES_OF_ONE_IMAGE
        shape = check_axes("x", x, axes[0])
        batch, length, channels = shape[0], shape[-2], shape[-1]
        routes = check_axes("delta", delta, axes[1])[1]
        states = check_axes("A", A, axes[2])[2]
        if routes < 1:
            raise ValueError("delta (B, K, L, D) must have at least one route, got K = 0")
        check_states(states)
        pixels, matrix = (batch, routes, length, channels), (batch, routes, length, states)
        parameter = (routes, channels)
        shapes = (
            shape if axes is _AXES_OF_ONE_IMAGE else pixels, pixels, (routes, channels, states), matrix, matrix,
            parameter, parameter, (batch, routes, channels, states), (routes, length),
        )  # fmt: skip
        device = x.device
        tensors = (x, delta, A, B, C, D, delta_bias, initial_state, table)  # older compilers do not iterate over self
        for name, tensor, letters, expected, dtypes in zip(_NAMES, tensors, axes, shapes, _DTYPES):
            if tensor is not None or name in ("B", "C"):
                check_input(name, tensor, x, device, letters, expected, dtypes)


@dataclass(frozen=True)
class ScanOptions:
    """What a scan computes besides its tensors, and the memory order of its results."""

    delta_softplus: bool = True   # delta = softplus(delta + delta_bias)
    zoh: bool = False             # zero-order hold (VM-DDPM's Eq. 6) instead of delta * B
    channel_first: bool = False   # y and dx lie in memory as (B, K, D, L) behind the same shape


# Making one costs more than looking it up.
_OPTIONS = {key: ScanOptions(*key) for key in product((False, True), repeat=3)}


def scan_options(delta_softplus: bool, zoh: bool, channel_first: bool) -> ScanOptions:
    return _OPTIONS[delta_softplus, zoh, channel_first]


class ScanResult(NamedTuple):
    """What a backend's forward returns."""

    y: Tensor                     # x's shape and dtype
    last_state: Tensor | None     # (B, K, D, N), float32 or float64, if wanted
    checkpoints: Tensor | None    # the states the backward starts from, if asked for
    order: Tensor | None          # a private int32 copy of the table for the backward, if asked for
