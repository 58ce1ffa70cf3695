"""The tensors, options, sizes and results of a selective scan, used by all functions and backends."""

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from vmddpm_kernels.checks import FLOATS, INTEGERS, check_axes, check_input, check_states

# Names of the inputs, their axes in error messages, and their dtypes.
_NAMES = ("x", "delta", "A", "B", "C", "D", "delta_bias", "initial_state", "dt_proj", "table")
_AXES = (
    "batch, routes, length, dim",
    "batch, routes, length, dim",
    "routes, dim, d_state",
    "batch, routes, length, d_state",
    "batch, routes, length, d_state",
    "routes, dim",
    "routes, dim",
    "batch, routes, dim, d_state",
    "routes, dim, dt_rank",
    "routes, length",
)
_AXES_OF_ONE_IMAGE = ("batch, length, dim", *_AXES[1:])
_DTYPES = (*[FLOATS] * 9, INTEGERS)


class ScanSizes(NamedTuple):
    """The sizes and flags that determine plans and shapes. Sizes may be symbolic while a graph is traced."""

    batch: int
    routes: int
    length: int
    channels: int
    states: int
    wide: bool        # accumulate in float64 instead of float32
    sum_routes: bool  # the routes share one x, and y and dx are sums over the routes


class ScanInputs(NamedTuple):
    """The tensors of a selective scan along routes, in pixel order, channel last, with any strides."""

    x: Tensor                             # (batch, routes, length, dim); (batch, length, dim): one image for all routes
    delta: Tensor                         # (batch, routes, length, dim); with dt_proj (batch, routes, length, dt_rank)
    A: Tensor                             # (routes, dim, d_state)
    B: Tensor                             # (batch, routes, length, d_state)
    C: Tensor                             # (batch, routes, length, d_state)
    D: Tensor | None = None               # (routes, dim)
    delta_bias: Tensor | None = None      # (routes, dim)
    initial_state: Tensor | None = None   # (batch, routes, dim, d_state)
    dt_proj: Tensor | None = None         # (routes, dim, dt_rank): the step sizes are delta @ dt_proj.mT
    table: Tensor | None = None           # (routes, length) visit orders

    def sizes(self) -> ScanSizes:
        wide = torch.float64 in (self.x.dtype, self.delta.dtype, self.A.dtype, self.B.dtype, self.C.dtype)
        if self.dt_proj is not None:
            wide = wide or self.dt_proj.dtype == torch.float64
        batch, routes, length, _ = self.delta.shape
        _, channels, states = self.A.shape
        return ScanSizes(batch, routes, length, channels, states, wide, self.x.dim() == 3)

    def check(self) -> None:
        """Raise TypeError or ValueError, naming the argument, unless shapes, dtypes and devices fit together. Backends
        check the values of the table."""
        x, delta, A, B, C, D, delta_bias, initial_state, dt_proj, table = self
        axes = _AXES if isinstance(x, Tensor) and x.dim() == 4 else _AXES_OF_ONE_IMAGE
        shape = check_axes("x", x, axes[0])
        batch, length, channels = shape[0], shape[-2], shape[-1]
        if dt_proj is not None:
            axes = (axes[0], "batch, routes, length, dt_rank", *axes[2:])
        routes = check_axes("delta", delta, axes[1])[1]
        states = check_axes("A", A, axes[2])[2]
        if routes < 1:
            raise ValueError("delta (batch, routes, length, dim) must have at least one route")
        check_states(states)
        pixels, matrix = (batch, routes, length, channels), (batch, routes, length, states)
        parameter = (routes, channels)
        factor = pixels
        if dt_proj is not None:
            rank = check_axes("dt_proj", dt_proj, _AXES[8])[2]
            if rank < 1:
                raise ValueError("dt_proj (routes, dim, dt_rank) must have dt_rank at least 1")
            factor = (batch, routes, length, rank)
        shapes = (
            shape if len(shape) == 3 else pixels, factor, (routes, channels, states), matrix, matrix, parameter,
            parameter, (batch, routes, channels, states), (routes, channels, factor[3]), (routes, length),
        )  # fmt: skip
        device = x.device
        # Not `self`: torch.compile of older versions of torch cannot iterate over it.
        tensors = (x, delta, A, B, C, D, delta_bias, initial_state, dt_proj, table)
        for name, tensor, letters, expected, dtypes in zip(_NAMES, tensors, axes, shapes, _DTYPES):
            if tensor is not None or name in ("B", "C"):
                check_input(name, tensor, x, device, letters, expected, dtypes)


@dataclass(frozen=True)
class ScanOptions:
    """Options of a scan, and the memory order of its results."""

    delta_softplus: bool = True   # delta = softplus(delta + delta_bias)
    zoh: bool = False             # zero-order hold (VM-DDPM's Eq. 6) instead of delta * B
    channel_first: bool = False   # y and dx are (batch, routes, dim, length) in memory; their shapes do not change


# Cached: constructing one is slower than a lookup.
_OPTIONS = {key: ScanOptions(*key) for key in product((False, True), repeat=3)}


def scan_options(delta_softplus: bool, zoh: bool, channel_first: bool) -> ScanOptions:
    return _OPTIONS[delta_softplus, zoh, channel_first]


class ScanResult(NamedTuple):
    """The results of a backend's forward."""

    y: Tensor                     # x's shape and dtype
    last_state: Tensor | None     # (batch, routes, dim, d_state), float32 or float64, if requested
    checkpoints: Tensor | None    # states that the backward starts from, if requested
    order: Tensor | None          # a private int32 copy of the table for the backward, if requested
