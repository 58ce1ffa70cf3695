"""The selective scan (S6) over sequences."""

from typing import Literal, NoReturn, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from vmddpm_kernels.checks import (
    check_discretization,
    check_flag,
    check_float,
    check_optional,
    check_shape,
    misnamed,
)
from vmddpm_kernels.interception import untraced
from vmddpm_kernels.ops.selective_scan import scan
from vmddpm_kernels.scan_inputs import ScanInputs, scan_options


@overload
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, *, delta_softplus: bool = False, discretization: str = "mamba",
    initial_state: Tensor | None = None, return_last_state: Literal[False] = False, channel_last: bool = False,
    dt_proj: Tensor | None = None, backend: str | None = None,
) -> Tensor: ...  # fmt: skip
@overload
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, *, delta_softplus: bool = False, discretization: str = "mamba",
    initial_state: Tensor | None = None, return_last_state: Literal[True], channel_last: bool = False,
    dt_proj: Tensor | None = None, backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, *, delta_softplus: bool = False, discretization: str = "mamba",
    initial_state: Tensor | None = None, return_last_state: bool, channel_last: bool = False,
    dt_proj: Tensor | None = None, backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *positions: NoReturn,
    delta_softplus: bool = False,
    discretization: str = "mamba",
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    channel_last: bool = False,
    dt_proj: Tensor | None = None,
    backend: str | None = None,
    **names: NoReturn,
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan (S6) over a batch of sequences (Mamba, arXiv 2312.00752, Algorithm 2).

        h_l = exp(delta_l A) h_{l-1} + delta_l B_l u_l,   y_l = C_l h_l + D u_l,   out_l = y_l * silu(z_l)

    Args:
        u, delta: (batch, dim, length), or (batch, length, dim) with `channel_last`. Any strides; neither is copied.
        A: (dim, d_state), negative.
        B, C: (batch, d_state, length), or (batch, groups, d_state, length) with dim divisible by groups; with
            `channel_last` (batch, length, d_state) or (batch, length, groups, d_state).
        D, delta_bias: (dim,).
        z: gate, in u's shape.
        delta_softplus: apply softplus to delta + delta_bias (identity above 20).
        discretization: "mamba" (B̄ = ΔB, as in Mamba and VMamba) or "zoh" (VM-DDPM's Eq. 6).
        initial_state: (batch, dim, d_state); zeros if not given.
        return_last_state: also return the state after the last step, (batch, dim, d_state), with gradient.
        channel_last: see the shapes above.
        dt_proj: (dim, dt_rank), dt_rank at least 1: the step sizes are the product of dt_proj and delta, which is then
            (batch, dt_rank, length), or (batch, length, dt_rank) with `channel_last`. "cpu" computes them in small
            tiles and never stores them all, forward or backward. "cuda" and "triton" compute them before the scan, in
            delta's dtype.
        backend: "cuda", "triton", "cpu" or "reference"; the best available one for u's device by default.

    Returns:
        out in u's shape and dtype. The last state has the dtype of the accumulation: float64 if u, delta, A, B, C
        or dt_proj has it, else float32.

    Raises:
        TypeError, ValueError: if an argument is invalid; the message names it.

    Example:
        >>> u, delta, A = torch.randn(2, 6, 20), torch.rand(2, 6, 20), -torch.rand(6, 16)
        >>> B, C = torch.randn(2, 16, 20), torch.randn(2, 16, 20)
        >>> y, state = selective_scan(u, delta, A, B, C, return_last_state=True)
        >>> y.shape, state.shape
        (torch.Size([2, 6, 20]), torch.Size([2, 6, 16]))
    """
    if positions or names:
        raise misnamed("selective_scan", positions, names)
    channel_last, return_last_state = (
        check_flag(name, value)
        for name, value in (("channel_last", channel_last), ("return_last_state", return_last_state))
    )
    options = scan_options(
        check_flag("delta_softplus", delta_softplus), check_discretization(discretization), not channel_last
    )
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state, dt_proj)
    groups, dim = untraced(_check, *tensors, channel_last)

    # Views and their derivatives take microseconds, a large part of a short scan: a single group needs fewer of them.
    def split(t: Tensor, axis: int) -> Tensor:
        return t.unsqueeze(axis) if groups == 1 else t.unflatten(axis, (groups, dim // groups))

    def grouped(t: Tensor) -> Tensor:  # -> (batch, groups, length, dim/groups), a view
        if not channel_last:
            return split(t, 1).mT
        return t.unsqueeze(1) if groups == 1 else split(t, 2).transpose(1, 2)

    def shared(factor: Tensor) -> Tensor:  # delta -> (batch, groups, length, dt_rank), a view
        steps = (factor if channel_last else factor.mT).unsqueeze(1)
        return steps if groups == 1 else steps.expand(-1, groups, -1, -1)

    inputs = ScanInputs(
        grouped(u),
        grouped(delta) if dt_proj is None else shared(delta),
        split(A, 0),
        _with_groups(B, channel_last),
        _with_groups(C, channel_last),
        None if D is None else split(D, 0),
        None if delta_bias is None else split(delta_bias, 0),
        None if initial_state is None else split(initial_state, 1),
        None if dt_proj is None else split(dt_proj, 0),
    )
    y, last_state = scan(inputs, options, backend, last_state=return_last_state)
    if groups == 1:
        out = y.squeeze(1) if channel_last else y.squeeze(1).mT
    else:
        out = y.transpose(1, 2).flatten(2) if channel_last else y.mT.flatten(1, 2)
    if z is not None:
        wide = torch.promote_types(out.dtype, torch.float32)
        out = (out.to(wide) * F.silu(z.to(wide))).to(out.dtype)
    if not return_last_state:
        return out
    assert last_state is not None
    return out, last_state.flatten(1, 2)


def _check(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, dt_proj: Tensor | None,
    channel_last: bool,
) -> tuple[int, int]:  # fmt: skip
    """(groups, dim). Raise TypeError or ValueError, naming the argument, if one is invalid."""
    axes = "batch, length, dim" if channel_last else "batch, dim, length"
    check_float("u", u)
    if u.dim() != 3:
        raise ValueError(f"u must have shape ({axes}), got {tuple(u.shape)}")
    check_float("delta", delta, u)
    for name, t in (("delta", delta if dt_proj is None else None), ("z", z)):
        check_optional(name, t, u, axes, tuple(u.shape))
    batch, dim = u.shape[0], u.shape[2 if channel_last else 1]
    if dt_proj is not None:
        _check_factors(delta, dt_proj, u, dim, channel_last)
    groups = [_groups(name, t, u, dim, channel_last) for name, t in (("B", B), ("C", C))]
    if groups[0] != groups[1]:
        axes = _matrix_axes(channel_last)
        raise ValueError(f"C must have shape {axes} with groups = {groups[0]}, as B has, got {groups[1]}")
    check_float("A", A, u)
    if A.dim() != 2:
        raise ValueError(f"A must have shape (dim, d_state), got {tuple(A.shape)}")
    check_shape("A", A, "dim, d_state", (dim, A.shape[1]))
    for name, t in (("D", D), ("delta_bias", delta_bias)):
        check_optional(name, t, u, "dim", (dim,))
    check_optional("initial_state", initial_state, u, "batch, dim, d_state", (batch, dim, A.shape[1]))
    return groups[0], dim


def _check_factors(delta: Tensor, dt_proj: Tensor, u: Tensor, dim: int, channel_last: bool) -> None:
    check_float("dt_proj", dt_proj, u)
    if dt_proj.dim() != 2 or dt_proj.shape[1] < 1:
        raise ValueError(f"dt_proj must have shape (dim, dt_rank) with dt_rank at least 1, got {tuple(dt_proj.shape)}")
    rank = dt_proj.shape[1]
    check_shape("dt_proj", dt_proj, "dim, dt_rank", (dim, rank))
    if channel_last:
        check_shape("delta", delta, "batch, length, dt_rank", (*u.shape[:2], rank))
    else:
        check_shape("delta", delta, "batch, dt_rank, length", (u.shape[0], rank, u.shape[2]))


def _groups(name: str, matrix: Tensor, u: Tensor, dim: int, channel_last: bool) -> int:
    """The number of groups of B or C in the user's layout."""
    check_float(name, matrix, u)
    axes = _matrix_axes(channel_last)
    if matrix.dim() not in (3, 4):
        raise ValueError(f"{name} must have shape {axes}, got {tuple(matrix.shape)}")
    groups = 1 if matrix.dim() == 3 else matrix.shape[2 if channel_last else 1]
    if groups == 0 or dim % groups:
        raise ValueError(f"the {dim} channels of u must divide into the {groups} groups of {name} {axes}")
    return groups


def _matrix_axes(channel_last: bool) -> str:
    if channel_last:
        return "(batch, length, d_state) or (batch, length, groups, d_state)"
    return "(batch, d_state, length) or (batch, groups, d_state, length)"


def _with_groups(matrix: Tensor, channel_last: bool) -> Tensor:
    """B or C in the user's layout -> (batch, groups, length, d_state), a view."""
    if channel_last:
        return matrix.unsqueeze(1) if matrix.dim() == 3 else matrix.transpose(1, 2)
    return (matrix.unsqueeze(1) if matrix.dim() == 3 else matrix).mT
