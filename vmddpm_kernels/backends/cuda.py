"""The CUDA kernels of csrc/. Nothing here waits for the GPU, and all memory comes from torch, so that every call can be
captured in a CUDA graph."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from vmddpm_kernels.backends import extension
from vmddpm_kernels.backends.extension import (
    ScanOutputs,
    accumulation,
    cast,
    empty,
    empty_gradients,
    gradients_of,
    image_shape,
    int32,
    rounded,
    with_parameters_cast,
)
from vmddpm_kernels.backends.protocol import BackendStatus
from vmddpm_kernels.backends.triton import TritonSteps
from vmddpm_kernels.routes import RouteOrder, check_table_once, private_copy
from vmddpm_kernels.scan_inputs import ScanInputs, ScanOptions, ScanResult, ScanSizes

if TYPE_CHECKING:
    from vmddpm_kernels._native import CudaKernels, GpuScanPlan


class Runtime(Protocol):
    """What the backend asks of the machine; the tests give it one of an emulated GPU."""

    devices: frozenset[str]

    @property
    def kernels(self) -> "CudaKernels": ...

    def status(self) -> BackendStatus: ...

    def limits(self, device: torch.device) -> tuple[int, int]:
        """Multiprocessors, and bytes of shared memory a block may have."""

    def stream(self, device: torch.device) -> tuple[int, int]:
        """The GPU's number, and the stream torch works on there."""

    def current(self, device: torch.device) -> AbstractContextManager[Any]:
        """Within it the kernels may make `device` the current one: torch puts its own back afterwards."""


class TorchRuntime:
    devices = frozenset({"cuda"})

    @property
    def kernels(self) -> "CudaKernels":
        return extension.native.cuda

    def status(self) -> BackendStatus:
        if extension.native is None:
            return BackendStatus(False, extension.problem)
        if not hasattr(extension.native, "cuda"):
            return BackendStatus(
                False, "built without CUDA; put nvcc (12 or newer) on PATH and run `VMDDPM_CUDA=1 pip install .`"
            )
        built = f"CUDA C++ for {self.kernels.architectures}"
        if not torch.cuda.is_available():
            return BackendStatus(
                False, f"{built}, but torch finds no GPU; `python -c 'import torch; torch.cuda.init()'` says why"
            )
        return BackendStatus(True, f"{built}, {torch.cuda.get_device_name()}")

    def limits(self, device: torch.device) -> tuple[int, int]:
        return _limits(device)

    def stream(self, device: torch.device) -> tuple[int, int]:
        return device.index, torch.cuda.current_stream(device).cuda_stream

    def current(self, device: torch.device) -> AbstractContextManager[Any]:
        return torch.cuda.device(device)


# Bytes of shared memory a block may have, by compute capability (CUDA C++ Programming Guide, technical specifications),
# for a torch that does not tell.
_SHARED_BYTES = {(8, 0): 163 << 10, (8, 7): 163 << 10, (9, 0): 227 << 10, (10, 0): 227 << 10, (10, 3): 227 << 10}
_LEAST_SHARED_BYTES = 99 << 10  # from compute capability 8.0 on


@lru_cache(maxsize=64)
def _limits(device: torch.device) -> tuple[int, int]:
    properties = torch.cuda.get_device_properties(device)
    by_capability = _SHARED_BYTES.get((properties.major, properties.minor), _LEAST_SHARED_BYTES)
    return properties.multi_processor_count, getattr(properties, "shared_memory_per_block_optin", by_capability)


