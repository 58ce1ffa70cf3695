"""Linear layers in float32 on a CPU: by oneDNN instead of MKL, and by a kernel of csrc/ for the few rows of a decoding
step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vmddpm_kernels.backends import extension
from vmddpm_kernels.interception import Way, apply_of, is_batched, way_in

# Smaller layers gain less than the calls cost.
MIN_PRODUCTS, MIN_PRODUCTS_WITH_GRADIENTS = 1 << 21, 1 << 23  # multiplications
MIN_WEIGHT_ELEMENTS = 1 << 17  # with few rows
MIN_WEIGHT_SIDE = 64  # for the weight's gradient
# oneDNN adds all terms of a sum one after another: with more of them it errs by more than twice as much as MKL.
MAX_TERMS = 1024
# oneDNN's matrix product, which torch.compile calls for linear layers. It has no gradients of its own.
_product: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, as `torch.nn.functional.linear`, up to rounding.

    In float32 on CPUs with AVX-512, oneDNN computes it. PyTorch calls MKL, which uses half of the vector width on CPUs
    of other makers than Intel: there this function takes about half the time, forward and backward. Without gradients,
    one to four rows, as in decoding, take the time in which the weight is read. Differentiable to any order.

    Args:
        x: (..., in_features), any dtype and device.
        weight: (out_features, in_features).
        bias: (out_features,) or None.

    Returns:
        (..., out_features) in x's dtype, or that of autocast.

    Raises:
        RuntimeError: of `torch.nn.functional.linear`, if shapes or dtypes do not match.

    Example:
        >>> x, weight = torch.randn(2, 1024, 96), torch.randn(192, 96)
        >>> linear(x, weight).shape
        torch.Size([2, 1024, 192])
    """
    if not _is_float32_on_cpu(x, weight, bias):
        return F.linear(x, weight, bias)
    products, way = x.numel() * len(weight), way_in([x, weight] if bias is None else [x, weight, bias])
    if way is Way.KERNEL:
        if _has_few_rows(x, weight, bias):
            return _by_rows(x, weight, bias)
        if products >= MIN_PRODUCTS and _onednn_is_better(x):
            return _by_onednn(x, weight, bias)
    elif way is Way.AUTOGRAD and products >= MIN_PRODUCTS_WITH_GRADIENTS and _onednn_is_better(x):
        out: Tensor = _apply(x, weight, bias)
        return out
    return F.linear(x, weight, bias)


def weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """grad.T @ x, the weight's gradient: x (rows, in_features), grad (rows, out_features) -> (out, in)."""
    width, height = x.shape[1], grad.shape[1]
    if min(width, height) < MIN_WEIGHT_SIDE:
        return grad.mT @ x
    total: Tensor | None = None
    for x_part, grad_part in zip(x.split(MAX_TERMS), grad.split(MAX_TERMS)):
        narrow = width < height  # the narrower factor first is faster
        part = linear(x_part.mT, grad_part.mT).mT if narrow else linear(grad_part.mT, x_part.mT)
        total = part if total is None else total + part
    assert total is not None
    return total


class OneDnnLinear(torch.autograd.Function):
    """`linear` where oneDNN computes it. Its gradients are linear layers too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _by_onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        if is_batched(grad):  # only PyTorch's own operators take it
            leading = list(range(grad.dim() - 1))
            return (
                grad @ weight if for_x else None,
                (grad.transpose(-1, -2).unsqueeze(0) @ x).sum(leading) if for_weight else None,
                grad.sum(leading) if for_bias else None,
            )
        rows = grad.flatten(0, -2)
        return (
            linear(grad, weight.mT) if for_x else None,
            weight_gradient(x.flatten(0, -2), rows) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )


_apply = apply_of(OneDnnLinear)


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    assert _product is not None
    # With gaps between rows or columns of the weight, oneDNN takes a path a thousand times slower; the product ignores
    # the bias's stride.
    dense = weight if weight.is_contiguous() or weight.mT.is_contiguous() else weight.contiguous()
    return _product(x, dense, None if bias is None else bias.contiguous(), "none", [], "")


def _onednn_is_better(x: Tensor) -> bool:
    """Whether oneDNN is faster than PyTorch's product on this CPU, and as accurate."""
    return (
        x.shape[-1] <= MAX_TERMS
        and _product is not None
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkldnn.is_available()
    )


def _by_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    y = rows.new_empty(len(rows), len(weight))
    extension.native.linear(rows, weight, bias, y, torch.get_num_threads())
    return y.view(*x.shape[:-1], len(weight))


def _has_few_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernel for few rows computes it, and faster than PyTorch."""
    return (
        weight.numel() >= MIN_WEIGHT_ELEMENTS
        and extension.native is not None
        and 0 < x.numel() <= extension.native.MOST_ROWS * x.shape[-1]
        and weight.is_contiguous()
        and (bias is None or bias.is_contiguous())
    )


def _is_float32_on_cpu(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether this is a valid layer in float32 on a CPU that no compiler traces."""
    return (
        not torch.compiler.is_compiling()
        and x.dtype is weight.dtype is torch.float32
        and x.is_cpu
        and weight.is_cpu
        and x.dim() >= 2
        and weight.dim() == 2
        and x.shape[-1] == weight.shape[1]
        and (bias is None or (bias.dtype is torch.float32 and bias.is_cpu and bias.shape == weight.shape[:1]))
        and not torch.is_autocast_enabled("cpu")
    )
