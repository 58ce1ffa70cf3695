"""Causal convolutions and single steps of a selective scan: allocates results and launches the kernels."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vmddpm_kernels.backends.extension import cast, cast_given, empty, rounded
from vmddpm_kernels.backends.triton import conv
from vmddpm_kernels.backends.triton.launch import launch, strided
from vmddpm_kernels.backends.triton.state_update import update
from vmddpm_kernels.checks import check_memory
from vmddpm_kernels.step_inputs import ConvInputs, StateInputs

_STEPS, _CHANNELS = 8, 64   # tile of a convolution: four elements per thread; taps and slopes stay in registers
_ELEMENTS = 1024            # states per program of a single step


def causal_conv1d(inputs: ConvInputs, silu: bool) -> Tensor:
    x, parameters = inputs.x, _parameters(inputs)
    y = empty(tuple(x.shape), inputs.channel_first(), x.dtype, x.device)
    check_memory(inputs)
    launch(
        conv.conv_forward, _tiles(x, x.shape[1]), x.device, **_rows("x", x), **_rows("y", y), **parameters,
        **_options(inputs, silu),
    )  # fmt: skip
    return y


def causal_conv1d_backward(dy: Tensor, inputs: ConvInputs, silu: bool) -> list[Tensor | None]:
    x, parameters = inputs.x, _parameters(inputs)
    weight, bias, history = (parameters[name] for name in ("weight", "bias", "history"))
    batch, length, channels = x.shape
    dtype, width = weight.dtype, weight.shape[1]
    dx = empty(tuple(x.shape), inputs.channel_first(), x.dtype, x.device)
    dweight = torch.empty(batch, *weight.shape, dtype=dtype, device=x.device)
    dbias = None if bias is None else torch.empty(batch, channels, dtype=dtype, device=x.device)
    dhistory = None if history is None else torch.empty_like(history)
    check_memory((dy, *inputs))
    arguments = {**_rows("dy", dy), **_rows("x", x), **parameters, **_options(inputs, silu)}
    launch(
        conv.conv_input_gradient, _tiles(x, length + width - 1), x.device, **_rows("dx", dx), dhistory=dhistory,
        **arguments,
    )  # fmt: skip
    programs = batch * triton.cdiv(channels, _CHANNELS) * (width + 1)
    launch(conv.conv_weight_gradient, programs, x.device, dweight=dweight, dbias=dbias, **arguments)
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
    tensors = {
        **strided("state", state, "bhpn"), **strided("u", u, "bhp"), **strided("delta", delta, "bhp"),
        **strided("A", A, "hpn"), **strided("first", B, "bgn"), **strided("second", C, "bgn"),
        **strided("D", D, "hp"), **strided("z", z, "bhp"), **strided("bias", delta_bias, "hp"),
        **strided("y", of_heads, "bhp"),
    }  # fmt: skip
    launch(
        update, batch * heads * triton.cdiv(channels, block), state.device, **tensors, heads=heads, channels=channels,
        states=states, heads_of_group=heads // B.shape[1], SOFTPLUS=softplus, CHANNELS=block, STATES=padded,
        ACC=_accumulation(inputs.accumulation()),
    )  # fmt: skip
    return y


def _with_heads(inputs: StateInputs) -> Sequence[Tensor | None]:
    """The inputs, all with the axis of heads or groups."""
    if inputs.state.dim() == 4:
        return inputs
    axes = (1, 1, 1, 0, 1, 1, 0, 1, 0)
    return [None if t is None else t.unsqueeze(axis) for t, axis in zip(inputs, axes)]


def _rows(name: str, tensor: Tensor) -> dict[str, Any]:
    return strided(name, tensor, "bld")


def _parameters(inputs: ConvInputs) -> dict[str, Any]:
    dtype, (_, length, channels) = inputs.accumulation(), inputs.x.shape
    return {
        "history": cast(inputs.history, dtype),
        "weight": cast_given(inputs.weight, dtype),
        "bias": cast(inputs.bias, dtype),
        "length": length,
        "channels": channels,
    }


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
