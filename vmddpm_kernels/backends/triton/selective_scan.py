"""The selective scan through Triton: what its kernels are given, and the memory that they fill."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vmddpm_kernels.backends.extension import cast, empty
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

    def __init__(self, tensors: Sequence[Any], softplus: bool, zoh: bool, merge: bool):
        x, delta, A, B, C, D, delta_bias, initial_state, table = tensors
        self.wide = torch.float64 in {t.dtype for t in (x, delta, A, B, C)}
        self.dtype = torch.float64 if self.wide else torch.float32
        self.x, self.delta, self.merge = x.detach(), delta.detach(), merge
        self.A, self.B, self.C, self.D, self.delta_bias, self.initial_state = (
            cast(t, self.dtype) for t in (A, B, C, D, delta_bias, initial_state)
        )
        self.table = None
        if table is not None:
            check_table_once(table, x.shape[2])
            self.table = table.to(torch.int32).contiguous()
        self.batch, self.routes, self.length, self.channels = delta.shape
        self.states = A.shape[2]
        self.sequences = self.batch * (1 if merge else self.routes)  # that programs walk side by side
        self.constants = {"STATES": self.states, "CHUNK": CHUNK, "SOFTPLUS": softplus, "ZOH": zoh, "MERGE": merge}

    def run_with_plan(self, run: Callable[[Plan], Any], backward: bool) -> Any:
        zoh = bool(self.constants["ZOH"])
        scan = Scan(self.sequences, self.channels, self.states, self.wide, zoh, backward)
        return run(chosen_plan(scan, run, self.x.device))

    def blocks(self, plan: Plan) -> int:
        return -(-self.channels // plan.block)

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.x.device)

    def empty_like_delta(self, dtype: torch.dtype, channel_first: bool, images: int) -> Tensor:
        """(B, images, L, D), in `dtype` unless several routes add up to it, then in that of the accumulation. Triton's
        interpreter cuts digits off where a GPU rounds to bfloat16, so there torch does it."""
        summed = self.merge and self.routes > images
        exact = self.wide or summed or (INTERPRETED and dtype == torch.bfloat16)
        shape = (self.batch, images, self.length, self.channels)
        return empty(shape, channel_first, self.dtype if exact else dtype, self.x.device)


def _strided(tensor: Tensor | None) -> tuple[Any, ...]:
    """A (B, K or 1, L, D) tensor as the kernels take it: one image is that of every route."""
    if tensor is None:
        return None, 0, 0, 0, 0
    strides = tensor.stride()
    return tensor, strides[0], 0 if tensor.shape[1] == 1 else strides[1], strides[2], strides[3]


def selective_scan_forward(
    tensors: Sequence[Any], softplus: bool, zoh: bool, merge: bool, channel_first: bool, *, checkpoint: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`selective_scan.scan_routes_with_states` and, if `checkpoint`, the states the backward starts its chunks from.

    `tensors` are x (B, K or 1, L, D), delta (B, K, L, D), A (K, D, N), B, C (B, K, L, N), D, delta_bias (K, D),
    initial_state (B, K, D, N), table (K, L); the last four may be None."""
    p = _Problem(tensors, softplus, zoh, merge)
    return p.run_with_plan(lambda plan: _forward(p, plan, channel_first, checkpoint), backward=False)


def _forward(p: _Problem, plan: Plan, channel_first: bool, checkpoint: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    blocks = p.blocks(plan)
    y = p.empty_like_delta(p.x.dtype, channel_first, 1 if p.merge else p.routes)
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
    merge: bool,
    channel_first: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of the nine tensors of `selective_scan_forward`, each in its tensor's shape and dtype."""
    p = _Problem(tensors, softplus, zoh, merge)
    dlast_state = cast(dlast_state, p.dtype)
    grads = p.run_with_plan(
        lambda plan: _backward(p, plan, dy, dlast_state, checkpoints, channel_first), backward=True
    )
    return tuple(None if g is None else g.to(t.dtype) for g, t in zip(grads, tensors))


def _backward(
    p: _Problem, plan: Plan, dy: Tensor | None, dlast_state: Tensor | None, checkpoints: Tensor, channel_first: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of all nine, in the type of the accumulation where it takes sums."""
    blocks = p.blocks(plan)
    images = 1 if p.merge else p.routes
    dx = p.empty_like_delta(p.x.dtype, channel_first, images)
    ddelta = p.empty_like_delta(p.delta.dtype, channel_first, p.routes)
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
    if p.x.shape[1] != images:
        dx = dx.sum(1, keepdim=True)
    # What blocks and batch elements summed for themselves is summed here, by torch, in a fixed order.
    sums = (None if t is None else t.sum(0) for t in (dA, dB, dC, dD, ddelta_bias))
    return dx, ddelta, *sums, dinitial_state, None