class CudaBackend(TritonSteps):
    """Causal convolutions and single steps are Triton's, or plain PyTorch's where Triton does not run."""

    def __init__(self, runtime: Runtime | None = None) -> None:
        self.runtime = runtime or TorchRuntime()
        self.devices = self.runtime.devices

    def runs_on(self, device: str) -> bool:
        return device in self.devices

    def status(self) -> BackendStatus:
        return self.runtime.status()

    def checkpoint_shape(self, sizes: ScanSizes) -> tuple[int, ...]:
        """(B, K, chunks, N, D), as `cuda_scan_plan` of csrc/selective_scan/plan.cu has it."""
        chunk = self.runtime.kernels.CHUNK
        return sizes.batch, sizes.routes, (sizes.length + chunk - 1) // chunk, sizes.states, sizes.channels

    def scan(
        self, inputs: ScanInputs, sizes: ScanSizes, options: ScanOptions, *, last_state: bool, checkpoint: bool
    ) -> ScanResult:
        x, device, dtype = inputs.x, inputs.x.device, accumulation(sizes)
        order = _order(inputs.table, sizes, private=checkpoint)
        plan = self.runtime.kernels.scan_plan(sizes, options, self.runtime.limits(device), False)
        y = empty(image_shape(sizes), options.channel_first, _image_dtype(sizes, plan, x.dtype), device)
        state = torch.empty(
            sizes.batch, sizes.routes, sizes.channels, sizes.states, dtype=dtype, device=device
        )
        checkpoints = torch.empty(self.checkpoint_shape(sizes), dtype=dtype, device=device) if checkpoint else None
        with self.runtime.current(device):
            self.runtime.kernels.scan_forward(
                _fetchable(inputs, order, sizes), options, sizes, ScanOutputs(y, state, checkpoints), plan,
                *_workspaces(sizes, plan, dtype, device), *self.runtime.stream(device),
            )  # fmt: skip
        return ScanResult(rounded(y, x.dtype), state, checkpoints, order if checkpoint else None)

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
        x, delta, device = inputs.x, inputs.delta, inputs.x.device
        dtype = accumulation(sizes)
        arguments = _fetchable(inputs, _order(inputs.table, sizes, private=False), sizes)
        plan = self.runtime.kernels.scan_plan(sizes, options, self.runtime.limits(device), True)
        dx = empty(image_shape(sizes), options.channel_first, _image_dtype(sizes, plan, x.dtype), device)
        ddelta = empty(sizes[:4], options.channel_first, _result_dtype(sizes, plan, delta.dtype), device)
        grads = empty_gradients(arguments, sizes, sizes.batch * plan.segments, plan.groups, (True,) * 8, dx, ddelta)
        if dy is not None and sizes.wide:
            dy = dy.double()
        with self.runtime.current(device):
            self.runtime.kernels.scan_backward(
                arguments, options, sizes, dy, cast(dlast_state, dtype), checkpoints.contiguous(), grads, plan,
                *_workspaces(sizes, plan, dtype, device), *self.runtime.stream(device),
            )  # fmt: skip
        return gradients_of(inputs, arguments, grads, partial=sizes.batch * plan.segments != 1 or plan.groups != 1)

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
    """The order with its table checked, contiguous and int32, and memory for the table's inverse."""
    if order.table is None:
        return order, None
    check_table_once(order.table, length)
    table = int32(order.table)
    return order._replace(table=table), torch.empty_like(table)


def _order(table: Tensor | None, sizes: ScanSizes, *, private: bool) -> Tensor | None:
    """The table with its values checked, contiguous and int32; `private`, a copy that nobody else can change."""
    if table is None:
        return None
    check_table_once(table, sizes.length)
    if table.dtype == torch.int32:
        return private_copy(table) if private else table.contiguous()
    return private_copy(table.to(torch.int32))


def _fetchable(inputs: ScanInputs, order: Tensor | None, sizes: ScanSizes) -> ScanInputs:
    """The inputs as the kernels fetch them best.

    In float64 every input is float64. B and C are small beside x: in half precision, where their rows are no whole
    16 bytes, float32 copies of them can be fetched ahead and they cannot."""
    inputs = with_parameters_cast(inputs, order, accumulation(sizes))
    x, delta, _, B, C, *_ = inputs
    if sizes.wide:
        return inputs._replace(x=_double(x), delta=_double(delta), B=_double(B), C=_double(C))
    return inputs._replace(**{name: t.detach().float() for name, t in (("B", B), ("C", C)) if not _fetched_whole(t)})


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double()


def _fetched_whole(matrix: Tensor) -> bool:
    rows = matrix.stride(3) == 1 and matrix.shape[3] >= 4
    sizes = (matrix.element_size() * s for s in (matrix.stride(0), matrix.stride(1), matrix.stride(2), matrix.shape[3]))
    return matrix.element_size() > 2 or (rows and matrix.data_ptr() % 16 == 0 and all(size % 16 == 0 for size in sizes))


def _workspaces(
    sizes: ScanSizes, plan: "GpuScanPlan", dtype: torch.dtype, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """segment_state and segment_delta, for sequences that are cut into segments."""
    if plan.segments <= 1:
        return None, None
    pieces = (sizes.batch, sizes.routes, plan.segments)
    return (
        torch.empty(*pieces, sizes.states, sizes.channels, dtype=dtype, device=device),
        torch.empty(*pieces, sizes.channels, dtype=dtype, device=device),
    )


def _image_dtype(sizes: ScanSizes, plan: "GpuScanPlan", dtype: torch.dtype) -> torch.dtype:
    """y and dx are written in `dtype` unless several launches or routes add up to them: then in the type of the
    accumulation."""
    return accumulation(sizes) if sizes.sum_routes and sizes.routes > 1 else _result_dtype(sizes, plan, dtype)


def _result_dtype(sizes: ScanSizes, plan: "GpuScanPlan", dtype: torch.dtype) -> torch.dtype:
    return accumulation(sizes) if plan.passes > 1 or sizes.wide else dtype
