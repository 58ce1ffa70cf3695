"""mamba_ssm's fused Mamba block, from the input projection's result to the output projection, and the variants in Vim's
fork of mamba_ssm."""

import torch
from torch import Tensor

from vmddpm_kernels.causal_conv1d import causal_conv1d
from vmddpm_kernels.checks import check_dense, check_float, check_optional, check_shape, check_truth
from vmddpm_kernels.compat.mamba_scan import selective_scan_fn
from vmddpm_kernels.linear import linear
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
    """A Mamba block without its input projection: causal convolution, SiLU, projections, scan, gate, output projection.

    Args:
        xz: (batch, 2 * dim, length), the sequence and its gate.
        conv1d_weight: (dim, 1, width).
        conv1d_bias: (dim,).
        x_proj_weight: (dt_rank + 2 * d_state, dim); without the rows of B or C if that is given.
        delta_proj_weight: (dim, dt_rank).
        out_proj_weight: (d_model, dim).
        out_proj_bias: (d_model,).
        A, B, C, D, delta_bias, delta_softplus: as in `selective_scan_fn`; B and C are computed from x if not given.
        B_proj_bias, C_proj_bias: (d_state,), added to the projected B and C.
        b_rms_weight, c_rms_weight, dt_rms_weight: (d_state,), (d_state,) and (dim,), weights of an RMS normalization of
            B, C and delta.
        checkpoint_lvl: ignored; in mamba_ssm it saves memory without changing the result.

    Returns:
        (batch, length, d_model).
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
    """`mamba_inner_fn`. mamba_ssm has an unfused version under this name; here both are the same."""
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
    """`mamba_inner_fn` without the output projection: (batch, dim, length). From Vim's fork of mamba_ssm."""
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
    """`mamba_inner_fn` plus a second scan with A_b in reverse order. From Vim's fork of mamba_ssm."""
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
    """`bimamba_inner_fn`. The fork has an unfused version under this name; here both are the same."""
    return bimamba_inner_fn(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight, out_proj_bias, A, A_b, B, C,
        D, delta_bias, B_proj_bias, C_proj_bias, delta_softplus,
    )  # fmt: skip


def rms_norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float = 1e-6, is_rms_norm: bool = True
) -> Tensor:
    """Normalize x (..., dim) over its last axis, as `mamba_inner_fn` normalizes B, C and delta; in x's dtype."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return normalized(wide, weight, bias, eps, check_truth("is_rms_norm", is_rms_norm)).to(x.dtype)


def _project(y: Tensor, out_proj_weight: Tensor, out_proj_bias: Tensor | None) -> Tensor:
    """y (batch, dim, length) -> (batch, length, d_model)."""
    _check_weight("out_proj_weight", out_proj_weight, y, 2)
    check_shape("out_proj_weight", out_proj_weight, "d_model, dim", (out_proj_weight.shape[0], y.shape[1]))
    if out_proj_bias is not None:
        _check_weight("out_proj_bias", out_proj_bias, y, 1)
        check_shape("out_proj_bias", out_proj_bias, "d_model", out_proj_weight.shape[:1])
    return linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


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
    """(batch, dim, length): silu(z) times the sum of one scan for each A; the second is in reverse order."""
    width = 2 if isinstance(A[0], Tensor) and A[0].is_complex() else 1  # real numbers in a state
    rank, states = _check(xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A[0], B, C, width)
    x, z = xz.chunk(2, dim=1)                                                   # (batch, dim, length)
    x = causal_conv1d(x, conv1d_weight.squeeze(1), conv1d_bias, activation="silu")  # type: ignore[assignment]
    projected = linear(x.transpose(1, 2), x_proj_weight)                      # (batch, length, dt_rank + 2 * d_state)
    delta = linear(projected[..., :rank], delta_proj_weight)                  # (batch, length, dim)
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
    """(dt_rank, rows of x_proj_weight for each of B and C). Raise TypeError or ValueError, naming the argument, if one
    is invalid."""
    check_float("xz", xz)
    if xz.dim() != 3 or xz.shape[1] % 2 or 0 in xz.shape[1:]:
        raise ValueError(
            f"xz must have shape (batch, 2 * dim, length) with dim and length at least 1, got {tuple(xz.shape)}"
        )
    dim = xz.shape[1] // 2
    weights = {"conv1d_weight": conv1d_weight, "x_proj_weight": x_proj_weight, "delta_proj_weight": delta_proj_weight}
    for name, weight in weights.items():
        _check_weight(name, weight, xz, 3 if name == "conv1d_weight" else 2)
    if conv1d_weight.shape[2] < 1:
        raise ValueError(
            f"conv1d_weight must have shape (dim, 1, width) with width at least 1, got {tuple(conv1d_weight.shape)}"
        )
    check_shape("conv1d_weight", conv1d_weight, "dim, 1, width", (dim, 1, conv1d_weight.shape[2]))
    check_optional("conv1d_bias", conv1d_bias, xz, "dim", (dim,))
    rank = delta_proj_weight.shape[1]
    check_shape("delta_proj_weight", delta_proj_weight, "dim, dt_rank", (dim, rank))
    check_dense("A", A)
    if A.dim() != 2:
        raise ValueError(f"A must have shape (dim, d_state), got {tuple(A.shape)}")
    states = A.shape[1] * width
    rows = rank + states * sum(t is None for t in (B, C))
    check_shape("x_proj_weight", x_proj_weight, "dt_rank + 2 * d_state, dim", (rows, dim))
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
    check_optional(name, bias, projected, "d_state", projected.shape[-1:])
    return projected + bias.to(projected.dtype)


def _normalized(name: str, projected: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    if weight is None:
        return projected
    check_optional(name, weight, projected, "d_state", projected.shape[-1:])
    return rms_norm_forward(projected, weight, None, eps)


def _steps_last(projected: Tensor, width: int) -> Tensor:
    """(batch, length, d_state * width) -> (batch, d_state, length * width); the parts of a complex state stay
    adjacent."""
    parts: Tensor = projected.unflatten(-1, (-1, width))
    return parts.transpose(1, 2).flatten(2)


def _reversed(matrix: Tensor, width: int) -> Tensor:
    parts: Tensor = matrix.unflatten(-1, (-1, width))
    return parts.flip(-2).flatten(-2)
