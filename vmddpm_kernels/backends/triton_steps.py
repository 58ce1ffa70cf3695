"""Causal convolutions and single steps of a selective scan as Triton kernels. This module does not import Triton before
an operator is first used."""

import os
from collections.abc import Sequence
from importlib.util import find_spec

from torch import Tensor

from vmddpm_kernels.backends.reference_steps import ReferenceSteps
from vmddpm_kernels.step_inputs import ConvInputs, StateInputs


class TritonSteps(ReferenceSteps):
    """These operators; in plain PyTorch without Triton, or on the CPU without its interpreter."""

    def causal_conv1d(self, inputs: ConvInputs, silu: bool) -> Tensor:
        if not _runs_on(inputs.x):
            return super().causal_conv1d(inputs, silu)
        from vmddpm_kernels.backends.triton.steps import causal_conv1d

        return causal_conv1d(inputs, silu)

    def causal_conv1d_backward(
        self, dy: Tensor, inputs: ConvInputs, silu: bool, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        if not _runs_on(inputs.x):
            return super().causal_conv1d_backward(dy, inputs, silu, needed)
        from vmddpm_kernels.backends.triton.steps import causal_conv1d_backward

        return causal_conv1d_backward(dy, inputs, silu)

    def state_update(self, inputs: StateInputs, softplus: bool) -> Tensor:
        if not _runs_on(inputs.state):
            return super().state_update(inputs, softplus)
        from vmddpm_kernels.backends.triton.steps import state_update

        return state_update(inputs, softplus)


def _runs_on(tensor: Tensor) -> bool:
    return find_spec("triton") is not None and (not tensor.is_cpu or interpreted())


def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
