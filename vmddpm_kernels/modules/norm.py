"""Layer and RMS normalization after adding a residual, in float32 or wider."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def add_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    eps: float = 1e-6,
    rms: bool = False,
    residual_in_fp32: bool = False,
) -> tuple[Tensor, Tensor]:
    """Normalize x + residual over the last axis.

    Args:
        x, residual: (..., dim).
        weight, bias: (dim,).
        eps: added to the variance, or to the mean square.
        rms: RMS normalization instead of layer normalization.
        residual_in_fp32: return the sum in float32 if there is no residual.

    Returns:
        The normalized sum in x's dtype, and the sum in the residual's dtype, or x's dtype without a residual.

    Example:
        >>> y, residual = add_norm(torch.randn(2, 9, 6), torch.ones(6), rms=True)
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x.to(wide) if residual is None else x.to(wide) + residual.to(wide)
    if residual is not None:
        kept = total.to(residual.dtype)
    else:
        kept = total.float() if residual_in_fp32 and x.dtype != torch.float64 else x
    y = normalized(total, weight, bias, eps, rms)
    return y.to(x.dtype), kept


def normalized(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, rms: bool) -> Tensor:
    """Layer or RMS normalization of x (..., dim), in its dtype."""
    scale = weight.to(x.dtype)
    shift = None if bias is None else bias.to(x.dtype)
    if not rms:
        return F.layer_norm(x, scale.shape, scale, shift, eps)
    y = F.rms_norm(x, scale.shape, scale, eps)
    return y if shift is None else y + shift


class RMSNorm(nn.Module):
    """RMS normalization over the last axis, with `weight` (dim,) and no bias.

    Example:
        >>> y = RMSNorm(6)(torch.randn(2, 9, 6))                                # (batch, length, dim)
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.eps = eps
        self.drop = nn.Dropout(dropout_p) if dropout_p > 0 else None
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False
    ) -> Any:
        """`add_norm` of x and residual (..., dim), after dropout of x. Returns the normalized sum; with `prenorm` also
        the sum."""
        if self.drop is not None:
            x = self.drop(x)
        y, kept = add_norm(
            x, self.weight, None, residual, eps=self.eps, rms=True, residual_in_fp32=residual_in_fp32
        )
        return (y, kept) if prenorm else y
