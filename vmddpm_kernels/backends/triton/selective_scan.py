"""The selective scan through Triton: allocates results and launches the kernels."""

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
from vmddpm_kernels.backends.triton.launch import INTERPRETED, launch, registers, strided
from vmddpm_kernels.backends.triton.plan import LaunchPlan, Scan, chosen_plan
from vmddpm_kernels.backends.triton.scan_backward import scan_backward as backward_kernel
from vmddpm_kernels.backends.triton.scan_fold import fold_routes
from vmddpm_kernels.backends.triton.scan_forward import scan_forward as forward_kernel
from vmddpm_kernels.checks import check_memory
from vmddpm_kernels.routes import check_table_once, private_copy
from vmddpm_kernels.scan_inputs import ScanInputs, ScanOptions, ScanResult, ScanSizes

FOLDED = 512  # elements per program of fold_routes
_T = TypeVar("_T")


class _Launch:
    """One scan in the kernels' format: parameters, B and C contiguous in the accumulation's type. x and delta, which
    are much larger, are read in place."""

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
            x=inputs.x.detach(), delta=inputs.delta.detach(), B=self._matrix(inputs.B), C=self._matrix(inputs.C)
        )

    def _matrix(self, matrix: Tensor) -> Tensor:
        """B or C, aligned to 16 bytes."""
        matrix = cast_given(matrix, self.dtype)
        return matrix if matrix.data_ptr() % 16 == 0 else matrix.clone()

    def run_with_plan(self, run: Callable[[LaunchPlan], _T], backward: bool) -> _T:
        batch, routes, _, channels, states, wide, sum_routes = self.sizes
        self.scan = Scan(batch, routes, channels, states, sum_routes, wide, self.options.zoh, backward)
        return run(chosen_plan(self.scan, run, self.device))

    def blocks(self, plan: LaunchPlan) -> int:
        return -(-self.sizes.channels // plan.block)

    def programs(self, plan: LaunchPlan) -> int:
        return self.sizes.batch * self.sizes.routes // plan.walked * self.blocks(plan)

    def arguments(self, plan: LaunchPlan) -> dict[str, Any]:
        """The arguments common to the forward and the backward kernel."""
        x, delta, A, B, C, D, delta_bias, *_, table = self.inputs
        _, routes, length, channels, states, *_ = self.sizes
        return {
            **strided("x", x), **strided("delta", delta), "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias,
            "table": table, "routes": routes, "length": length, "channels": channels, "walked": plan.walked,
            "STATES": states, "CHUNK": CHUNK, "SOFTPLUS": self.options.delta_softplus, "ZOH": self.options.zoh,
            "ADDS": self.scan.adds(plan), "GROUP": plan.group, "STEPS": plan.steps, "BLOCK": plan.block,
            "num_warps": 1, **registers(plan.registers),
        }  # fmt: skip

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def empty_like(self, tensor: Tensor, exact: bool) -> Tensor:
        """Memory for y, dx or ddelta: in the tensor's dtype, or in the accumulation's if `exact`. Triton's interpreter
        truncates to bfloat16 where a GPU rounds, so there the result keeps the accumulation's type and torch rounds."""
        exact = exact or self.sizes.wide or (INTERPRETED and tensor.dtype == torch.bfloat16)
        dtype = self.dtype if exact else tensor.dtype
        return empty(tensor.shape, self.options.channel_first, dtype, self.device)

    def folds(self, plan: LaunchPlan) -> bool:
        return self.sizes.sum_routes and plan.walked < self.sizes.routes

    def image(self, plan: LaunchPlan) -> Tensor:
        """Memory for the programs' y or dx. If results are folded, (B, K, L, D) with a separate, contiguous batch of
        images for each route."""
        x = self.inputs.x
        if not self.folds(plan):
            return self.empty_like(x, exact=self.scan.adds(plan))
        batch, length, channels = x.shape
        size = length * channels
        l, d = (1, length) if self.options.channel_first else (channels, 1)
        shape, strides = (batch, self.sizes.routes, length, channels), (size, batch * size, l, d)
        return torch.empty_strided(shape, strides, dtype=self.dtype, device=self.device)

    def summed(self, plan: LaunchPlan, image: Tensor) -> Tensor:
        if not self.folds(plan):
            return image
        total = self.empty_like(self.inputs.x, exact=False)
        launch(
            fold_routes, -(-total.numel() // FOLDED), self.device, image=total, parts=image, size=total.numel(),
            routes=self.sizes.routes, BLOCK=FOLDED, num_warps=4,
        )  # fmt: skip
        return total


def scan(
    inputs: ScanInputs, sizes: ScanSizes, options: ScanOptions, checkpoint_shape: tuple[int, ...] | None
) -> ScanResult:
    """The forward scan; keeps checkpoints of the given shape, or none."""
    p = _Launch(inputs, sizes, options, private_table=checkpoint_shape is not None)
    return p.run_with_plan(lambda plan: _forward(p, plan, inputs, checkpoint_shape), backward=False)


def _forward(p: _Launch, plan: LaunchPlan, inputs: ScanInputs, checkpoint_shape: tuple[int, ...] | None) -> ScanResult:
    batch, routes, _, channels, states, *_ = p.sizes
    y = p.image(plan)
    last_state = p.empty(batch, routes, channels, states)
    checkpoints = None if checkpoint_shape is None else p.empty(*checkpoint_shape)
    launch(
        forward_kernel, p.programs(plan), p.device, **p.arguments(plan), **strided("y", y),
        initial_state=p.inputs.initial_state, last_state=last_state, checkpoints=checkpoints,
    )  # fmt: skip
    y = p.summed(plan, y).to(inputs.x.dtype)
    return ScanResult(y, last_state, checkpoints, None if checkpoints is None else p.inputs.table)


def scan_backward(
    dy: Tensor | None, dlast_state: Tensor | None, inputs: ScanInputs, sizes: ScanSizes, checkpoints: Tensor,
    options: ScanOptions,
) -> list[Tensor | None]:  # fmt: skip
    """The gradients of the first nine inputs in their shapes and dtypes, with None for None."""
    check_memory((dy, dlast_state, checkpoints))
    p = _Launch(inputs, sizes, options, private_table=False)
    dlast_state, checkpoints = cast(dlast_state, p.dtype), checkpoints.contiguous()
    grads = p.run_with_plan(lambda plan: _backward(p, plan, dy, dlast_state, checkpoints), backward=True)
    return gradients_of(inputs, p.inputs, grads, partial=True)


def _backward(
    p: _Launch, plan: LaunchPlan, dy: Tensor | None, dlast_state: Tensor | None, checkpoints: Tensor
) -> ScanGradients:
    """The kernel's gradients, partly still to be summed, in the accumulation's type where sums need it."""
    _, delta, _, _, _, D, delta_bias, initial_state, *_ = p.inputs
    batch, routes, length, channels, states, *_ = p.sizes
    dx, ddelta = p.image(plan), p.empty_like(delta, exact=p.scan.groups(plan) > 1)
    dA = p.empty(batch, routes, channels, states)
    dinitial_state = None if initial_state is None else torch.empty_like(dA)
    dB, dC = (p.empty(p.blocks(plan), batch, routes, length, states) for _ in range(2))
    dD, ddelta_bias = (None if t is None else p.empty(batch, routes, channels) for t in (D, delta_bias))
    tiles = -(-min(CHUNK, length) // plan.steps)
    scratch = p.empty(p.programs(plan), tiles, plan.group, plan.block)
    launch(
        backward_kernel, p.programs(plan), p.device, **p.arguments(plan), checkpoints=checkpoints, scratch=scratch,
        **strided("dy", dy), dlast_state=dlast_state, **strided("dx", dx), **strided("ddelta", ddelta),
        dA=dA, dB=dB, dC=dC, dD=dD, ddelta_bias=ddelta_bias, dinitial_state=dinitial_state, batches=batch,
    )  # fmt: skip
    return ScanGradients(p.summed(plan, dx), ddelta, dA, dB, dC, dD, ddelta_bias, dinitial_state)
