"""The compiled extension `_native` of csrc/, and how it is given tensors: as addresses, type codes and strides."""

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
    problem = f"{error}; build the extension with `pip install .` in the source tree"

_DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


def view(tensor: Tensor, shared: bool = False) -> tuple[int, int, tuple[int, ...]]:
    """A 4-D tensor as csrc's View; `shared` repeats the single image of axis 1 for every route."""
    strides = tensor.stride()
    if shared:
        strides = (strides[0], 0, *strides[2:])
    return tensor.data_ptr(), _DTYPE_CODES[tensor.dtype], strides


def pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def int32(table: Tensor) -> Tensor:
    """A contiguous int32 table, in which a number that int32 cannot hold is still out of range."""
    if table.dtype != torch.int32:
        table = table.clamp(-1, 2**31 - 1).to(torch.int32)
    return table.contiguous()


def cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if tensor is None or (tensor.dtype == dtype and tensor.is_contiguous()):
        return tensor
    return tensor.detach().to(dtype).contiguous()


def empty(
    shape: tuple[int, int, int, int], channel_first: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(B, K, L, D), laid out in memory as (B, K, D, L) or as (B, L, K, D)."""
    batch, routes, length, channels = shape
    if channel_first:
        return torch.empty(batch, routes, channels, length, dtype=dtype, device=device).transpose(2, 3)
    return torch.empty(batch, length, routes, channels, dtype=dtype, device=device).transpose(1, 2)


class Problem:
    """One scan as the kernels see it: its sizes, and its parameters in the type of the accumulation.

    `tensors` are x (B, K or 1, L, D), delta (B, K, L, D), A (K, D, N), B, C (B, K, L, N), D, delta_bias (K, D),
    initial_state (B, K, D, N), table (K, L); the last four may be None.
    """

    def __init__(self, tensors: Sequence[Any], softplus: bool, zoh: bool, merge: bool):
        x, delta, A, B, C, D, delta_bias, initial_state, table = tensors
        wide = torch.float64 in (x.dtype, delta.dtype, A.dtype, B.dtype, C.dtype)
        self.dtype = torch.float64 if wide else torch.float32
        self.device = x.device
        self.shape = tuple(delta.shape)                                         # (B, K, L, D)
        self.states = (*self.shape[:2], self.shape[3], A.shape[2])              # (B, K, D, N)
        # Kept as attributes: the kernels are given addresses only.
        self.parameters = [cast(t, self.dtype) for t in (A, D, delta_bias, initial_state)]
        self.table = None if table is None else int32(table)
        names = ("A", "D", "delta_bias", "initial_state", "table")
        self.arguments: dict[str, Any] = dict(zip(names, map(pointer, [*self.parameters, self.table])))
        self.set_inputs(x, delta, B, C)
        self.sizes = (*self.shape, A.shape[2], wide, softplus, zoh, merge, torch.get_num_threads())

    def set_inputs(self, x: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> None:
        self.inputs = (x, delta, B, C)
        self.arguments.update(x=view(x, x.shape[1] == 1), delta=view(delta), B=view(B), C=view(C))

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)


class Gradients:
    """Where the backward kernel leaves its results. dA, dD, ddelta_bias are (pieces, K, ...), one for each part of the
    batch that summed for itself; dB and dC (groups, B, K, L, N), one for each group of channels."""

    def __init__(
        self, problem: Problem, tensors: Sequence[Any], pieces: int, groups: int, dx: Tensor, ddelta: Tensor
    ):
        _, _, A, _, _, D, delta_bias, initial_state, _ = tensors
        batch, routes, length, channels = problem.shape
        states = A.shape[2]
        self.tensors = tensors
        self.dx, self.ddelta = dx, ddelta
        self.dB, self.dC = (problem.empty(groups, batch, routes, length, states) for _ in range(2))
        self.dA = problem.empty(pieces, routes, channels, states)
        self.dD, self.ddelta_bias = (
            None if t is None else problem.empty(pieces, routes, channels) for t in (D, delta_bias)
        )
        self.dinitial_state = None if initial_state is None else problem.empty(*problem.states)

    def arguments(self, dy: Tensor | None, dlast_state: Tensor | None, merge: bool) -> dict[str, Any]:
        names = ("dB", "dC", "dA", "dD", "ddelta_bias", "dinitial_state")
        return {name: pointer(getattr(self, name)) for name in names} | {
            "dy": None if dy is None else view(dy, shared=merge),
            "dx": view(self.dx, shared=merge),
            "ddelta": view(self.ddelta),
            "dlast_state": pointer(dlast_state),
        }

    def results(self) -> tuple[Tensor | None, ...]:
        """One gradient a tensor, in its shape and dtype. Sums over pieces and groups are taken here, by torch, in
        a fixed order."""
        dx = self.dx
        if self.tensors[0].shape[1] != dx.shape[1]:
            dx = dx.sum(1, keepdim=True)
        parts = (self.dA, self.dB, self.dC, self.dD, self.ddelta_bias)
        dA, dB, dC, dD, ddelta_bias = (None if g is None else g[0] if len(g) == 1 else g.sum(0) for g in parts)
        grads = (dx, self.ddelta, dA, dB, dC, dD, ddelta_bias, self.dinitial_state, None)
        return tuple(None if g is None else g.to(t.dtype) for g, t in zip(grads, self.tensors))
