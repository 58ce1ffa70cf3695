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
    checked_table,
    empty,
    gradients_of,
    with_parameters_cast,
)
from vmddpm_kernels.backends.triton import CHUNK
from vmddpm_kernels.backends.triton.cross_scan import sum_over_routes
from vmddpm_kernels.backends.triton.launch import INTERPRETED, launch, registers, strided
from vmddpm_kernels.backends.triton.plan import LaunchPlan, chosen_plan
from vmddpm_kernels.backends.triton.scan_backward import scan_backward as backward_kernel
from vmddpm_kernels.backends.triton.scan_forward import scan_forward as forward_kernel
from vmddpm_kernels.checks import check_memory
from vmddpm_kernels.scan_inputs import ScanInputs, ScanOptions, ScanResult, ScanSizes

_T = TypeVar("_T")


class _Launch:
    """One scan in the kernels' format: parameters, B and C contiguous in the accumulation's type. x and delta, which
    are much larger, are read in place."""

    def __init__(
        self, inputs: ScanInputs, sizes: ScanSizes, options: ScanOptions, *, private_table: bool
    ) -> None:
        check_memory(inputs)
        self.sizes, self.options = sizes, options
        self.dtype, self.device = accumulation(sizes), inputs.x.device
        table = checked_table(inputs.table, sizes.length, private=private_table)
        inputs = with_parameters_cast(inputs, table, self.dtype)
        self.inputs = inputs._replace(
            x=inputs.x.detach(), delta=inputs.delta.detach(), B=self._matrix(inputs.B), C=self._matrix(inputs.C)
        )

    def _matrix(self, matrix: Tensor) -> Tensor:
        """B or C, aligned to 16 bytes."""
        matrix = cast_given(matrix, self.dtype)
        return matrix if matrix.data_ptr() % 16 == 0 else matrix.clone()

    def run_with_plan(self, run: Callable[[LaunchPlan], _T], backward: bool) -> _T:
        return run(chosen_plan(self.sizes, self.options.zoh, backward, run, self.device))

    def blocks(self, plan: LaunchPlan) -> int:
        return -(-self.sizes.channels // plan.block)

    def programs(self, plan: LaunchPlan) -> int:
        return self.sizes.batch * self.sizes.routes // plan.walked * self.blocks(plan)

    def groups(self, plan: LaunchPlan) -> int:
        return -(-self.sizes.states // plan.group)

    def adds(self, plan: LaunchPlan) -> bool:
        """Whether a program adds to results that it has stored."""
        return plan.walked * self.groups(plan) > 1

    def arguments(self, plan: LaunchPlan) -> dict[str, Any]:
        """The arguments common to the forward and the backward kernel."""
        x, delta, A, B, C, D, delta_bias, *_, table = self.inputs
        _, routes, length, channels, states, *_ = self.sizes
        return {
            **strided("x", x), **strided("delta", delta), "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias,
            "table": table, "routes": routes, "length": length, "channels": channels, "walked": plan.walked,
            "STATES": states, "CHUNK": CHUNK, "SOFTPLUS": self.options.delta_softplus, "ZOH": self.options.zoh,
            "ADDS": self.adds(plan), "GROUP": plan.group, "STEPS": plan.steps, "BLOCK": plan.block, "num_warps": 1,
            **registers(plan.registers),
        }  # fmt: skip

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def empty_like(self, tensor: Tensor, exact: bool) -> Tensor:
        """Memory for y, dx or ddelta: in the tensor's dtype, or in the accumulation's if `exact`. Triton's interpreter
        truncates to bfloat16 where a GPU rounds, so there the result keeps the accumulation's type and torch rounds."""
        exact = exact or self.sizes.wide or (INTERPRETED and tensor.dtype == torch.bfloat16)
        dtype = self.dtype if exact else tensor.dtype
        return empty(tensor.shape, self.options.channel_first, dtype, self.device)

    def image(self, plan: LaunchPlan) -> Tensor:
        """Memory for the programs' y or dx: an image (B, L, D), or one for each route if programs share none."""
        if self.sizes.sum_routes and plan.walked < self.sizes.routes:
            return empty(self.sizes[:4], self.options.channel_first, self.dtype, self.device)
        return self.empty_like(self.inputs.x, exact=self.adds(plan))

    def summed(self, image: Tensor) -> Tensor:
        """y or dx in x's shape."""
        if image.dim() == self.inputs.x.dim():
            return image
        total = self.empty_like(self.inputs.x, exact=False)
        sum_over_routes(total, image)
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
    order = None if checkpoints is None else p.inputs.table
    return ScanResult(p.summed(y).to(inputs.x.dtype), last_state, checkpoints, order)


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
    dx, ddelta = p.image(plan), p.empty_like(delta, exact=p.groups(plan) > 1)
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
    return ScanGradients(p.summed(dx), ddelta, dA, dB, dC, dD, ddelta_bias, dinitial_state)
