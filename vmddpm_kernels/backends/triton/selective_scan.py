"""The selective scan through Triton: what its kernels are given, and the memory that they fill."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from vmddpm_kernels.backends.extension import (
    ScanGradients,
    accumulation,
    cast,
    cast_given,
    empty,
    gradients_of,
    int32,
    with_parameters_cast,
)
from vmddpm_kernels.backends.triton import CHUNK
from vmddpm_kernels.backends.triton.launch import INTERPRETED, check_memory, launch
from vmddpm_kernels.backends.triton.plan import Plan, Scan, chosen_plan
from vmddpm_kernels.backends.triton.scan_backward import scan_backward as backward_kernel
from vmddpm_kernels.backends.triton.scan_forward import scan_forward as forward_kernel
from vmddpm_kernels.routes import check_table_once, private_copy
from vmddpm_kernels.scan_inputs import ScanInputs, ScanOptions, ScanResult, ScanSizes

_T = TypeVar("_T")


class _Launch:
    """One scan as the kernels take it: parameters and matrices contiguous, in the type of the accumulation. B and C are
    small beside x and delta, which are read as they lie in memory."""

    def __init__(
        self, inputs: ScanInputs, sizes: ScanSizes, options: ScanOptions, *, private_table: bool
    ) -> None:
        check_memory(inputs)
        self.sizes, self.options = sizes, options
        self.dtype, self.device = accumulation(self.sizes), inputs.x.device
        self.order = None
        if inputs.table is not None:
            check_table_once(inputs.table, self.sizes.length)
            converted = inputs.table.dtype != torch.int32
            self.order = int32(inputs.table)
            if converted or private_table:
                self.order = private_copy(self.order)
        inputs = with_parameters_cast(inputs, self.order, self.dtype)
        self.inputs = inputs._replace(
            x=inputs.x.detach(), delta=inputs.delta.detach(),
            B=cast_given(inputs.B, self.dtype), C=cast_given(inputs.C, self.dtype),
        )  # fmt: skip
        self.programs_side_by_side = self.sizes.batch * (1 if self.sizes.sum_routes else self.sizes.routes)
        self.constants = {
            "STATES": self.sizes.states, "CHUNK": CHUNK, "SOFTPLUS": options.delta_softplus, "ZOH": options.zoh,
            "MERGE": self.sizes.sum_routes,
        }  # fmt: skip

    def run_with_plan(self, run: Callable[[Plan], _T], backward: bool) -> _T:
        _, _, _, channels, states, wide, _ = self.sizes
        scan = Scan(self.programs_side_by_side, channels, states, wide, self.options.zoh, backward)
        return run(chosen_plan(scan, run, self.device))

    def blocks(self, plan: Plan) -> int:
        return -(-self.sizes.channels // plan.block)

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def empty_like(self, tensor: Tensor) -> Tensor:
        """y or dx, or ddelta, in the dtype of x or delta unless several routes add up to it, then in that of the
        accumulation. Triton's interpreter cuts digits off where a GPU rounds to bfloat16, so there torch does it."""
        summed = tensor.dim() == 3 and self.sizes.routes > 1
        exact = self.sizes.wide or summed or (INTERPRETED and tensor.dtype == torch.bfloat16)
        dtype = self.dtype if exact else tensor.dtype
        return empty(tensor.shape, self.options.channel_first, dtype, self.device)


def _strided(tensor: Tensor | None) -> tuple[Any, ...]:
    """A (B, K, L, D) tensor as the kernels take it, or (B, L, D), which is that of every route."""
    if tensor is None:
        return None, 0, 0, 0, 0
    strides = tensor.stride()
    return tensor, strides[0], 0 if tensor.dim() == 3 else strides[1], *strides[-2:]


def _sizes(sizes: ScanSizes) -> tuple[int, int, int]:
    return sizes.routes, sizes.length, sizes.channels


def scan(
    inputs: ScanInputs, sizes: ScanSizes, options: ScanOptions, checkpoint_shape: tuple[int, ...] | None
) -> ScanResult:
    """The forward; it keeps checkpoints of this shape, if one is given."""
    p = _Launch(inputs, sizes, options, private_table=checkpoint_shape is not None)
    return p.run_with_plan(lambda plan: _forward(p, plan, inputs, checkpoint_shape), backward=False)


def _forward(p: _Launch, plan: Plan, inputs: ScanInputs, checkpoint_shape: tuple[int, ...] | None) -> ScanResult:
    x, delta, A, B, C, D, delta_bias, initial_state, table = p.inputs
    batch, routes, _, channels, states, *_ = p.sizes
    blocks = p.blocks(plan)
    y = p.empty_like(x)
    last_state = p.empty(batch, routes, channels, states)
    checkpoints = None if checkpoint_shape is None else p.empty(*checkpoint_shape)
    launch(
        forward_kernel, blocks * p.programs_side_by_side, p.device,
        *_strided(x), *_strided(delta), A, B, C, D, delta_bias, initial_state, table,
        *_strided(y), last_state, checkpoints, *_sizes(p.sizes), blocks, 1,
        **p.constants, **plan.options,
    )  # fmt: skip
    return ScanResult(y.to(x.dtype), last_state, checkpoints, None if checkpoints is None else table)


def scan_backward(
    dy: Tensor | None, dlast_state: Tensor | None, inputs: ScanInputs, sizes: ScanSizes, checkpoints: Tensor,
    options: ScanOptions,
) -> list[Tensor | None]:  # fmt: skip
    """The gradients of the first eight inputs in their shapes and dtypes, None for None."""
    check_memory((dy, dlast_state, checkpoints))
    p = _Launch(inputs, sizes, options, private_table=False)
    dlast_state, checkpoints = cast(dlast_state, p.dtype), checkpoints.contiguous()
    grads = p.run_with_plan(lambda plan: _backward(p, plan, dy, dlast_state, checkpoints), backward=True)
    return gradients_of(inputs, p.inputs, grads, partial=True)


def _backward(
    p: _Launch, plan: Plan, dy: Tensor | None, dlast_state: Tensor | None, checkpoints: Tensor
) -> ScanGradients:
    """In the type of the accumulation where that takes sums."""
    x, delta, A, B, C, D, delta_bias, initial_state, table = p.inputs
    batch, routes, length, channels, states, *_ = p.sizes
    blocks = p.blocks(plan)
    dx, ddelta = p.empty_like(x), p.empty_like(delta)
    dA = p.empty(batch, routes, channels, states)
    dinitial_state = None if initial_state is None else torch.empty_like(dA)
    dB, dC = (p.empty(blocks, batch, routes, length, states) for _ in range(2))
    dD, ddelta_bias = (None if t is None else p.empty(batch, routes, channels) for t in (D, delta_bias))
    programs = blocks * p.programs_side_by_side
    scratch = p.empty(programs, CHUNK // plan.steps, plan.per_thread * plan.slices, plan.block)
    launch(
        backward_kernel, programs, p.device,
        *_strided(x), *_strided(delta), A, B, C, D, delta_bias, table, checkpoints, scratch,
        *_strided(dy), dlast_state, *_strided(dx), *_strided(ddelta),
        dA, dB, dC, dD, ddelta_bias, dinitial_state, batch, *_sizes(p.sizes), blocks, 1,
        **p.constants, **plan.options,
    )  # fmt: skip
    return ScanGradients(dx, ddelta, dA, dB, dC, dD, ddelta_bias, dinitial_state)
