"""The interface of a backend."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from vmddpm_kernels.routes import RouteOrder
from vmddpm_kernels.scan_inputs import ScanInputs, ScanOptions, ScanResult, ScanSizes
from vmddpm_kernels.step_inputs import ConvInputs, StateInputs

Reason = Literal[
    "not_installed",       # a package or the compiled extension is missing
    "built_without_cuda",
    "setting",             # an environment variable has an unusable value, or was set too late
    "no_gpu",
    "not_nvidia",          # a GPU of another vendor
    "capability",          # the compute capability of the GPU is too low
    "no_kernel_image",     # this build has no kernels for the GPU
    "driver_too_old",      # the driver does not support the CUDA version of this build
    "ptx_too_new",         # the driver cannot compile the PTX of this build for the GPU
    "gpu_error",           # any other error of the GPU or its driver, possibly temporary
]


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend is available in this process.

    Args:
        active: whether it is available.
        detail: for people: a description of the backend, or why it is not available and what to do about it.
        reason: for programs: why it is not available, one of `Reason`; None if it is available.
    """

    active: bool
    detail: str
    reason: Reason | None = None


class Backend(Protocol):
    """One implementation of all operators. Tensors are checked already (by `check` of their inputs), except for the
    values of tables; they are in pixel order, channel last, with any strides. With `channel_first`, results are (B, K,
    D, L) in memory."""

    @property
    def devices(self) -> frozenset[str]:
        """The device types for which this backend is chosen by default."""

    def runs_on(self, device: str) -> bool:
        """Whether it can run on this device type if selected by name."""

    def status(self, device: torch.device | None = None) -> BackendStatus:
        """Whether it is available on this device, by default the current one. Raises nothing."""

    def checkpoint_shape(self, sizes: ScanSizes) -> tuple[int, ...]:
        """The shape of the checkpoints for the backward; sizes may be symbolic."""

    def scan(
        self, inputs: ScanInputs, sizes: ScanSizes, options: ScanOptions, *, last_state: bool, checkpoint: bool
    ) -> ScanResult:
        """The forward. With `checkpoint` it also returns checkpoints for the backward. Without `last_state` it may omit
        the last state."""

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
        """The gradients of the first nine inputs in their shapes and dtypes, None for None. Gradients that are not
        `needed` may be omitted."""

    def cross_scan(self, x: Tensor, order: RouteOrder, channel_first: bool) -> Tensor:
        """x (B, K or 1, L, C) in pixel order -> (B, K, L, C) in the order of the routes; an exact copy."""

    def cross_merge(self, y: Tensor, order: RouteOrder, sum_routes: bool, channel_first: bool) -> Tensor:
        """y (B, K, L, C) in the order of the routes -> (B, 1, L, C) summed over them, or (B, K, L, C)."""

    def causal_conv1d(self, inputs: ConvInputs, silu: bool) -> Tensor:
        """y (B, L, D) in x's dtype; contiguous along steps if `inputs.channel_first()`, otherwise along channels."""

    def causal_conv1d_backward(
        self, dy: Tensor, inputs: ConvInputs, silu: bool, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """The gradients of the inputs in their shapes and dtypes, None for None. Gradients that are not `needed` may be
        omitted."""

    def causal_conv1d_update(
        self, x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
    ) -> Tensor:
        """y (B, L, D) for x (B, L, D), the steps after those in `state` (B, S, D), S at least W - 1. Appends x to the
        state in place."""

    def state_update(self, inputs: StateInputs, softplus: bool) -> Tensor:
        """y in u's shape and dtype; updates `inputs.state` in place."""
