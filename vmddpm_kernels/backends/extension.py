"""The compiled extension `_native` of csrc/, and the tensors it is given: those it reads, as its kernels take them, and
those it fills."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

native: Any = None
problem = ""
try:
    # torch is imported first by the package, so that the extension finds torch's OpenMP runtime already loaded.
    native = import_module("vmddpm_kernels._native")
except ImportError as error:
    problem = (
        f"{error}; build the extension with `pip install .` in the source tree, and start python outside it, "
        "where its folder does not hide the installed package, or install with `pip install -e .`"
    )


def int32(table: Tensor) -> Tensor:
    """A contiguous int32 table, in which a number that int32 cannot hold is still out of range."""
    if table.dtype != torch.int32:
        table = table.clamp(-1, 2**31 - 1).to(torch.int32)
    return table.contiguous()


def cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if tensor is None or (tensor.dtype == dtype and tensor.is_contiguous()):
        return tensor
    return tensor.detach().to(dtype).contiguous()


def rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor.to(dtype)`, which costs a microsecond even where there is nothing to do."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def empty(shape: Sequence[int], channel_first: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(B, K, L, D), laid out in memory as (B, K, D, L) or as (B, L, K, D); or (B, L, D), as (B, D, L) or (B, L, D)."""
    length, channels = shape[-2:]
    image = length * channels
    if len(shape) == 3:
        strides: tuple[int, ...] = (image, 1, length) if channel_first else (image, channels, 1)
    else:
        routes = shape[1]
        whole = routes * image
        strides = (whole, image, 1, length) if channel_first else (whole, channels, routes * channels, 1)
    return torch.empty_strided(shape, strides, dtype=dtype, device=device)


class Problem:
    """One scan as the kernels see it: its sizes, and its parameters in the type of the accumulation.

    `tensors` are x (B, K, L, D), or (B, L, D), an image that the routes share and y is summed to; delta (B, K, L, D);
    A (K, D, N); B, C (B, K, L, N); D, delta_bias (K, D); initial_state (B, K, D, N); table (K, L); the last four may be
    None.
    """

    def __init__(self, tensors: Sequence[Any], softplus: bool, zoh: bool):
        x, delta, A, B, C, D, delta_bias, initial_state, table = tensors
        wide = torch.float64 in (x.dtype, delta.dtype, A.dtype, B.dtype, C.dtype)
        self.dtype = dtype = torch.float64 if wide else torch.float32
        self.device = x.device
        self.shape = batch, routes, length, channels = delta.shape
        states = A.shape[2]
        self.states = (batch, routes, channels, states)
        self.merge = x.dim() == 3
        self.image = (batch, length, channels) if self.merge else self.shape    # of x, y and dx
        self.sizes = (*self.shape, states, wide, softplus, zoh, self.merge, torch.get_num_threads())
        self.tensors: tuple[Any, ...] = (
            x, delta, cast(A, dtype), B, C, cast(D, dtype), cast(delta_bias, dtype), cast(initial_state, dtype),
            None if table is None else int32(table),
        )  # fmt: skip

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(*shape, dtype=self.dtype, device=self.device)


def empty_gradients(problem: Problem, pieces: int, groups: int, dx: Tensor, ddelta: Tensor) -> tuple[Any, ...]:
    """What the backward kernel fills: dx, ddelta, dA, dB, dC, dD, ddelta_bias and dinitial_state, None for None. dA, dD
    and ddelta_bias have an axis more in front for the parts of the batch that sum for themselves, if these are several,
    dB and dC one for groups of channels."""
    _, _, A, _, _, D, delta_bias, initial_state, _ = problem.tensors
    matrix = (*((groups,) if groups != 1 else ()), *problem.shape[:3], A.shape[2])

    def parts(parameter: Tensor) -> Tensor:
        return torch.empty_like(parameter) if pieces == 1 else parameter.new_empty((pieces, *parameter.shape))

    return (
        dx,
        ddelta,
        parts(A),
        problem.empty(*matrix),
        problem.empty(*matrix),
        None if D is None else parts(D),
        None if delta_bias is None else parts(delta_bias),
        None if initial_state is None else torch.empty_like(initial_state),
    )


def finished(grads: Sequence[Any], tensors: Sequence[Any]) -> list[Tensor]:
    """The gradients that are not None, in the shape and dtype of their tensors. Sums over parts are taken here, by
    torch, in a fixed order."""
    return [
        rounded(g.sum(0) if g.dim() > t.dim() else g, t.dtype) for g, t in zip(grads, tensors) if g is not None
    ]
