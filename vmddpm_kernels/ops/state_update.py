"""One step of the selective scan as an operator, `torch.ops.vmddpm.state_update`: it returns the next state. Its
derivative is plain PyTorch on all backends, because a step has no loop for a kernel to speed up."""

from typing import Any

import torch
from torch import Tensor

from vmddpm_kernels.backends import BACKENDS, by_name, reference, reference_steps, select
from vmddpm_kernels.interception import (
    Way,
    in_forward_mode,
    refuse_batched,
    transformed,
    way_in,
)
from vmddpm_kernels.library import define, differentiate, note_change
from vmddpm_kernels.step_inputs import StateInputs

_INPUTS = len(StateInputs._fields)


def step(inputs: StateInputs, softplus: bool, backend: str | None) -> Tensor:
    """y in u's shape, differentiable; updates `inputs.state` in place. The inputs are checked already."""
    state = inputs.state
    chosen = select(backend, state)
    if way_in(inputs) is Way.KERNEL:
        y = BACKENDS[chosen].state_update(inputs, softplus)
        if chosen != reference.NAME:
            note_change(state)
        return y
    before = inputs._replace(state=state.clone())  # the backward needs the previous state
    # PyTorch's own operators support compilers, transforms and forward mode.
    if chosen == reference.NAME or in_forward_mode() or (transformed() and not torch.compiler.is_compiling()):
        y, after = reference_steps.state_update(before, softplus)
    else:
        y, after = _WAYS.way_in(*before)(*before, softplus, chosen)
    state.copy_(after)
    return y


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    inputs, (softplus, backend) = StateInputs(*args[:_INPUTS]), args[_INPUTS:]
    inputs.check()
    after = inputs.state.clone(memory_format=torch.contiguous_format)
    return by_name(backend, inputs.state).state_update(inputs._replace(state=after), softplus), after


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor]:
    inputs = StateInputs(*args[:_INPUTS])
    inputs.check()
    return inputs.u.new_empty(inputs.u.shape), inputs.state.new_empty(inputs.state.shape)


state_update = define(
    "state_update(Tensor state, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
    "Tensor? delta_bias, bool delta_softplus, str backend) -> (Tensor y, Tensor next_state)",
    _forward,
    _forward_fake,
)


class StateUpdate(torch.autograd.Function):
    """`state_update` with its derivative. The arguments and results of `apply` are those of the operator."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.softplus = inputs[_INPUTS]
        ctx.save_for_backward(*inputs[:_INPUTS])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dstate: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_batched(dy, dstate)
        inputs = StateInputs(*ctx.saved_tensors)
        return *reference_steps.state_update_gradients(inputs, ctx.softplus, dy, dstate), None, None


_WAYS = differentiate(state_update, StateUpdate, _forward)
