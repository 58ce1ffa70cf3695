"""The C++ kernels of csrc/, on the processor."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vmddpm_kernels.backends import extension
from vmddpm_kernels.backends.extension import Gradients, Problem, cast, empty, pointer, view


def available() -> tuple[bool, str]:
    if extension.native is None:
        return False, extension.problem
    try:
        return True, extension.native.describe()
    except ValueError as error:
        return False, str(error)


def scan_routes(x: Tensor, table: Tensor, *, channel_first: bool) -> Tensor:
    """x (B, K or 1, L, C) in pixel order -> (B, K, L, C) in the order of the routes; an exact copy."""
    batch, images, length, channels = x.shape
    routes = table.shape[0]
    table = table.to(torch.int32).contiguous()
    out = empty((batch, routes, length, channels), channel_first, x.dtype, x.device)
    image, threads = view(x, shared=images == 1), torch.get_num_threads()
    extension.native.cross_scan(batch, routes, length, channels, table.data_ptr(), image, view(out), threads)
    return out


def merge_routes(y: Tensor, table: Tensor, *, merge: bool, channel_first: bool) -> Tensor:
    """y (B, K, L, C) in the order of the routes -> (B, 1, L, C) summed over them if `merge`, else (B, K, L, C)."""
    batch, routes, length, channels = y.shape
    table = table.to(torch.int32).contiguous()
    dtype = torch.promote_types(y.dtype, torch.float32)
    out = empty((batch, 1 if merge else routes, length, channels), channel_first, dtype, y.device)
    image, threads = view(out, shared=merge), torch.get_num_threads()
    extension.native.cross_merge(batch, routes, length, channels, table.data_ptr(), image, view(y), threads, merge)
    return out.to(y.dtype)


def checkpoint_shape(
    batch: int, routes: int, length: int, channels: int, states: int, wide: bool
) -> tuple[int, ...]:
    """(B, K, chunks, blocks, N, lanes), as `scan_plan` of csrc/selective_scan/cpu.cpp has it; sizes may be symbols."""
    lanes = extension.native.scan_plan(1, 1, 1, 1, 1, wide, False).lanes
    chunk = torch.sym_max(states, 64)
    return batch, routes, (length + chunk - 1) // chunk, (channels + lanes - 1) // lanes, states, lanes


def selective_scan_forward(
    tensors: Sequence[Any], softplus: bool, zoh: bool, merge: bool, channel_first: bool, *, checkpoint: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`selective_scan.scan_routes_with_states` and, if `checkpoint`, the states the backward starts its chunks from.

    `tensors` as in `extension.Problem`."""
    problem = Problem(tensors, softplus, zoh, merge)
    batch, routes, length, channels = problem.shape
    x = problem.inputs[0]
    dtype = problem.dtype if merge else x.dtype  # a sum over routes is rounded once, in the end
    y = empty((batch, 1 if merge else routes, length, channels), channel_first, dtype, problem.device)
    last_state = problem.empty(*problem.states)
    checkpoints = None
    if checkpoint:
        plan = _plan(problem)
        checkpoints = problem.empty(batch, routes, plan.chunks, plan.blocks, problem.states[3], plan.lanes)
    outputs = (view(y, shared=merge), pointer(last_state), pointer(checkpoints))
    extension.native.scan_forward(problem.sizes, problem.arguments, *outputs)
    return y.to(x.dtype), last_state, checkpoints


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
    """Gradients of the nine tensors of `extension.Problem`, each in its tensor's shape and dtype."""
    problem = Problem(tensors, softplus, zoh, merge)
    batch, routes, length, channels = problem.shape
    x, delta, *_ = problem.inputs
    dtype = problem.dtype if x.shape[1] != routes or merge else x.dtype
    dx = empty((batch, 1 if merge else routes, length, channels), channel_first, dtype, problem.device)
    ddelta = empty(problem.shape, channel_first, delta.dtype, problem.device)
    grads = Gradients(problem, tensors, batch, _plan(problem).groups, dx, ddelta)
    dlast_state = cast(dlast_state, problem.dtype)
    arguments = problem.arguments | {"checkpoints": pointer(checkpoints)}
    extension.native.scan_backward(problem.sizes, arguments, grads.arguments(dy, dlast_state, merge))
    return grads.results()


def _plan(problem: Problem) -> Any:
    batch, routes, length, channels, states, wide, _, _, merge, _ = problem.sizes
    return extension.native.scan_plan(batch, routes, length, channels, states, wide, merge)
