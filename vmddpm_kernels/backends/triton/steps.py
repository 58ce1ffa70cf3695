"""Causal convolutions and single steps of a selective scan: tensors made, kernels launched."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vmddpm_kernels.backends.extension import cast, cast_given, empty, rounded
from vmddpm_kernels.backends.triton import conv
from vmddpm_kernels.backends.triton.launch import check_memory, launch
from vmddpm_kernels.backends.triton.state_update import update
from vmddpm_kernels.step_inputs import ConvInputs, StateInputs

_STEPS, _CHANNELS = 32, 64  # of a tile
_ELEMENTS = 1024            # of a program's states


def causal_conv1d(inputs: ConvInputs, silu: bool) -> Tensor:
    x, (weight, bias, history) = inputs.x, _cast(inputs)
    y = empty(tuple(x.shape), inputs.channel_first(), x.dtype, x.device)
    check_memory(inputs)
    launch(
        conv.conv_forward, _tiles(x, x.shape[1]), x.device, x, *x.stride(), y, *y.stride(), history, weight, bias,
        *x.shape[1:], **_options(inputs, silu),
    )  # fmt: skip
    return y


def causal_conv1d_backward(dy: Tensor, inputs: ConvInputs, silu: bool) -> list[Tensor | None]:
    x, (weight, bias, history) = inputs.x, _cast(inputs)
    batch, length, channels = x.shape
    dtype, width = weight.dtype, weight.shape[1]
    dx = empty(tuple(x.shape), inputs.channel_first(), x.dtype, x.device)
    dweight = torch.empty(batch, *weight.shape, dtype=dtype, device=x.device)
    dbias = None if bias is None else torch.empty(batch, channels, dtype=dtype, device=x.device)
    dhistory = None if history is None else torch.empty_like(history)
    check_memory((dy, *inputs))
    sources, parameters = (dy, *dy.stride(), x, *x.stride()), (history, weight, bias, length, channels)
    options = _options(inputs, silu)
    launch(
        conv.conv_input_gradient, _tiles(x, length + width - 1), x.device, *sources, dx, *dx.stride(), dhistory,
        *parameters, **options,
    )  # fmt: skip
    programs = batch * triton.cdiv(channels, _CHANNELS) * (width + 1)
    launch(conv.conv_weight_gradient, programs, x.device, *sources, dweight, dbias, *parameters, **options)
    grads = (dx, dweight.sum(0), None if dbias is None else dbias.sum(0), dhistory)
    return [g if g is None or t is None else rounded(g, t.dtype) for g, t in zip(grads, inputs)]


def state_update(inputs: StateInputs, softplus: bool) -> Tensor:
    check_memory(inputs)
    y = torch.empty(inputs.u.shape, dtype=inputs.u.dtype, device=inputs.u.device)
    state, u, delta, A, B, C, D, z, delta_bias = _with_heads(inputs)
    of_heads = y if inputs.state.dim() == 4 else y.unsqueeze(1)
    assert state is not None
    assert B is not None
    batch, heads, channels, states = state.shape
    padded = triton.next_power_of_2(states)
    block = max(1, _ELEMENTS // padded)
    arguments = [
        argument
        for tensor, axes in zip((state, u, delta, A, B, C, D, z, delta_bias), (4, 3, 3, 3, 3, 3, 2, 3, 2))
        for argument in ((None, *[0] * axes) if tensor is None else (tensor, *tensor.stride()))
    ]
    launch(
        update, batch * heads * triton.cdiv(channels, block), state.device, *arguments, of_heads, *of_heads.stride(),
        heads, channels, states, heads // B.shape[1], SOFTPLUS=softplus, CHANNELS=block, STATES=padded,
        ACC=_accumulation(inputs.accumulation()),
    )  # fmt: skip
    return y


def _with_heads(inputs: StateInputs) -> Sequence[Tensor | None]:
    """The inputs with the axis of the heads, and that of the groups, in all of them."""
    if inputs.state.dim() == 4:
        return inputs
    axes = (1, 1, 1, 0, 1, 1, 0, 1, 0)
    return [None if t is None else t.unsqueeze(axis) for t, axis in zip(inputs, axes)]


def _cast(inputs: ConvInputs) -> tuple[Tensor, Tensor | None, Tensor | None]:
    dtype = inputs.accumulation()
    return cast_given(inputs.weight, dtype), cast(inputs.bias, dtype), cast(inputs.history, dtype)


def _tiles(x: Tensor, steps: int) -> int:
    return int(x.shape[0] * triton.cdiv(steps, _STEPS) * triton.cdiv(x.shape[2], _CHANNELS))


def _options(inputs: ConvInputs, silu: bool) -> dict[str, Any]:
    return {
        "SILU": silu,
        "W": inputs.weight.shape[1],
        "STEPS": _STEPS,
        "CHANNELS": _CHANNELS,
        "ACC": _accumulation(inputs.accumulation()),
    }


def _accumulation(dtype: torch.dtype) -> Any:
    return tl.float64 if dtype == torch.float64 else tl.float32
