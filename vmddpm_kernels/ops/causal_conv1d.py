"""The causal depthwise convolution as an operator: `torch.ops.vmddpm.causal_conv1d_forward` and
`causal_conv1d_backward`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vmddpm_kernels.backends import BACKENDS, by_name, reference, reference_steps, select
from vmddpm_kernels.backends.extension import empty
from vmddpm_kernels.checks import FLOATS, check_input
from vmddpm_kernels.interception import (
    Way,
    in_forward_mode,
    refuse_batched,
    transformed,
    way_in,
)
from vmddpm_kernels.library import define, differentiate, differentiate_once, note_change
from vmddpm_kernels.step_inputs import LEAST_TAPS, MOST_TAPS, ConvInputs

_INPUTS = len(ConvInputs._fields)


def convolve(inputs: ConvInputs, silu: bool, backend: str | None) -> Tensor:
    """y (batch, length, dim), differentiable."""
    chosen = _select(backend, inputs.x, inputs.weight)
    # PyTorch's own operators support compilers, transforms and forward mode.
    if chosen == reference.NAME or in_forward_mode() or (transformed() and not torch.compiler.is_compiling()):
        inputs.check()
        return reference_steps.causal_conv1d(inputs, silu)
    call = _WAYS.way_in(*inputs)
    if call is causal_conv1d_forward:
        inputs.check()  # for better error messages than the dispatcher's
    result: Tensor = call(*inputs, silu, chosen)
    return result


def convolve_in_place(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, backend: str | None
) -> Tensor | None:
    """y (batch, length, dim) for the steps after those in `state` (batch, state_len, dim), which is updated. Returns
    None and does nothing if autograd must record the call or something can intercept it."""
    if way_in((x, state, weight, bias)) is not Way.KERNEL:
        return None
    chosen = _select(backend, x, weight)
    y = BACKENDS[chosen].causal_conv1d_update(x, state, weight, bias, silu)
    if chosen != reference.NAME:
        note_change(state)
    return y


def _select(backend: str | None, x: Tensor, weight: Tensor) -> str:
    chosen = select(backend, x)
    if backend is None and not _has_kernels(weight):
        return reference.NAME
    _check_taps(weight, chosen)
    return chosen


def _has_kernels(weight: Tensor) -> bool:
    return weight.dim() != 2 or LEAST_TAPS <= weight.shape[1] <= MOST_TAPS


def _check_taps(weight: Tensor, backend: str) -> None:
    if backend == reference.NAME or _has_kernels(weight):
        return
    raise ValueError(
        f"weight (dim, width) must have {LEAST_TAPS} to {MOST_TAPS} taps with backend {backend!r}, got width = "
        f"{weight.shape[1]}; leave backend out, or pass backend='reference'"
    )


def _forward(*args: Any) -> Tensor:
    inputs, (silu, backend) = ConvInputs(*args[:_INPUTS]), args[_INPUTS:]
    _check(inputs, backend)
    return by_name(backend, inputs.x).causal_conv1d(inputs, silu)


def _forward_fake(*args: Any) -> Tensor:
    inputs = ConvInputs(*args[:_INPUTS])
    _check(inputs, args[-1])
    x = inputs.x
    return empty(tuple(x.shape), inputs.channel_first(), x.dtype, x.device)


def _run_backward(
    dy: Tensor, inputs: ConvInputs, silu: bool, backend: str, needed: Sequence[bool]
) -> list[Tensor | None]:
    """Check the arguments, as saved tensors can change without autograd's knowledge."""
    _check_backward(dy, inputs, backend)
    return by_name(backend, inputs.x).causal_conv1d_backward(dy, inputs, silu, needed)


def _check(inputs: ConvInputs, backend: str) -> None:
    inputs.check()
    _check_taps(inputs.weight, backend)


def _check_backward(dy: Tensor, inputs: ConvInputs, backend: str) -> None:
    _check(inputs, backend)
    check_input("dy", dy, inputs.x, inputs.x.device, "batch, length, dim", tuple(inputs.x.shape), FLOATS)


def _backward(dy: Tensor, *args: Any) -> list[Tensor]:
    silu, backend = args[_INPUTS:]
    grads = _run_backward(dy, ConvInputs(*args[:_INPUTS]), silu, backend, (True,) * _INPUTS)
    return [g for g in grads if g is not None]


def _backward_fake(dy: Tensor, *args: Any) -> list[Tensor]:
    inputs = ConvInputs(*args[:_INPUTS])
    _check_backward(dy, inputs, args[-1])
    return [_forward_fake(*args), *(t.new_empty(t.shape) for t in inputs[1:] if t is not None)]


_CONV = "Tensor x, Tensor weight, Tensor? bias, Tensor? initial_states, bool silu, str backend"
causal_conv1d_forward = define(f"causal_conv1d_forward({_CONV}) -> Tensor", _forward, _forward_fake)
# A gradient for each given tensor, in its dtype.
causal_conv1d_backward = define(
    f"causal_conv1d_backward(Tensor dy, {_CONV}) -> Tensor[]", _backward, _backward_fake
)


class CausalConv1d(torch.autograd.Function):
    """`causal_conv1d_forward` with its derivative: deterministic gradients, second derivatives raise. The arguments of
    `apply` are those of the operator."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.options = inputs[_INPUTS:]
        ctx.save_for_backward(*inputs[:_INPUTS])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        refuse_batched(dy)
        inputs, (silu, backend) = ConvInputs(*ctx.saved_tensors), ctx.options
        way = way_in((dy, *inputs))
        if way is Way.KERNEL:
            return *_run_backward(dy, inputs, silu, backend, ctx.needs_input_grad), None, None
        call = causal_conv1d_backward if way is Way.DISPATCHER else _Gradients.apply
        grads = iter(call(dy, *inputs, silu, backend))
        return *[t if t is None else next(grads) for t in inputs], None, None


_WAYS = differentiate(causal_conv1d_forward, CausalConv1d, _forward)
_Gradients = differentiate_once(
    causal_conv1d_backward,
    _backward,
    "the compiled causal_conv1d has no second derivative; pass backend='reference' to differentiate twice",
)
