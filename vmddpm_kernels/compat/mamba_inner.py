"""mamba_ssm's Mamba block between its first and its last projection, and its variants in Vim's fork of mamba_ssm."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vmddpm_kernels.causal_conv1d import causal_conv1d
from vmddpm_kernels.checks import check_dense, check_float, check_shape, check_truth
from vmddpm_kernels.compat.mamba_scan import selective_scan_fn
from vmddpm_kernels.modules.norm import normalized


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """A Mamba block between its first and its last projection: causal convolution, SiLU, projections, scan, gate.

    Args:
        xz: (B, 2 D, L), the sequence and its gate.
        conv1d_weight: (D, 1, W); conv1d_bias (D,).
        x_proj_weight: (R + N + N, D), of which the rows of B or C are absent if that is given.
        delta_proj_weight: (D, R).
        out_proj_weight: (E, D); out_proj_bias (E,).
        A, B, C, D, delta_bias, delta_softplus: as in `selective_scan_fn`; B and C computed from x unless given.
        B_proj_bias, C_proj_bias: (N,), added to what is projected.
        b_rms_weight, c_rms_weight: (N,), dt_rms_weight (D,): RMS normalization of B, C and delta.
        checkpoint_lvl: a choice of memory in mamba_ssm, where 0 and 1 compute the same; so they do here.

    Returns:
        (B, L, E).
    """
    y = _inner(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, [A], B, C, D, delta_bias, B_proj_bias,
        C_proj_bias, delta_softplus, rms=(b_rms_weight, c_rms_weight, dt_rms_weight), eps=b_c_dt_rms_eps,
    )  # fmt: skip
    return _project(y, out_proj_weight, out_proj_bias)


def mamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """`mamba_inner_fn`: in mamba_ssm its steps one by one, as they are here in both."""
    return mamba_inner_fn(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight, out_proj_bias, A, B, C, D,
        delta_bias, B_proj_bias, C_proj_bias, delta_softplus,
    )  # fmt: skip


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """`mamba_inner_fn` up to the gate, (B, D, L); of Vim's fork of mamba_ssm."""
    return _inner(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, [A], B, C, D, delta_bias, B_proj_bias,
        C_proj_bias, delta_softplus,
    )  # fmt: skip


def bimamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """`mamba_inner_fn` with a second scan, of A_b, from the end to the beginning, added; of Vim's fork of mamba_ssm."""
    y = _inner(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, [A, A_b], B, C, D, delta_bias, B_proj_bias,
        C_proj_bias, delta_softplus,
    )  # fmt: skip
    return _project(y, out_proj_weight, out_proj_bias)


def bimamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """`bimamba_inner_fn`: in Vim's fork its steps one by one, as they are here in both."""
    return bimamba_inner_fn(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight, out_proj_bias, A, A_b, B, C,
        D, delta_bias, B_proj_bias, C_proj_bias, delta_softplus,
    )  # fmt: skip


