"""Causal convolutions and single steps of a selective scan by the C++ kernels of csrc/."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vmddpm_kernels.backends import extension
from vmddpm_kernels.backends.extension import cast, cast_given, contiguous, empty, rounded, typed
from vmddpm_kernels.step_inputs import ConvInputs, StateInputs


class CpuSteps:
    def causal_conv1d(self, inputs: ConvInputs, silu: bool) -> Tensor:
        x, columns, dtype = inputs.x, inputs.channel_first(), inputs.accumulation()
        arguments = _readable(inputs, dtype)
        y = empty(tuple(x.shape), columns, arguments.x.dtype, x.device)
        extension.native.conv_forward(
            *arguments, y, dtype is torch.float64, silu, columns, torch.get_num_threads()
        )
        return rounded(y, x.dtype)

    def causal_conv1d_backward(
        self, dy: Tensor, inputs: ConvInputs, silu: bool, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        x, weight, bias, history = inputs
        columns, dtype = inputs.channel_first(), inputs.accumulation()
        arguments = _readable(inputs, dtype)
        batch, _, channels = x.shape
        dx = empty(tuple(x.shape), columns, arguments.x.dtype, x.device)
        dweight = torch.empty(batch, *weight.shape, dtype=dtype)
        dbias = None if bias is None else torch.empty(batch, channels, dtype=dtype)
        dhistory = None if history is None else torch.empty(history.shape, dtype=dtype)
        extension.native.conv_backward(
            _side_by_side(typed(dy, arguments.x.dtype), columns), *arguments, dx, dweight, dbias, dhistory,
            dtype is torch.float64, silu, columns, torch.get_num_threads(),
        )  # fmt: skip
        return [
            rounded(dx, x.dtype),
            rounded(_summed(dweight), weight.dtype),
            None if bias is None or dbias is None else rounded(_summed(dbias), bias.dtype),
            None if history is None or dhistory is None else rounded(dhistory, history.dtype),
        ]

    def causal_conv1d_update(
        self, x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
    ) -> Tensor:
        dtype = ConvInputs(x, weight).accumulation()
        y = torch.empty(x.shape, dtype=x.dtype)
        extension.native.conv_update(
            x, state, cast_given(weight, dtype), cast(bias, dtype), y, dtype is torch.float64, silu
        )
        return y

    def state_update(self, inputs: StateInputs, softplus: bool) -> Tensor:
        y = torch.empty(inputs.u.shape, dtype=inputs.u.dtype)
        extension.native.state_update(
            *inputs, y, inputs.accumulation() is torch.float64, softplus, torch.get_num_threads()
        )
        return y


def _readable(inputs: ConvInputs, dtype: torch.dtype) -> ConvInputs:
    """The inputs in the form that kernels read: x contiguous along steps or channels, the others contiguous in the
    accumulation's dtype."""
    x, weight, bias, history = inputs
    if dtype is torch.float64:
        x = typed(x, dtype)
    return ConvInputs(
        _side_by_side(x, inputs.channel_first()), cast_given(weight, dtype), cast(bias, dtype), cast(history, dtype)
    )


def _side_by_side(t: Tensor, columns: bool) -> Tensor:
    """The tensor (B, L, D), contiguous along steps if `columns`, else along channels."""
    if t.stride(1 if columns else 2) == 1:
        return t
    return contiguous(t.mT).mT if columns else contiguous(t)


def _summed(parts: Tensor) -> Tensor:
    """The sum over the batch, in order."""
    return parts[0] if parts.shape[0] == 1 else parts.sum(0)
