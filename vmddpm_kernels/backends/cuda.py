"""The CUDA kernels of csrc/. Calls never synchronize with the GPU and get all memory from torch, so that CUDA graphs
can capture them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vmddpm_kernels.backends.cuda_runtime import Runtime, TorchRuntime, find_gpu, gpu_status
from vmddpm_kernels.backends.extension import (
    ScanOutputs,
    accumulation,
    cast,
    checked_table,
    contiguous,
    empty,
    empty_gradients,
    gradients_of,
    image_shape,
    int32,
    rounded,
    typed,
    with_parameters_cast,
)
from vmddpm_kernels.backends.low_rank import gradients_of_factors, with_step_sizes
from vmddpm_kernels.backends.protocol import BackendStatus
from vmddpm_kernels.backends.triton_steps import TritonSteps
from vmddpm_kernels.routes import RouteOrder, check_table_once
from vmddpm_kernels.scan_inputs import ScanInputs, ScanOptions, ScanResult, ScanSizes

if TYPE_CHECKING:
    from vmddpm_kernels._native import GpuScanPlan


class CudaBackend(TritonSteps):
    """The backend `cuda`. Triton runs causal convolutions and single steps, or PyTorch if Triton is not available."""

    def __init__(self, runtime: Runtime | None = None) -> None:
        self.runtime = runtime or TorchRuntime()
        self.devices = self.runtime.devices
        self._known: dict[int, BackendStatus] = {}  # by index of the GPU

    def runs_on(self, device: str) -> bool:
        return device in self.devices

    def status(self, device: torch.device | None = None) -> BackendStatus:
        """The status of a GPU, cached unless the error may be temporary."""
        if missing := self.runtime.missing():
            return missing
        number = device.index if device is not None and device.type in self.devices else None
        if number in self._known:
            return self._known[number]
        gpu = find_gpu(self.runtime, number)
        if isinstance(gpu, BackendStatus):
            return gpu
        if gpu.number not in self._known:
            status = gpu_status(self.runtime, gpu)
            if status.reason == "gpu_error":
                return status
            self._known[gpu.number] = status
        return self._known[gpu.number]

    def checkpoint_shape(self, sizes: ScanSizes) -> tuple[int, ...]:
        """(B, K, chunks, N, D), as in `cuda_scan_plan` of csrc/selective_scan/plan.cu."""
        chunk = self.runtime.kernels.CHUNK
        return sizes.batch, sizes.routes, (sizes.length + chunk - 1) // chunk, sizes.states, sizes.channels

    def scan(
        self, inputs: ScanInputs, sizes: ScanSizes, options: ScanOptions, *, last_state: bool, checkpoint: bool
    ) -> ScanResult:
        inputs = with_step_sizes(inputs)
        device, dtype = inputs.x.device, accumulation(sizes)
        order = checked_table(inputs.table, sizes.length, private=checkpoint)
        plan = self.runtime.kernels.scan_plan(sizes, options, self.runtime.limits(device), False)
        # With channel first, lanes read and write vectors of steps. Partial images are channel last.
        vectors = options.channel_first and not options.zoh and order is None and not plan.images and not sizes.wide
        arguments, vectors = _streamed(inputs, order, sizes, vectors)
        result = inputs.x.dtype if plan.images and not sizes.wide else arguments.x.dtype
        y = empty(image_shape(sizes), vectors, result, device)
        images = _partial_images(y, plan, dtype)
        state = torch.empty(
            sizes.batch, sizes.routes, sizes.channels, sizes.states, dtype=dtype, device=device
        )
        checkpoints = torch.empty(self.checkpoint_shape(sizes), dtype=dtype, device=device) if checkpoint else None
        with self.runtime.current(device):
            self.runtime.kernels.scan_forward(
                arguments, options, sizes, ScanOutputs(y, state, checkpoints), plan,
                *_workspaces(sizes, plan, dtype, device), images, *self.runtime.stream(device),
            )  # fmt: skip
        if options.channel_first != vectors:
            y = empty(y.shape, options.channel_first, inputs.x.dtype, device).copy_(y)
        return ScanResult(rounded(y, inputs.x.dtype), state, checkpoints, order if checkpoint else None)

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
        given, inputs = inputs, with_step_sizes(inputs)
        device, dtype = inputs.x.device, accumulation(sizes)
        arguments, dy = _of_one_type(inputs, checked_table(inputs.table, sizes.length, private=False), sizes, dy)
        plan = self.runtime.kernels.scan_plan(sizes, options, self.runtime.limits(device), True)
        # Partial images are summed in place, channel last.
        channel_first = options.channel_first and not plan.images
        result = inputs.x.dtype if plan.images and not sizes.wide else arguments.x.dtype
        dx = empty(image_shape(sizes), channel_first, result, device)
        images = _partial_images(dx, plan, dtype)
        ddelta_dtype = dtype if plan.passes > 1 else arguments.delta.dtype
        ddelta = empty(sizes[:4], options.channel_first, ddelta_dtype, device)
        pieces = sizes.batch * plan.segments
        of_matrices = (dtype, dtype) if sizes.wide else (inputs.B.dtype, inputs.C.dtype)
        grads = empty_gradients(arguments, pieces, (True,) * 9, dx, ddelta, matrix_dtypes=of_matrices)
        if sizes.channels == 0:  # no kernel runs
            for matrix in (grads.dB, grads.dC):
                assert matrix is not None
                matrix.zero_()
        matrices = None
        if plan.groups != 1 or of_matrices != (dtype, dtype):
            of_part = (2, plan.matrices, plan.part, sizes.routes, sizes.length, sizes.states)
            matrices = torch.empty(of_part, dtype=dtype, device=device)
        with self.runtime.current(device):
            self.runtime.kernels.scan_backward(
                arguments, options, sizes, dy, cast(dlast_state, dtype), contiguous(checkpoints), grads, plan,
                *_workspaces(sizes, plan, dtype, device), images, matrices, *self.runtime.stream(device),
            )  # fmt: skip
        del images, matrices
        if options.channel_first != channel_first:
            grads = grads._replace(dx=empty(dx.shape, True, inputs.x.dtype, device).copy_(dx))
        return gradients_of_factors(given, gradients_of(inputs, arguments, grads, partial=pieces != 1))

    def cross_scan(self, x: Tensor, order: RouteOrder, channel_first: bool) -> Tensor:
        batch, _, length, channels = x.shape
        order, inverse = _checked(order, length)
        out = empty((batch, order.route_count(), length, channels), channel_first, x.dtype, x.device)
        with self.runtime.current(x.device):
            self.runtime.kernels.cross_scan(
                x, *order, out, inverse, self.runtime.limits(x.device), *self.runtime.stream(x.device)
            )
        return out

    def cross_merge(self, y: Tensor, order: RouteOrder, sum_routes: bool, channel_first: bool) -> Tensor:
        batch, routes, length, channels = y.shape
        order, inverse = _checked(order, length)
        out = empty((batch, 1 if sum_routes else routes, length, channels), channel_first, y.dtype, y.device)
        with self.runtime.current(y.device):
            self.runtime.kernels.cross_merge(
                out, *order, y, sum_routes, inverse, self.runtime.limits(y.device), *self.runtime.stream(y.device)
            )
        return out


def _checked(order: RouteOrder, length: int) -> tuple[RouteOrder, Tensor | None]:
    """The order with a checked, contiguous int32 table, and memory for its inverse."""
    if order.table is None:
        return order, None
    check_table_once(order.table, length)
    table = int32(order.table)
    return order._replace(table=table), torch.empty_like(table)


_GROUP = 4  # steps that a lane of the forward scan reads at once: kGroup of csrc/common/gpu_stream.h


def _of_one_type(
    inputs: ScanInputs, order: Tensor | None, sizes: ScanSizes, dy: Tensor | None = None
) -> tuple[ScanInputs, Tensor | None]:
    """The inputs in the form that kernels read: x, delta and dy in one dtype, B and C in it or the accumulation's."""
    inputs = with_parameters_cast(inputs, order, accumulation(sizes))
    x, delta, _, B, C, *_ = inputs
    alike = x.dtype == delta.dtype == (x if dy is None else dy).dtype
    dtype = torch.float64 if sizes.wide else x.dtype if alike else torch.float32
    matrix = dtype if B.dtype == C.dtype == dtype else accumulation(sizes)
    inputs = inputs._replace(x=_typed(x, dtype), delta=_typed(delta, dtype), B=_typed(B, matrix), C=_typed(C, matrix))
    return inputs, None if dy is None else _typed(dy, dtype)


