"""The C++ kernels of csrc/, on the processor."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vmddpm_kernels.backends import extension
from vmddpm_kernels.backends.extension import Problem, cast, empty, empty_gradients, finished, int32


def available() -> tuple[bool, str]:
    if extension.native is None:
        return False, extension.problem
    return _state(extension.native.describe)


@lru_cache
def _state(describe: Callable[[], str]) -> tuple[bool, str]:
    """Of a module, which does not change while it is loaded."""
    try:
        return True, describe()
    except ValueError as error:
        return False, str(error)


def scan_routes(x: Tensor, table: Tensor, *, channel_first: bool) -> Tensor:
    """x (B, K or 1, L, C) in pixel order -> (B, K, L, C) in the order of the routes; an exact copy."""
    batch, _, length, channels = x.shape
    out = empty((batch, table.shape[0], length, channels), channel_first, x.dtype, x.device)
    extension.native.cross_scan(x, int32(table), out, torch.get_num_threads())
    return out


def merge_routes(y: Tensor, table: Tensor, *, merge: bool, channel_first: bool) -> Tensor:
    """y (B, K, L, C) in the order of the routes -> (B, 1, L, C) summed over them if `merge`, else (B, K, L, C)."""
    batch, routes, length, channels = y.shape
    dtype = torch.promote_types(y.dtype, torch.float32)
    out = empty((batch, 1 if merge else routes, length, channels), channel_first, dtype, y.device)
    extension.native.cross_merge(out, int32(table), y, torch.get_num_threads(), merge)
    return out.to(y.dtype)


def checkpoint_shape(
    batch: int, routes: int, length: int, channels: int, states: int, wide: bool
) -> tuple[int, ...]:
    """(B, K, checkpoints, blocks, N, lanes), as `scan_plan` of selective_scan/cpu.cpp says; sizes may be symbols."""
    lanes = extension.native.scan_plan((1, 1, 1, 1, 1, wide, False, False, False, 1)).lanes
    chunk = torch.sym_max(states, 64)
    return batch, routes, torch.sym_max(length - 1, 0) // chunk, (channels + lanes - 1) // lanes, states, lanes


def _image(problem: Problem, channel_first: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """y or dx as the kernels sum it, and, if `dtype` is narrower, the tensor that the last route rounds the sum to."""

    def image(dtype: torch.dtype) -> Tensor:
        return empty(problem.image, channel_first, dtype, problem.device)

    if problem.merge and dtype != problem.dtype:
        return image(problem.dtype), image(dtype)
    return image(dtype), None


def selective_scan_forward(
    tensors: Sequence[Any], softplus: bool, zoh: bool, channel_first: bool, *, checkpoint: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`selective_scan.scan_routes_with_states` and, if `checkpoint`, the states the backward starts its chunks from.

    `tensors` as in `extension.Problem`."""
    problem = Problem(tensors, softplus, zoh)
    x = tensors[0]
    y, narrow_y = _image(problem, channel_first, x.dtype)
    last_state = problem.empty(*problem.states)
    checkpoints = None
    if checkpoint:
        batch, routes, _, states = problem.states
        plan = extension.native.scan_plan(problem.sizes)
        checkpoints = problem.empty(batch, routes, plan.checkpoints, plan.blocks, states, plan.lanes)
    extension.native.scan_forward(problem.sizes, problem.tensors, (y, last_state, checkpoints, narrow_y))
    return y if narrow_y is None else narrow_y, last_state, checkpoints


def selective_scan_backward(
    dy: Tensor | None,
    dlast_state: Tensor | None,
    tensors: Sequence[Any],
    checkpoints: Tensor,
    softplus: bool,
    zoh: bool,
    channel_first: bool,
) -> list[Tensor]:
    """Gradients of the first eight tensors of `extension.Problem` that are given, in their shapes and dtypes."""
    problem = Problem(tensors, softplus, zoh)
    x, delta, *_ = tensors
    dx, narrow_dx = _image(problem, channel_first, x.dtype)
    ddelta = empty(problem.shape, channel_first, delta.dtype, problem.device)
    grads = empty_gradients(problem, problem.shape[0], 1, dx, ddelta)
    incoming = (checkpoints, dy, cast(dlast_state, problem.dtype))
    extension.native.scan_backward(problem.sizes, problem.tensors, incoming, (*grads, narrow_dx))
    return finished(grads if narrow_dx is None else (narrow_dx, *grads[1:]), tensors)