def rms_norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float = 1e-6, is_rms_norm: bool = True
) -> Tensor:
    """x (..., D) normalized over its last axis, which `mamba_inner_fn` does to B, C and delta; in x's dtype."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return normalized(wide, weight, bias, eps, check_truth("is_rms_norm", is_rms_norm)).to(x.dtype)


def _project(y: Tensor, out_proj_weight: Tensor, out_proj_bias: Tensor | None) -> Tensor:
    """y (B, D, L) -> (B, L, E)."""
    _check_weight("out_proj_weight", out_proj_weight, y, 2)
    check_shape("out_proj_weight", out_proj_weight, "E, D", (out_proj_weight.shape[0], y.shape[1]))
    if out_proj_bias is not None:
        _check_weight("out_proj_bias", out_proj_bias, y, 1)
        check_shape("out_proj_bias", out_proj_bias, "E", out_proj_weight.shape[:1])
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


def _inner(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: list[Tensor],
    B: Tensor | None,
    C: Tensor | None,
    D: Tensor | None,
    delta_bias: Tensor | None,
    B_proj_bias: Tensor | None,
    C_proj_bias: Tensor | None,
    delta_softplus: bool,
    *,
    rms: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None),
    eps: float = 1e-6,
) -> Tensor:
    """(B, D, L): the sum of a scan of every A, the second one backwards, times silu(z)."""
    width = 2 if isinstance(A[0], Tensor) and A[0].is_complex() else 1  # real numbers a state takes
    rank, states = _check(xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A[0], B, C, width)
    x, z = xz.chunk(2, dim=1)                                                   # (B, D, L)
    x = causal_conv1d(x, conv1d_weight.squeeze(1), conv1d_bias, activation="silu")  # type: ignore[assignment]
    projected = F.linear(x.transpose(1, 2), x_proj_weight)                      # (B, L, R + N + N)
    delta = F.linear(projected[..., :rank], delta_proj_weight)                  # (B, L, D)
    delta = _normalized("dt_rms_weight", delta, rms[2], eps).transpose(1, 2)
    if B is None:
        B = _biased("B_proj_bias", projected[..., rank : rank + states], B_proj_bias)
        B = _steps_last(_normalized("b_rms_weight", B, rms[0], eps), width)
    if C is None:
        C = _biased("C_proj_bias", projected[..., projected.shape[-1] - states :], C_proj_bias)
        C = _steps_last(_normalized("c_rms_weight", C, rms[1], eps), width)
    y = selective_scan_fn(x, delta, A[0], B, C, D, z, delta_bias, delta_softplus)
    for A_b in A[1:]:
        B_b, C_b = (t if t.dim() == 2 else _reversed(t, width) for t in (B, C))
        backwards = selective_scan_fn(
            x.flip(-1), delta.flip(-1), A_b, B_b, C_b, D, z.flip(-1), delta_bias, delta_softplus
        )
        y = y + backwards.flip(-1)
    return y


def _check(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None,
    C: Tensor | None,
    width: int,
) -> tuple[int, int]:
    """The rank of delta, and how many rows of x_proj_weight make B or C; errors name the argument."""
    check_float("xz", xz)
    if xz.dim() != 3 or xz.shape[1] % 2 or 0 in xz.shape[1:]:
        raise ValueError(f"xz must have shape (B, 2 D, L) with D and L at least 1, got {tuple(xz.shape)}")
    dim = xz.shape[1] // 2
    weights = {"conv1d_weight": conv1d_weight, "x_proj_weight": x_proj_weight, "delta_proj_weight": delta_proj_weight}
    for name, weight in weights.items():
        _check_weight(name, weight, xz, 3 if name == "conv1d_weight" else 2)
    if conv1d_weight.shape[2] < 1:
        raise ValueError(f"conv1d_weight must have shape (D, 1, W) with W at least 1, got {tuple(conv1d_weight.shape)}")
    check_shape("conv1d_weight", conv1d_weight, "D, 1, W", (dim, 1, conv1d_weight.shape[2]))
    if conv1d_bias is not None:
        check_float("conv1d_bias", conv1d_bias, xz)
        check_shape("conv1d_bias", conv1d_bias, "D", (dim,))
    rank = delta_proj_weight.shape[1]
    check_shape("delta_proj_weight", delta_proj_weight, "D, R", (dim, rank))
    check_dense("A", A)
    if A.dim() != 2:
        raise ValueError(f"A must have shape (D, N), got {tuple(A.shape)}")
    states = A.shape[1] * width
    rows = rank + states * sum(t is None for t in (B, C))
    check_shape("x_proj_weight", x_proj_weight, "R + N + N, D", (rows, dim))
    return rank, states


def _check_weight(name: str, weight: Tensor, xz: Tensor, dims: int) -> None:
    check_float(name, weight, xz)
    if weight.dim() != dims:
        raise ValueError(f"{name} must have {dims} dimensions, got shape {tuple(weight.shape)}")
    if weight.dtype != xz.dtype and dims < 3 and not torch.is_autocast_enabled(xz.device.type):
        raise TypeError(f"{name} must have xz's dtype {xz.dtype} outside of autocast, got {weight.dtype}")


def _biased(name: str, projected: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return projected
    check_float(name, bias, projected)
    check_shape(name, bias, "N", projected.shape[-1:])
    return projected + bias.to(projected.dtype)


def _normalized(name: str, projected: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    if weight is None:
        return projected
    check_float(name, weight, projected)
    check_shape(name, weight, "N", projected.shape[-1:])
    return rms_norm_forward(projected, weight, None, eps)


def _steps_last(projected: Tensor, width: int) -> Tensor:
    """(B, L, N * width) -> (B, N, L * width): where a state is complex, its two parts stay side by side."""
    parts: Tensor = projected.unflatten(-1, (-1, width))
    return parts.transpose(1, 2).flatten(2)


def _reversed(matrix: Tensor, width: int) -> Tensor:
    parts: Tensor = matrix.unflatten(-1, (-1, width))
    return parts.flip(-2).flatten(-2)