def _streamed(
    inputs: ScanInputs, order: Tensor | None, sizes: ScanSizes, vectors: bool
) -> tuple[ScanInputs, bool]:
    """The inputs in the form that the forward scan reads, in one dtype and contiguous along channels, or along steps if
    `vectors` is set and they allow it. Also returns whether they are contiguous along steps."""
    inputs, _ = _of_one_type(inputs, order, sizes)
    vectors = vectors and sizes.length % _GROUP == 0 and _in_vectors(inputs.x) and _in_vectors(inputs.delta)
    if vectors:
        return inputs, True
    return inputs._replace(x=_channel_last(inputs.x), delta=_channel_last(inputs.delta)), False


def _in_vectors(tensor: Tensor) -> bool:
    *outer, steps, channels = tensor.stride()
    aligned = tensor.data_ptr() % (_GROUP * tensor.element_size()) == 0
    return steps == 1 and aligned and all(stride % _GROUP == 0 for stride in (*outer, channels))


def _channel_last(tensor: Tensor) -> Tensor:
    """The tensor, copied to channel last if it is channel first: a warp would read a sector for each element of it."""
    *_, steps, channels = tensor.stride()
    return contiguous(tensor) if abs(channels) > max(abs(steps), 1) and tensor.shape[-1] > 1 else tensor


def _typed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return typed(tensor.detach(), dtype)


def _partial_images(of: Tensor, plan: "GpuScanPlan", dtype: torch.dtype) -> Tensor | None:
    """Partial images whose sum is y or dx, for the part of the batch that one launch processes."""
    if not plan.images:
        return None
    return torch.empty(plan.images, plan.part, *of.shape[1:], dtype=dtype, device=of.device)


def _workspaces(
    sizes: ScanSizes, plan: "GpuScanPlan", dtype: torch.dtype, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """The workspaces segment_state and segment_delta for sequences with several segments."""
    if plan.segments <= 1:
        return None, None
    pieces = (sizes.batch, sizes.routes, plan.segments)
    return (
        torch.empty(*pieces, sizes.states, sizes.channels, dtype=dtype, device=device),
        torch.empty(*pieces, sizes.channels, dtype=dtype, device=device),
    )
