"""The selective scan through Triton: how a problem is cut, and the memory that the kernels fill."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vmddpm_kernels.backends.extension import cast, empty
from vmddpm_kernels.backends.triton.launch import INTERPRETED, launch, warp_size
from vmddpm_kernels.backends.triton.scan_backward import scan_backward
from vmddpm_kernels.backends.triton.scan_forward import scan_forward
from vmddpm_kernels.routes import check_table_once

CHUNK = 32  # steps from one checkpoint to the next


def checkpoint_shape(
    batch: int, routes: int, length: int, channels: int, states: int, wide: bool
) -> tuple[int, int, int, int, int]:
    """Of what the forward keeps for the backward, in the dtype of the accumulation: float64 if `wide`, else float32."""
    return batch, routes, (length + CHUNK - 1) // CHUNK, states, channels


@dataclass(frozen=True)
class Plan:
    """What a program does at once, see scan_steps.py."""

    per_thread: int
    slices: int
    block: int
    steps: int

    @property
    def options(self) -> dict[str, int]:
        warps = max(1, self.slices * self.block // warp_size())
        tile = {"PER_THREAD": self.per_thread, "SLICES": self.slices, "BLOCK": self.block, "STEPS": self.steps}
        return {**tile, "num_warps": warps}


def plan(sequences: int, channels: int, states: int, wide: bool, zoh: bool, backward: bool) -> Plan:
    """A function of sizes alone, as the order of sums follows from it.

    per_thread   4 states, as the backward holds those of a few steps in registers; in float64, where each takes two, 1;
                 16 in a forward where warps of 32 channels alone fill a large GPU (132 multiprocessors, 8 warps
                 each): what all slices of a channel repeat is then done once
    slices       the other states of a channel, in other threads: at most 64, beyond which a thread holds more states
    block        as many channels as 128 threads allow: at most 32, and at least 8, which are whole sectors of memory
    steps        4; half of that where 512 threads leave each half as many registers, and in the backward in float64,
                 with the terms of zero-order hold, and where one warp has nothing to share between its threads"""
    padded = 1 << (states - 1).bit_length()
    fills = sequences * -(-channels // 32) >= 132 * 8
    per_thread = 1 if wide else 16 if fills and padded <= 16 and not zoh and not backward else 4
    slices = min(64, max(1, padded // per_thread))
    steps = 4 // (2 if slices == 64 else 1) // (2 if backward and (wide or zoh or slices == 1) else 1)
    return Plan(padded // slices, slices, min(32, max(8, 128 // slices)), steps)


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
        self.constants = {
            "STATES": self.states, "CHUNK": CHUNK, "SOFTPLUS": softplus, "ZOH": zoh, "MERGE": merge,
        }  # fmt: skip

    def plan(self, backward: bool) -> Plan:
        return plan(self.sequences, self.channels, self.states, self.wide, bool(self.constants["ZOH"]), backward)

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
    plan = p.plan(backward=False)
    blocks = p.blocks(plan)
    y = p.empty_like_delta(p.x.dtype, channel_first, 1 if merge else p.routes)
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
    plan = p.plan(backward=True)
    blocks = p.blocks(plan)
    images = 1 if merge else p.routes
    dx = p.empty_like_delta(p.x.dtype, channel_first, images)
    ddelta = p.empty_like_delta(p.delta.dtype, channel_first, p.routes)
    dA, dinitial_state = (p.empty(p.batch, p.routes, p.channels, p.states) for _ in range(2))
    dB, dC = (p.empty(blocks, p.batch, p.routes, p.length, p.states) for _ in range(2))
    dD, ddelta_bias = (p.empty(p.batch, p.routes, p.channels) for _ in range(2))
    programs = blocks * p.sequences
    scratch = p.empty(programs, CHUNK // plan.steps, plan.per_thread * plan.slices, plan.block)
    launch(
        scan_backward, programs, p.x.device,
        *_strided(p.x), *_strided(p.delta), p.A, p.B, p.C, p.D, p.delta_bias, p.table, checkpoints, scratch,
        *_strided(dy), cast(dlast_state, p.dtype), *_strided(dx), *_strided(ddelta),
        dA, dB, dC, dD, ddelta_bias, dinitial_state, p.batch, p.routes, p.length, p.channels, blocks, 1,
        **p.constants, **plan.options,
    )  # fmt: skip
    if p.x.shape[1] != images:
        dx = dx.sum(1, keepdim=True)
    # What blocks and batch elements summed for themselves is summed here, by torch, in a fixed order.
    dA, dB, dC, dD, ddelta_bias = (t.sum(0) for t in (dA, dB, dC, dD, ddelta_bias))
    grads = (dx, ddelta, dA, dB, dC, dD, ddelta_bias, dinitial_state, None)
    return tuple(None if t is None or g is None else g.to(t.dtype) for g, t in zip(grads, tensors))
