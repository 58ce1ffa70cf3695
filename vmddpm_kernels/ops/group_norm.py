"""Group normalisation with SiLU as an operator: `torch.ops.vmddpm.group_norm_silu` and `group_norm_silu_backward`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vmddpm_kernels.backends import select
from vmddpm_kernels.backends.cpu_norms import (
    accumulation,
    group_norm_silu,
    group_norm_silu_backward,
    has_pixels,
)
from vmddpm_kernels.checks import FLOATS, check_float, check_input, check_shape
from vmddpm_kernels.interception import (
    Way,
    in_forward_mode,
    refuse_batched,
    transformed,
    way_in,
)
from vmddpm_kernels.library import define, differentiate, differentiate_once

_TENSORS = 3  # x, weight and bias


def check(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None) -> None:
    """Raise TypeError or ValueError, naming the argument, if one is invalid."""
    check_float("x", x)
    if x.dim() < 2:
        raise ValueError(f"x must have shape (B, C, ...), got {tuple(x.shape)}")
    if isinstance(groups, bool) or not isinstance(groups, (int, torch.SymInt)) or groups < 1 or x.shape[1] % groups:
        raise ValueError(f"groups must be a divisor of x's {x.shape[1]} channels, got {groups!r}")
    for name, t in (("weight", weight), ("bias", bias)):
        if t is not None:
            check_float(name, t, x)
            if t.dim() == 2:
                check_shape(name, t, "B, C", tuple(x.shape[:2]))
            else:
                check_shape(name, t, "C", (x.shape[1],))


def normalise(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """SiLU of the normalised x, differentiable."""
    # Compilers fuse PyTorch's own operators, and transforms and forward mode support them.
    if in_forward_mode() or transformed() or torch.compiler.is_compiling() or not _has_kernel(x, weight, bias):
        return composed(x, groups, weight, bias, eps)
    result: tuple[Tensor, Tensor, Tensor] = _WAYS.way_in(x, weight, bias)(x, weight, bias, groups, eps)
    return result[0]


def _has_kernel(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    if not x.is_cpu or select(None, x) != "cpu" or x.numel() == 0 or not has_pixels(x):
        return False
    return _fit(x, weight, bias)


def _fit(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether the kernel accumulates in a dtype as wide as weight and bias; PyTorch's operators handle the others."""
    return x.dtype is torch.float64 or all(t is None or t.dtype is not torch.float64 for t in (weight, bias))


def composed(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """`normalise`, composed of PyTorch's operators."""
    if in_forward_mode() or not (x.is_contiguous() or has_pixels(x)):
        x = x.contiguous()  # torch.group_norm rejects some other memory orders, in forward mode all of them
    if all(t is None or t.dim() == 1 for t in (weight, bias)):
        return F.silu(F.group_norm(x, groups, weight, bias, eps))
    y = F.group_norm(x, groups, eps=eps)
    pixels = (1,) * (x.dim() - 2)
    if weight is not None:
        y = y * weight.unflatten(-1, (-1, *pixels))
    if bias is not None:
        y = y + bias.unflatten(-1, (-1, *pixels))
    return F.silu(y)


def _forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float) -> Any:
    _check(x, groups, weight, bias)
    return group_norm_silu(x, groups, weight, bias, eps)


def _check(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None) -> None:
    check(x, groups, weight, bias)
    if x.device.type not in ("cpu", "meta") or not has_pixels(x) or not _fit(x, weight, bias):
        raise ValueError(
            "x must be on the CPU, with the channels of a pixel side by side in memory, and float64 if weight or bias "
            f"is; got {x.dtype} of strides {x.stride()} on {x.device}. vmddpm_kernels.group_norm_silu takes any"
        )


def _forward_fake(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float) -> Any:
    _check(x, groups, weight, bias)
    moments = [x.new_empty((x.shape[0], groups), dtype=accumulation(x)) for _ in range(2)]
    return torch.empty_like(x), *moments


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor
) -> list[Tensor]:
    return [g for g in _gradients(dy, x, weight, bias, mean, rstd) if g is not None]


def _gradients(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor
) -> Sequence[Tensor | None]:
    _check_backward(dy, x, weight, bias, mean, rstd)
    return group_norm_silu_backward(dy, x, weight, bias, mean, rstd)


def _check_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor
) -> None:
    """Check the arguments again: saved tensors can change without autograd's knowledge."""
    _check(x, mean.shape[-1] if mean.dim() else 0, weight, bias)
    check_input("dy", dy, x, x.device, "of x", tuple(x.shape), FLOATS)
    for name, t in (("mean", mean), ("rstd", rstd)):
        check_input(name, t, x, x.device, "B, G", (x.shape[0], mean.shape[-1]), (accumulation(x),))


def _backward_fake(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor
) -> list[Tensor]:
    _check_backward(dy, x, weight, bias, mean, rstd)
    return [torch.empty_like(x), *(t.new_empty(t.shape) for t in (weight, bias) if t is not None)]


group_norm_silu_forward = define(
    "group_norm_silu(Tensor x, Tensor? weight, Tensor? bias, int groups, float eps) -> "
    "(Tensor y, Tensor mean, Tensor rstd)",
    _forward,
    _forward_fake,
)
# A gradient for each given tensor, in its dtype.
group_norm_silu_grads = define(
    "group_norm_silu_backward(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd) -> Tensor[]",
    _backward,
    _backward_fake,
)


class GroupNormSiLU(torch.autograd.Function):
    """`group_norm_silu` with its derivative: deterministic gradients, second derivatives raise. The arguments and
    results of `apply` are those of the operator."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:_TENSORS], *output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        refuse_batched(dy)
        saved = ctx.saved_tensors
        way = way_in((dy, *saved))
        if way is Way.KERNEL:
            return *_gradients(dy, *saved), None, None
        call = group_norm_silu_grads if way is Way.DISPATCHER else _Gradients.apply
        grads = iter(call(dy, *saved))
        return *[t if t is None else next(grads) for t in saved[:_TENSORS]], None, None


_WAYS = differentiate(group_norm_silu_forward, GroupNormSiLU, _forward)
_Gradients = differentiate_once(
    group_norm_silu_grads,
    _backward,
    "the compiled group_norm_silu has no second derivative; set VMDDPM_BACKEND=reference in the environment to "
    "differentiate twice",
)
