"""The compiled kernels of csrc/: they take pointers, sizes and strides; this file makes them from tensors."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

_native: Any = None
_problem = ""
try:
    # torch is imported first by the package, so that the extension finds torch's OpenMP runtime already loaded.
    _native = import_module("vmddpm_kernels._native")
except ImportError as error:
    _problem = str(error)

_DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


def available() -> tuple[bool, str]:
    if _native is None:
        return False, f"{_problem}; build the extension with `pip install .` in the source tree"
    try:
        return True, _native.describe()
    except ValueError as error:
        return False, str(error)


def _view(tensor: Tensor, shared: bool = False) -> tuple[int, int, tuple[int, ...]]:
    """A 4-D tensor as csrc's View; `shared` repeats the single image of axis 1 for every route."""
    strides = tensor.stride()
    if shared:
        strides = (strides[0], 0, *strides[2:])
    return tensor.data_ptr(), _DTYPE_CODES[tensor.dtype], strides


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.detach().to(dtype).contiguous()


def _empty(shape: tuple[int, int, int, int], channel_first: bool, dtype: torch.dtype) -> Tensor:
    """(B, K, L, D), laid out in memory as (B, K, D, L) or as (B, L, K, D)."""
    batch, routes, length, channels = shape
    if channel_first:
        return torch.empty(batch, routes, channels, length, dtype=dtype).transpose(2, 3)
    return torch.empty(batch, length, routes, channels, dtype=dtype).transpose(1, 2)


def scan_routes(x: Tensor, table: Tensor, *, channel_first: bool) -> Tensor:
    """x (B, K or 1, L, C) in pixel order -> (B, K, L, C) in the order of the routes; an exact copy."""
    batch, images, length, channels = x.shape
    routes = table.shape[0]
    table = table.to(torch.int32).contiguous()
    out = _empty((batch, routes, length, channels), channel_first, x.dtype)
    image, threads = _view(x, shared=images == 1), torch.get_num_threads()
    _native.cross_scan(batch, routes, length, channels, table.data_ptr(), image, _view(out), threads)
    return out


def merge_routes(y: Tensor, table: Tensor, *, merge: bool, channel_first: bool) -> Tensor:
    """y (B, K, L, C) in the order of the routes -> (B, 1, L, C) summed over them if `merge`, else (B, K, L, C)."""
    batch, routes, length, channels = y.shape
    table = table.to(torch.int32).contiguous()
    dtype = torch.promote_types(y.dtype, torch.float32)
    out = _empty((batch, 1 if merge else routes, length, channels), channel_first, dtype)
    image, threads = _view(out, shared=merge), torch.get_num_threads()
    _native.cross_merge(batch, routes, length, channels, table.data_ptr(), image, _view(y), threads, merge)
    return out.to(y.dtype)


class _Problem:
    """One scan as the kernels see it: its sizes, and its parameters in the type of the accumulation."""

    def __init__(self, tensors: Sequence[Any], softplus: bool, zoh: bool, merge: bool):
        x, delta, A, B, C, D, delta_bias, initial_state, table = tensors
        wide = torch.float64 in {t.dtype for t in (x, delta, A, B, C)}
        self.dtype = torch.float64 if wide else torch.float32
        self.shape = tuple(delta.shape)                                         # (B, K, L, D)
        self.states = (*self.shape[:2], self.shape[3], A.shape[2])              # (B, K, D, N)
        # Kept as attributes: the kernels are given addresses only.
        self.parameters = [_cast(t, self.dtype) for t in (A, D, delta_bias, initial_state)]
        self.table = None if table is None else table.to(torch.int32).contiguous()
        names = ("A", "D", "delta_bias", "initial_state", "table")
        self.arguments: dict[str, Any] = dict(zip(names, map(_pointer, [*self.parameters, self.table])))
        shared_x = x.shape[1] == 1
        self.arguments |= {"x": _view(x, shared_x), "delta": _view(delta), "B": _view(B), "C": _view(C)}
        sizes = (*self.shape, A.shape[2], wide)
        self.sizes = (*sizes, softplus, zoh, merge, torch.get_num_threads())
        self.plan = _native.scan_plan(*sizes, merge)

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype)


def selective_scan_forward(
    tensors: Sequence[Any], softplus: bool, zoh: bool, merge: bool, channel_first: bool, *, checkpoint: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`selective_scan.scan_routes_with_states` and, if `checkpoint`, the states the backward starts its chunks from.

    `tensors` are x, delta, A, B, C, D, delta_bias, initial_state, table."""
    problem = _Problem(tensors, softplus, zoh, merge)
    batch, routes, length, channels = problem.shape
    y = _empty((batch, 1 if merge else routes, length, channels), channel_first, problem.dtype)
    last_state = problem.empty(*problem.states)
    plan = problem.plan
    checkpoints = None
    if checkpoint:
        checkpoints = problem.empty(batch, routes, plan.chunks, plan.blocks, problem.states[3], plan.lanes)
    outputs = (_view(y, shared=merge), _pointer(last_state), _pointer(checkpoints))
    _native.scan_forward(problem.sizes, problem.arguments, *outputs)
    return y.to(tensors[0].dtype), last_state, checkpoints


def selective_scan_backward(
    dy: Tensor | None,
    dlast_state: Tensor | None,
    tensors: Sequence[Any],
    checkpoints: Tensor,
    softplus: bool,
    zoh: bool,
    merge: bool,
    channel_first: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, delta, A, B, C, D, delta_bias, initial_state, table, each in its tensor's shape and dtype."""
    problem = _Problem(tensors, softplus, zoh, merge)
    batch, routes, length, channels = problem.shape
    x, _, A, _, _, D, delta_bias, initial_state, _ = tensors
    dx = _empty((batch, 1 if merge else routes, length, channels), channel_first, problem.dtype)
    ddelta = _empty(problem.shape, channel_first, problem.dtype)
    dB, dC = (problem.empty(problem.plan.groups, batch, routes, length, A.shape[2]) for _ in range(2))
    dA = problem.empty(*problem.states)
    dD, ddelta_bias = (None if t is None else problem.empty(*problem.states[:3]) for t in (D, delta_bias))
    dinitial_state = None if initial_state is None else problem.empty(*problem.states)
    dlast_state = _cast(dlast_state, problem.dtype)
    grads = {
        "dy": None if dy is None else _view(dy, shared=merge),
        "dx": _view(dx, shared=merge),
        "ddelta": _view(ddelta),
        "dlast_state": _pointer(dlast_state),
        "dB": _pointer(dB),
        "dC": _pointer(dC),
        "dA": _pointer(dA),
        "dD": _pointer(dD),
        "ddelta_bias": _pointer(ddelta_bias),
        "dinitial_state": _pointer(dinitial_state),
    }
    _native.scan_backward(problem.sizes, problem.arguments | {"checkpoints": _pointer(checkpoints)}, grads)
    if x.shape[1] != dx.shape[1]:
        dx = dx.sum(1, keepdim=True)
    # The kernels leave sums over the batch and over groups of channels to torch, which takes them in a fixed order.
    over_batch = [None if g is None else g.sum(0) for g in (dA, dD, ddelta_bias)]
    results = (dx, ddelta, over_batch[0], dB.sum(0), dC.sum(0), *over_batch[1:], dinitial_state, None)
    return tuple(None if g is None else g.to(t.dtype) for g, t in zip(results, tensors))
