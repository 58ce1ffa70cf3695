"""The selective scan through Triton: allocates results and launches the kernels."""

from dataclasses import dataclass
from typing import Any

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


def _prepared(inputs: ScanInputs, sizes: ScanSizes, *, private_table: bool) -> ScanInputs:
    """The inputs in the kernels' format: parameters, B and C contiguous in the accumulation's type. x and delta, which
    are much larger, are read in place."""
    check_memory(inputs)
    dtype = accumulation(sizes)
    table = checked_table(inputs.table, sizes.length, private=private_table)
    matrices = (cast_given(matrix, dtype) for matrix in (inputs.B, inputs.C))
    B, C = (matrix if matrix.data_ptr() % 16 == 0 else matrix.clone() for matrix in matrices)  # read in vectors
    inputs = with_parameters_cast(inputs, table, dtype)
    return inputs._replace(x=inputs.x.detach(), delta=inputs.delta.detach(), B=B, C=C)


@dataclass
class _Launch:
    """A scan of prepared inputs by a plan."""

    inputs: ScanInputs
    sizes: ScanSizes
    options: ScanOptions
    plan: LaunchPlan

    def __post_init__(self) -> None:
        self.dtype, self.device = accumulation(self.sizes), self.inputs.x.device
        self.blocks = -(-self.sizes.channels // self.plan.block)
        self.programs = self.sizes.batch * self.sizes.routes // self.plan.walked * self.blocks
        self.groups = -(-self.sizes.states // self.plan.group)
        self.adds = self.plan.walked * self.groups > 1  # to results that a program has stored

    def arguments(self) -> dict[str, Any]:
        """The arguments common to the forward and the backward kernel."""
        x, delta, A, B, C, D, delta_bias, *_, table = self.inputs
        _, routes, length, channels, states, *_ = self.sizes
        plan = self.plan
        return {
            **strided("x", x), **strided("delta", delta), "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias,
            "table": table, "routes": routes, "length": length, "channels": channels, "walked": plan.walked,
            "STATES": states, "CHUNK": CHUNK, "SOFTPLUS": self.options.delta_softplus, "ZOH": self.options.zoh,
            "ADDS": self.adds, "GROUP": plan.group, "STEPS": plan.steps, "BLOCK": plan.block, "num_warps": 1,
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

    def image(self) -> Tensor:
        """Memory for the programs' y or dx: (B, K, L, D) instead of x's (B, L, D) if routes are summed afterwards."""
        if self.sizes.sum_routes and self.plan.walked < self.sizes.routes:
            return empty(self.sizes[:4], self.options.channel_first, self.dtype, self.device)
        return self.empty_like(self.inputs.x, exact=self.adds)

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
    prepared = _prepared(inputs, sizes, private_table=checkpoint_shape is not None)

    def run(plan: LaunchPlan) -> ScanResult:
        p = _Launch(prepared, sizes, options, plan)
        y = p.image()
        last_state = p.empty(sizes.batch, sizes.routes, sizes.channels, sizes.states)
        checkpoints = None if checkpoint_shape is None else p.empty(*checkpoint_shape)
        launch(
            forward_kernel, p.programs, p.device, **p.arguments(), **strided("y", y),
            initial_state=prepared.initial_state, last_state=last_state, checkpoints=checkpoints,
        )  # fmt: skip
        order = None if checkpoints is None else prepared.table
        return ScanResult(p.summed(y).to(inputs.x.dtype), last_state, checkpoints, order)

    return run(chosen_plan(sizes, options.zoh, False, run, inputs.x.device))


def scan_backward(
    dy: Tensor | None, dlast_state: Tensor | None, inputs: ScanInputs, sizes: ScanSizes, checkpoints: Tensor,
    options: ScanOptions,
) -> list[Tensor | None]:  # fmt: skip
    """The gradients of the first nine inputs in their shapes and dtypes, with None for None."""
    check_memory((dy, dlast_state, checkpoints))
    prepared = _prepared(inputs, sizes, private_table=False)
    dlast_state, checkpoints = cast(dlast_state, accumulation(sizes)), checkpoints.contiguous()
    batch, routes, length, channels, states, *_ = sizes

    def run(plan: LaunchPlan) -> ScanGradients:
        """The kernel's gradients, partly still to be summed, in the accumulation's type where sums need it."""
        p = _Launch(prepared, sizes, options, plan)
        dx, ddelta = p.image(), p.empty_like(prepared.delta, exact=p.groups > 1)
        dA = p.empty(batch, routes, channels, states)
        dinitial_state = None if prepared.initial_state is None else torch.empty_like(dA)
        dB, dC = (p.empty(p.blocks, batch, routes, length, states) for _ in range(2))
        parameters = (prepared.D, prepared.delta_bias)
        dD, ddelta_bias = (None if t is None else p.empty(batch, routes, channels) for t in parameters)
        scratch = p.empty(p.programs, -(-min(CHUNK, length) // plan.steps), plan.group, plan.block)
        launch(
            backward_kernel, p.programs, p.device, **p.arguments(), checkpoints=checkpoints, scratch=scratch,
            **strided("dy", dy), dlast_state=dlast_state, **strided("dx", dx), **strided("ddelta", ddelta),
            dA=dA, dB=dB, dC=dC, dD=dD, ddelta_bias=ddelta_bias, dinitial_state=dinitial_state, batches=batch,
        )  # fmt: skip
        return ScanGradients(p.summed(dx), ddelta, dA, dB, dC, dD, ddelta_bias, dinitial_state)

    grads = run(chosen_plan(sizes, options.zoh, True, run, inputs.x.device))
    return gradients_of(inputs, prepared, grads, partial=True)
