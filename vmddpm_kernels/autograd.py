"""What the operators' autograd Functions share."""

from typing import Any

import torch
from torch import Tensor


class _NoSecondDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operator: str, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.operator = operator
        return tensors

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            f"the compiled {ctx.operator} has no second derivative; pass backend='reference' to differentiate twice"
        )


def forbid_second_derivative(grads: tuple[Tensor | None, ...], operator: str) -> tuple[Tensor | None, ...]:
    """Under create_graph=True, gradients that raise when they are differentiated again, instead of counting as
    constants and being silently wrong."""
    if not torch.is_grad_enabled():
        return grads
    marked = [g.requires_grad_() if g is not None else None for g in grads]
    return _NoSecondDerivative.apply(operator, *marked)
