"""The functions of `mamba_ssm.ops.triton.layer_norm`, with the same signatures, in plain PyTorch."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmddpm_kernels.checks import check_truth
from vmddpm_kernels.modules.norm import RMSNorm, normalized

__all__ = [
    "LayerNormFn",
    "LayerNormLinearFn",
    "RMSNorm",
    "layer_norm_fn",
    "layer_norm_linear_fn",
    "layer_norm_ref",
    "rms_norm_fn",
    "rms_norm_ref",
]


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool | None = False,
    residual_in_fp32: bool | None = False,
    is_rms_norm: bool | None = False,
    return_dropout_mask: bool | None = False,
) -> Any:
    """dropout(rowscale x) + dropout(x1) + residual, normalized over the last axis.

    Args:
        x, x1, residual: (..., dim).
        weight, bias: (dim,).
        weight1, bias1: (dim,), for a second result from the same sum.
        rowscale: (...); excludes x1.
        prenorm: also return the sum, in the residual's dtype. Without a residual it is in float32 if
            `residual_in_fp32`, else in x's dtype.
        return_dropout_mask: also return the dropout masks of x and x1, in their shapes; None without dropout.

    Returns:
        The normalized results in x's dtype, then the requested sum and masks; a tuple if there are several.
    """
    if x1 is not None and rowscale is not None:
        raise ValueError("rowscale must be None if x1 is given")
    wide = torch.promote_types(x.dtype, torch.float32)
    mask, mask1 = (_dropout_mask(t, dropout_p) for t in (x, x1))
    total = x.to(wide) if rowscale is None else x.to(wide) * rowscale.to(wide)[..., None]
    total = _dropped(total, mask, dropout_p)
    if x1 is not None:
        total = total + _dropped(x1.to(wide), mask1, dropout_p)
    if residual is not None:
        total = total + residual.to(wide)
    rms = check_truth("is_rms_norm", is_rms_norm)
    results: list[Tensor | None] = [normalized(total, weight, bias, eps, rms).to(x.dtype)]
    if weight1 is not None:
        results.append(normalized(total, weight1, bias1, eps, rms).to(x.dtype))
    if check_truth("prenorm", prenorm):
        fp32 = check_truth("residual_in_fp32", residual_in_fp32) and x.dtype != torch.float64
        kept = residual.dtype if residual is not None else torch.float32 if fp32 else x.dtype
        results.append(total.to(kept))
    if check_truth("return_dropout_mask", return_dropout_mask):
        results += [mask, mask1]
    return results[0] if len(results) == 1 else tuple(results)


def rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool | None = False,
    residual_in_fp32: bool | None = False,
    return_dropout_mask: bool | None = False,
) -> Any:
    """`layer_norm_fn` with `is_rms_norm`."""
    return layer_norm_fn(
        x, weight, bias, residual, x1, weight1, bias1, eps, dropout_p, rowscale, prenorm, residual_in_fp32, True,
        return_dropout_mask,
    )  # fmt: skip


def layer_norm_linear_fn(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool | None = False,
    residual_in_fp32: bool | None = False,
    is_rms_norm: bool | None = False,
) -> Any:
    """`layer_norm_fn` and a linear projection of its result."""
    y, kept = layer_norm_fn(
        x, norm_weight, norm_bias, residual, eps=eps, prenorm=True, residual_in_fp32=residual_in_fp32,
        is_rms_norm=is_rms_norm,
    )  # fmt: skip
    dtype = y.dtype if torch.is_autocast_enabled(y.device.type) else linear_weight.dtype
    out = F.linear(y.to(dtype), linear_weight, linear_bias)
    return (out, kept) if check_truth("prenorm", prenorm) else out


def layer_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool | None = False,
    dropout_mask: Tensor | None = None,
    dropout_mask1: Tensor | None = None,
    upcast: bool | None = False,
) -> Any:
    """`layer_norm_fn` with given dropout masks; the sum of `prenorm` is in x's dtype."""
    return _with_masks(
        x, weight, bias, residual, x1, weight1, bias1, eps, dropout_p, rowscale, prenorm, dropout_mask, dropout_mask1,
        rms=False,
    )  # fmt: skip


def rms_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool | None = False,
    dropout_mask: Tensor | None = None,
    dropout_mask1: Tensor | None = None,
    upcast: bool | None = False,
) -> Any:
    """`layer_norm_ref` of RMS normalization."""
    return _with_masks(
        x, weight, bias, residual, x1, weight1, bias1, eps, dropout_p, rowscale, prenorm, dropout_mask, dropout_mask1,
        rms=True,
    )  # fmt: skip


class LayerNormFn:
    """`layer_norm_fn` with the interface of mamba_ssm's autograd Function."""

    apply = staticmethod(layer_norm_fn)


class LayerNormLinearFn:
    """`layer_norm_linear_fn` with the interface of mamba_ssm's autograd Function."""

    apply = staticmethod(layer_norm_linear_fn)


def _with_masks(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, x1: Tensor | None,
    weight1: Tensor | None, bias1: Tensor | None, eps: float, dropout_p: float, rowscale: Tensor | None,
    prenorm: bool | None, mask: Tensor | None, mask1: Tensor | None, *, rms: bool,
) -> Any:  # fmt: skip
    if rowscale is not None:
        x = x * rowscale[..., None]
    if dropout_p != 0:
        given = ((x, mask), (x1, mask1))
        x, x1 = (  # type: ignore[assignment]
            t if t is None else _dropped(t, _dropout_mask(t, dropout_p) if m is None else m, dropout_p)
            for t, m in given
        )
    result = layer_norm_fn(
        x, weight, bias, residual, x1, weight1, bias1, eps, prenorm=prenorm, is_rms_norm=rms
    )
    if not check_truth("prenorm", prenorm):
        return result
    *results, kept = result
    return *results, kept.to(x.dtype)


def _dropout_mask(t: Tensor | None, p: float) -> Tensor | None:
    """A random mask, True for elements to keep."""
    if not 0 <= p <= 1:
        raise ValueError(f"dropout_p must be from 0 to 1, got {p}")
    return torch.rand(t.shape, device=t.device) >= p if t is not None and p > 0 else None


def _dropped(t: Tensor, mask: Tensor | None, p: float) -> Tensor:
    if mask is None:
        return t
    return t.masked_fill(~mask, 0.0) / (1 - p) if p < 1 else torch.zeros_like(t)
