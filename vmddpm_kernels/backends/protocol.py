"""What a backend is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from vmddpm_kernels.routes import RouteOrder
from vmddpm_kernels.scan_inputs import ScanInputs, ScanOptions, ScanResult, ScanSizes
from vmddpm_kernels.step_inputs import ConvInputs, StateInputs

Reason = Literal[
    "not_installed",       # a package is missing, or the compiled extension
    "built_without_cuda",
    "setting",             # an environment variable asks for what is not there, or came too late
    "no_gpu",
    "not_nvidia",          # a GPU of another make
    "capability",          # a GPU older than the kernels allow
    "no_kernel_image",     # a GPU that this build has no kernels for
    "driver_too_old",      # for the CUDA of this build
    "ptx_too_new",         # for the driver, which would have to compile the kernels for this GPU
    "gpu_error",           # anything else that the GPU or its driver says; it may pass
]


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can run in this process, and what it is, or why it cannot and what to do about it.

    Args:
        active: whether it can.
        detail: a sentence for people.
        reason: for programs, why it cannot: one of the words of `Reason`; None where it can.
    """

    active: bool
    detail: str
    reason: Reason | None = None


class Backend(Protocol):
    """One implementation of all operators. Tensors come checked (`check` of their inputs) but for the values of
    tables, and are pixel order, channel last, any strides; `sizes` are theirs. A result with `channel_first` lies in
    memory as (B, K, D, L)."""

    @property
    def devices(self) -> frozenset[str]:
        """The types of devices for which it is chosen."""

    def runs_on(self, device: str) -> bool:
        """Whether it runs on a type of device when asked for by name."""

    def status(self, device: torch.device | None = None) -> BackendStatus:
        """Whether it can run on this device, of several GPUs; by default on the current one. Raises nothing."""

    def checkpoint_shape(self, sizes: ScanSizes) -> tuple[int, ...]:
        """The shape of what the forward keeps for the backward; sizes may be symbols."""

    def scan(
        self, inputs: ScanInputs, sizes: ScanSizes, options: ScanOptions, *, last_state: bool, checkpoint: bool
    ) -> ScanResult:
        """The forward; with `checkpoint` it also returns what the backward needs. Without `last_state` it may leave
        that out."""

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
        """The gradients of the first eight inputs in their shapes and dtypes, None for None. Those that are not
        `needed` may be left out."""

    def cross_scan(self, x: Tensor, order: RouteOrder, channel_first: bool) -> Tensor:
        """x (B, K or 1, L, C) in pixel order -> (B, K, L, C) in the order of the routes; an exact copy."""

    def cross_merge(self, y: Tensor, order: RouteOrder, sum_routes: bool, channel_first: bool) -> Tensor:
        """y (B, K, L, C) in the order of the routes -> (B, 1, L, C) summed over them, or (B, K, L, C)."""

    def causal_conv1d(self, inputs: ConvInputs, silu: bool) -> Tensor:
        """y (B, L, D) in x's dtype; steps lie side by side in it if `inputs.channel_first()`, otherwise channels do."""

    def causal_conv1d_backward(
        self, dy: Tensor, inputs: ConvInputs, silu: bool, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """The gradients of the inputs in their shapes and dtypes, None for None. Those that are not `needed` may be
        left out."""

    def causal_conv1d_update(
        self, x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
    ) -> Tensor:
        """y (B, L, D) of x (B, L, D) after the steps that `state` (B, S, D) ends with, S at least W - 1; they and x
        move on into it, in place."""

    def state_update(self, inputs: StateInputs, softplus: bool) -> Tensor:
        """y in u's shape and dtype; `inputs.state` moves on, in place."""
