"""The CUDA kernels of csrc/. Nothing here waits for the GPU, and all memory comes from torch, so that every call can be
captured in a CUDA graph."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vmddpm_kernels.backends import extension
from vmddpm_kernels.backends.extension import Problem, cast, empty, empty_gradients, finished, rounded
from vmddpm_kernels.routes import check_table_once


def available() -> tuple[bool, str]:
    if extension.native is None:
        return False, extension.problem
    if not hasattr(extension.native, "cuda"):
        return False, "built without CUDA; put nvcc (12 or newer) on PATH and run `VMDDPM_CUDA=1 pip install .`"
    built = f"CUDA C++ for {extension.native.cuda.architectures}"
    if not torch.cuda.is_available():
        return False, f"{built}, but torch finds no GPU; `python -c 'import torch; torch.cuda.init()'` says why"
    return True, f"{built}, {torch.cuda.get_device_name()}"


def _call(device: torch.device) -> tuple[int, int]:
    """The GPU's number, and the stream torch works on there."""
    return device.index, torch.cuda.current_stream(device).cuda_stream


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Within it the kernels may make `device` the current one: torch puts its own back afterwards."""
    return torch.cuda.device(device)


@lru_cache(maxsize=64)
def _limits(device: torch.device) -> tuple[int, int]:
    """Multiprocessors, and bytes of shared memory a block may have."""
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.shared_memory_per_block_optin


def scan_routes(x: Tensor, table: Tensor, *, channel_first: bool) -> Tensor:
    """x (B, K or 1, L, C) in pixel order -> (B, K, L, C) in the order of the routes; an exact copy."""
    check_table_once(table, x.shape[2])
    batch, _, length, channels = x.shape
    table = table.to(torch.int32).contiguous()
    out = empty((batch, table.shape[0], length, channels), channel_first, x.dtype, x.device)
    with _current(x.device):
        extension.native.cuda.cross_scan(x, table, out, *_call(x.device))
    return out


def merge_routes(y: Tensor, table: Tensor, *, merge: bool, channel_first: bool) -> Tensor:
    """y (B, K, L, C) in the order of the routes -> (B, 1, L, C) summed over them if `merge`, else (B, K, L, C)."""
    check_table_once(table, y.shape[2])
    batch, routes, length, channels = y.shape
    table = table.to(torch.int32).contiguous()
    inverse = torch.empty_like(table)
    out = empty((batch, 1 if merge else routes, length, channels), channel_first, y.dtype, y.device)
    with _current(y.device):
        extension.native.cuda.cross_merge(out, table, y, merge, inverse, *_call(y.device))
    return out


def _prepare(tensors: Sequence[Any], softplus: bool, zoh: bool) -> Problem:
    """The problem with inputs as the kernels fetch them best.

    In float64 every input is float64. B and C are small beside x: in half precision, where their rows are no whole
    16 bytes, float32 copies of them can be fetched ahead and they cannot."""
    x, delta, A, B, C, *rest = tensors
    if torch.float64 in (x.dtype, delta.dtype, A.dtype, B.dtype, C.dtype):
        x, delta, B, C = (t.detach().double() for t in (x, delta, B, C))
    else:
        B, C = (t if _fetched_whole(t) else t.detach().float() for t in (B, C))
    return Problem((x, delta, A, B, C, *rest), softplus, zoh)


def _fetched_whole(matrix: Tensor) -> bool:
    rows = matrix.stride(3) == 1 and matrix.shape[3] >= 4
    sizes = (matrix.element_size() * s for s in (matrix.stride(0), matrix.stride(1), matrix.stride(2), matrix.shape[3]))
    return matrix.element_size() > 2 or (rows and matrix.data_ptr() % 16 == 0 and all(size % 16 == 0 for size in sizes))


class _Plan:
    """How the kernels cut the problem, and the workspaces that takes."""

    def __init__(self, problem: Problem, backward: bool):
        self.cut = extension.native.cuda.scan_plan(problem.sizes, _limits(problem.device), backward)
        batch, routes, channels, states = problem.states
        self.workspaces: list[Tensor | None] = [None, None]
        if self.cut.segments > 1:
            pieces = (batch, routes, self.cut.segments)
            self.workspaces = [problem.empty(*pieces, states, channels), problem.empty(*pieces, channels)]
        self.call = (*_call(problem.device), *self.workspaces)

    def image_dtype(self, problem: Problem, dtype: torch.dtype) -> torch.dtype:
        """y and dx are written in `dtype` unless several launches or routes add up to them: then in the type of the
        accumulation."""
        return problem.dtype if problem.merge and problem.shape[1] > 1 else self.result_dtype(problem, dtype)

    def result_dtype(self, problem: Problem, dtype: torch.dtype) -> torch.dtype:
        return problem.dtype if self.cut.passes > 1 or problem.dtype == torch.float64 else dtype


def checkpoint_shape(
    batch: int, routes: int, length: int, channels: int, states: int, wide: bool
) -> tuple[int, ...]:
    """(B, K, chunks, N, D), as `cuda_scan_plan` of csrc/selective_scan/plan.cu has it; sizes may be symbols."""
    return batch, routes, (length + 31) // 32, states, channels


def selective_scan_forward(
    tensors: Sequence[Any], softplus: bool, zoh: bool, channel_first: bool, *, checkpoint: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`selective_scan.scan_routes_with_states` and, if `checkpoint`, the states the backward starts its chunks from.

    `tensors` as in `extension.Problem`."""
    x, delta, *_, table = tensors
    if table is not None:
        check_table_once(table, delta.shape[2])
    problem = _prepare(tensors, softplus, zoh)
    plan = _Plan(problem, backward=False)
    y = empty(problem.image, channel_first, plan.image_dtype(problem, x.dtype), problem.device)
    last_state = problem.empty(*problem.states)
    checkpoints = None
    if checkpoint:
        batch, routes, channels, states = problem.states
        checkpoints = problem.empty(batch, routes, plan.cut.chunks, states, channels)
    outputs = (y, last_state, checkpoints)
    with _current(problem.device):
        extension.native.cuda.scan_forward(problem.sizes, problem.tensors, outputs, plan.cut, plan.call)
    return rounded(y, x.dtype), last_state, checkpoints


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
    problem = _prepare(tensors, softplus, zoh)
    plan = _Plan(problem, backward=True)
    x, delta, *_ = tensors
    dx = empty(problem.image, channel_first, plan.image_dtype(problem, x.dtype), problem.device)
    ddelta = empty(problem.shape, channel_first, plan.result_dtype(problem, delta.dtype), problem.device)
    grads = empty_gradients(problem, problem.shape[0] * plan.cut.segments, plan.cut.groups, dx, ddelta)
    if dy is not None and problem.dtype == torch.float64:
        dy = dy.double()
    incoming = (checkpoints, dy, cast(dlast_state, problem.dtype))
    with _current(problem.device):
        extension.native.cuda.scan_backward(problem.sizes, problem.tensors, incoming, grads, plan.cut, plan.call)
    return finished(grads, tensors)
