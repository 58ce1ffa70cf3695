"""The C++ kernels of csrc/ for CPUs."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from vmddpm_kernels.backends import extension
from vmddpm_kernels.backends.cpu_steps import CpuSteps
from vmddpm_kernels.backends.extension import (
    ScanOutputs,
    accumulation,
    cast,
    contiguous,
    empty,
    empty_gradients,
    gradients_of,
    image_shape,
    int32,
    with_parameters_cast,
)
from vmddpm_kernels.backends.protocol import BackendStatus
from vmddpm_kernels.routes import RouteOrder
from vmddpm_kernels.scan_inputs import ScanInputs, ScanOptions, ScanResult, ScanSizes


@lru_cache
def _status(describe: Callable[[], str]) -> BackendStatus:
    """The status of a loaded extension, which does not change."""
    try:
        return BackendStatus(True, describe())
    except ValueError as error:
        return BackendStatus(False, str(error), "setting")


class CpuBackend(CpuSteps):
    devices = frozenset({"cpu"})

    def runs_on(self, device: str) -> bool:
        return device == "cpu"

    def status(self, device: torch.device | None = None) -> BackendStatus:
        native = extension.native
        return extension.missing() if native is None else _status(native.describe)

    def checkpoint_shape(self, sizes: ScanSizes) -> tuple[int, ...]:
        """(B, K, checkpoints, blocks, N, lanes), as in `scan_plan` of csrc/selective_scan/cpu.cpp."""
        batch, routes, length, channels, states, wide, _ = sizes
        lanes, chunk = extension.native.lanes(wide), extension.native.CHUNK
        known = type(length) is type(states) is int
        if known and length > 0 and states <= chunk:
            checkpoints = (length - 1) // chunk
        else:
            larger: Callable[[int, int], int] = max if known else torch.sym_max
            checkpoints = larger(length - 1, 0) // larger(states, chunk)
        return batch, routes, checkpoints, (channels + lanes - 1) // lanes, states, lanes

    def scan(
        self, inputs: ScanInputs, sizes: ScanSizes, options: ScanOptions, *, last_state: bool, checkpoint: bool
    ) -> ScanResult:
        dtype, x = accumulation(sizes), inputs.x
        table = inputs.table
        order = table if table is None else int32(table)
        y, narrow_y = _image(sizes, options.channel_first, x)
        batch, routes, _, channels, states, _, _ = sizes
        state = torch.empty(batch, routes, channels, states, dtype=dtype) if last_state else None
        checkpoints = torch.empty(self.checkpoint_shape(sizes), dtype=dtype) if checkpoint else None
        extension.native.scan_forward(
            with_parameters_cast(inputs, order, dtype), options, sizes,
            ScanOutputs(y, state, checkpoints, narrow_y), torch.get_num_threads(),
        )  # fmt: skip
        if not checkpoint:
            order = None
        elif order is not None and order is table:
            order = order.clone()
        return ScanResult(y if narrow_y is None else narrow_y, state, checkpoints, order)

    def scan_backward(
        self,
        dy: Tensor | None,
        dlast_state: Tensor | None,
        inputs: ScanInputs,
        sizes: ScanSizes,
        checkpoints: Tensor,
        options: ScanOptions,
        needed: Sequence[bool],
    ) -> list[Tensor | None]:
        table, dtype = inputs.table, accumulation(sizes)
        arguments = with_parameters_cast(inputs, None if table is None else int32(table), dtype)
        dx, narrow_dx = _image(sizes, options.channel_first, inputs.x)
        pieces = 1 if sizes.batch == 1 else extension.native.scan_plan(sizes).pieces
        ddelta = None  # without it, the kernel computes dx and dinitial_state only
        if any(needed[1:7]) or needed[8]:
            if inputs.dt_proj is None:
                ddelta = empty(sizes[:4], options.channel_first, inputs.delta.dtype, dx.device)
            else:  # the gradient of the factor, a sum over the channels
                ddelta = torch.empty(inputs.delta.shape, dtype=dtype)
        grads = empty_gradients(arguments, pieces, needed, dx, ddelta, narrow_dx)
        extension.native.scan_backward(
            arguments, options, sizes, dy, cast(dlast_state, dtype), contiguous(checkpoints), grads,
            torch.get_num_threads(),
        )  # fmt: skip
        return gradients_of(inputs, arguments, grads, partial=pieces != 1)

    def cross_scan(self, x: Tensor, order: RouteOrder, channel_first: bool) -> Tensor:
        batch, _, length, channels = x.shape
        out = empty((batch, order.route_count(), length, channels), channel_first, x.dtype, x.device)
        extension.native.cross_scan(x, *_as_native(order), out, torch.get_num_threads())
        return out

    def cross_merge(self, y: Tensor, order: RouteOrder, sum_routes: bool, channel_first: bool) -> Tensor:
        batch, routes, length, channels = y.shape
        out = empty((batch, 1 if sum_routes else routes, length, channels), channel_first, y.dtype, y.device)
        extension.native.cross_merge(out, *_as_native(order), y, torch.get_num_threads(), sum_routes)
        return out


def _as_native(order: RouteOrder) -> RouteOrder:
    return order if order.table is None else RouteOrder(int32(order.table))


def _image(sizes: ScanSizes, channel_first: bool, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The tensor in which kernels sum y or dx; and, if x's dtype is narrower, the tensor for the rounded sum."""
    shape = image_shape(sizes)
    image = empty(shape, channel_first, x.dtype, x.device)
    if sizes.sum_routes and x.dtype is not accumulation(sizes):
        return empty(shape, channel_first, accumulation(sizes), x.device), image
    return image, None
