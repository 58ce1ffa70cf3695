"""The functions of `mamba_ssm.ops.triton.layernorm` up to mamba_ssm 1.2, with fewer arguments in another order."""

from typing import Any

from torch import Tensor

from vmddpm_kernels.compat import layer_norm
from vmddpm_kernels.compat.layer_norm import LayerNormLinearFn, RMSNorm, layer_norm_linear_fn

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
    eps: float = 1e-6,
    prenorm: bool | None = False,
    residual_in_fp32: bool | None = False,
    is_rms_norm: bool | None = False,
) -> Any:
    """`compat.layer_norm.layer_norm_fn`."""
    return layer_norm.layer_norm_fn(
        x, weight, bias, residual, eps=eps, prenorm=prenorm, residual_in_fp32=residual_in_fp32,
        is_rms_norm=is_rms_norm,
    )  # fmt: skip


def rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    prenorm: bool | None = False,
    residual_in_fp32: bool | None = False,
    eps: float = 1e-6,
) -> Any:
    """`layer_norm_fn` with `is_rms_norm`."""
    return layer_norm_fn(x, weight, bias, residual, eps, prenorm, residual_in_fp32, True)


def layer_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool | None = False,
    upcast: bool | None = False,
) -> Any:
    """`compat.layer_norm.layer_norm_ref`."""
    return layer_norm.layer_norm_ref(x, weight, bias, residual, eps=eps, prenorm=prenorm, upcast=upcast)


def rms_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool | None = False,
    upcast: bool | None = False,
) -> Any:
    """`compat.layer_norm.rms_norm_ref`."""
    return layer_norm.rms_norm_ref(x, weight, bias, residual, eps=eps, prenorm=prenorm, upcast=upcast)


class LayerNormFn:
    """`layer_norm_fn` with the interface of mamba_ssm's autograd Function."""

    apply = staticmethod(layer_norm_fn)
