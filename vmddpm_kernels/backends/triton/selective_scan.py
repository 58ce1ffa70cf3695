"""The selective scan through Triton: what its kernels are given, and the memory that they fill."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vmddpm_kernels.backends.extension import cast, empty, finished
from vmddpm_kernels.backends.triton.launch import INTERPRETED, launch
from vmddpm_kernels.backends.triton.plan import Plan, Scan, chosen_plan
from vmddpm_kernels.backends.triton.scan_backward import scan_backward
from vmddpm_kernels.backends.triton.scan_forward import scan_forward
from vmddpm_kernels.routes import check_table_once

CHUNK = 32  # steps from one checkpoint to the next


def checkpoint_shape(
    batch: int, routes: int, length: int, channels: int, states: int, wide: bool
) -> tuple[int, int, int, int, int]:
    """Of what the forward keeps for the backward, in the dtype of the accumulation: float64 if `wide`, else float32."""
    return batch, routes, (length + CHUNK - 1) // CHUNK, states, channels


class _Problem:
    """One scan as the kernels see it: parameters and matrices contiguous, in the type of the accumulation. B and C are
    small beside x and delta, which are read as they lie in memory."""

    def __init__(self, tensors: Sequence[Any], softplus: bool, zoh: bool):
        x, delta, A, B, C, D, delta_bias, initial_state, table = tensors
        self.wide = torch.float64 in {t.dtype for t in (x, delta, A, B, C)}
        self.dtype = torch.float64 if self.wide else torch.float32
        self.x, self.delta, self.merge = x.detach(), delta.detach(), x.dim() == 3
        self.A, self.B, self.C, self.D, self.delta_bias, self.initial_state = (
            cast(t, self.dtype) for t in (A, B, C, D, delta_bias, initial_state)
        )
        self.table = None
        if table is not None:
            check_table_once(table, delta.shape[2])
            self.table = table.to(torch.int32).contiguous()
        self.batch, self.routes, self.length, self.channels = delta.shape
        self.states = A.shape[2]
        self.sequences = self.batch * (1 if self.merge else self.routes)  # that programs walk side by side
        self.constants = {"STATES": self.states, "CHUNK": CHUNK, "SOFTPLUS": softplus, "ZOH": zoh, "MERGE": self.merge}

    def run_with_plan(self, run: Callable[[Plan], Any], backward: bool) -> Any:
        zoh = bool(self.constants["ZOH"])
        scan = Scan(self.sequences, self.channels, self.states, self.wide, zoh, backward)
        return run(chosen_plan(scan, run, self.x.device))

    def blocks(self, plan: Plan) -> int:
        return -(-self.channels // plan.block)

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.x.device)

    def empty_like(self, tensor: Tensor, channel_first: bool) -> Tensor:
        """y or dx, or ddelta, in the dtype of x or delta unless several routes add up to it, then in that of the
        accumulation. Triton's interpreter cuts digits off where a GPU rounds to bfloat16, so there torch does it."""
        summed = tensor.dim() == 3 and self.routes > 1
        exact = self.wide or summed or (INTERPRETED and tensor.dtype == torch.bfloat16)
        return empty(tensor.shape, channel_first, self.dtype if exact else tensor.dtype, self.x.device)


def _strided(tensor: Tensor | None) -> tuple[Any, ...]:
    """A (B, K, L, D) tensor as the kernels take it, or (B, L, D), which is that of every route."""
    if tensor is None:
        return None, 0, 0, 0, 0
    strides = tensor.stride()
    return tensor, strides[0], 0 if tensor.dim() == 3 else strides[1], *strides[-2:]


def selective_scan_forward(
    tensors: Sequence[Any], softplus: bool, zoh: bool, channel_first: bool, *, checkpoint: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`selective_scan.scan_routes_with_states` and, if `checkpoint`, the states the backward starts its chunks from.

    `tensors` as in `extension.Problem`."""
    p = _Problem(tensors, softplus, zoh)
    return p.run_with_plan(lambda plan: _forward(p, plan, channel_first, checkpoint), backward=False)


def _forward(p: _Problem, plan: Plan, channel_first: bool, checkpoint: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    blocks = p.blocks(plan)
    y = p.empty_like(p.x, channel_first)
    last_state = p.empty(p.batch, p.routes, p.channels, p.states)
    checkpoints = None
    if checkpoint:
        checkpoints = p.empty(*checkpoint_shape(p.batch, p.routes, p.length, p.channels, p.states, p.wide))
    launch(
        scan_forward, blocks * p.sequences, p.x.device,
        *_strided(p.x), *_strided(p.delta), p.A, p.B, p.C, p.D, p.delta_bias, p.initial_state, p.table,
        *_strided(y), last_state, checkpoints, p.routes, p.length, p.channels, blocks, 1,
        **p.constants, **plan.options,
    )  # fmt: skip
    return y.to(p.x.dtype), last_state, checkpoints


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
    p = _Problem(tensors, softplus, zoh)
    dlast_state = cast(dlast_state, p.dtype)
    grads = p.run_with_plan(
        lambda plan: _backward(p, plan, dy, dlast_state, checkpoints, channel_first), backward=True
    )
    return finished(grads, tensors)


def _backward(
    p: _Problem, plan: Plan, dy: Tensor | None, dlast_state: Tensor | None, checkpoints: Tensor, channel_first: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of the first eight, in the type of the accumulation where it takes sums."""
    blocks = p.blocks(plan)
    dx, ddelta = p.empty_like(p.x, channel_first), p.empty_like(p.delta, channel_first)
    dA = p.empty(p.batch, p.routes, p.channels, p.states)
    dinitial_state = None if p.initial_state is None else torch.empty_like(dA)
    dB, dC = (p.empty(blocks, p.batch, p.routes, p.length, p.states) for _ in range(2))
    dD, ddelta_bias = (
        None if t is None else p.empty(p.batch, p.routes, p.channels) for t in (p.D, p.delta_bias)
    )
    programs = blocks * p.sequences
    scratch = p.empty(programs, CHUNK // plan.steps, plan.per_thread * plan.slices, plan.block)
    launch(
        scan_backward, programs, p.x.device,
        *_strided(p.x), *_strided(p.delta), p.A, p.B, p.C, p.D, p.delta_bias, p.table, checkpoints, scratch,
        *_strided(dy), dlast_state, *_strided(dx), *_strided(ddelta),
        dA, dB, dC, dD, ddelta_bias, dinitial_state, p.batch, p.routes, p.length, p.channels, blocks, 1,
        **p.constants, **plan.options,
    )  # fmt: skip
    return dx, ddelta, dA, dB, dC, dD, ddelta_bias, dinitial_state
