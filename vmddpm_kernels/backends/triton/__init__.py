"""The operators as Triton kernels, for every GPU that Triton supports, and on the CPU under Triton's interpreter.

This module does not import Triton before an operator is first used."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from vmddpm_kernels.backends.low_rank import gradients_of_factors, with_step_sizes
from vmddpm_kernels.backends.protocol import BackendStatus
from vmddpm_kernels.backends.triton_steps import TritonSteps, interpreted
from vmddpm_kernels.routes import RouteOrder
from vmddpm_kernels.scan_inputs import ScanInputs, ScanOptions, ScanResult, ScanSizes

CHUNK = 32  # steps from one checkpoint to the next


class TritonBackend(TritonSteps):
    devices = frozenset({"cuda", "xpu"})  # as torch names them; AMD GPUs are "cuda" there

    def runs_on(self, device: str) -> bool:
        return device in self.devices or (device == "cpu" and interpreted())

    def status(self, device: torch.device | None = None) -> BackendStatus:
        if find_spec("triton") is None:
            return BackendStatus(False, "Triton is not installed; `pip install triton`", "not_installed")
        if interpreted():
            triton = sys.modules.get("triton")
            if triton is not None and isinstance(triton.language.sum, triton.JITFunction):
                late = "Triton was imported before TRITON_INTERPRET=1 was set; set it before the program starts"
                return BackendStatus(False, late, "setting")
            return BackendStatus(True, "Triton, interpreted on the CPU")
        index = None
        types = sorted(self.devices)
        if device is not None and device.type in self.devices:
            index, types = device.index, [device.type]
        for name in types:
            gpu = torch.get_device_module(name)
            try:
                if gpu.is_available():
                    return BackendStatus(True, f"Triton, {gpu.get_device_name(index)}")
            except (RuntimeError, AssertionError) as error:  # a driver error, or a forked process
                line = str(error).partition("\n")[0]
                return BackendStatus(False, f"the GPU cannot be queried: {line}", "gpu_error")
        return BackendStatus(
            False,
            "torch finds no GPU; set TRITON_INTERPRET=1 before the program starts to run it, slowly, on the CPU",
            "no_gpu",
        )

    def checkpoint_shape(self, sizes: ScanSizes) -> tuple[int, ...]:
        return sizes.batch, sizes.routes, (sizes.length + CHUNK - 1) // CHUNK, sizes.states, sizes.channels

    def scan(
        self, inputs: ScanInputs, sizes: ScanSizes, options: ScanOptions, *, last_state: bool, checkpoint: bool
    ) -> ScanResult:
        from vmddpm_kernels.backends.triton.selective_scan import scan

        return scan(with_step_sizes(inputs), sizes, options, self.checkpoint_shape(sizes) if checkpoint else None)

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
        from vmddpm_kernels.backends.triton.selective_scan import scan_backward

        grads = scan_backward(dy, dlast_state, with_step_sizes(inputs), sizes, checkpoints, options)
        return gradients_of_factors(inputs, grads)

    def cross_scan(self, x: Tensor, order: RouteOrder, channel_first: bool) -> Tensor:
        from vmddpm_kernels.backends.triton.cross_scan import cross_scan

        return cross_scan(x, order, channel_first)

    def cross_merge(self, y: Tensor, order: RouteOrder, sum_routes: bool, channel_first: bool) -> Tensor:
        from vmddpm_kernels.backends.triton.cross_scan import cross_merge

        return cross_merge(y, order, sum_routes, channel_first)
