"""The selective scan (S6) over sequences."""

from typing import Literal, NoReturn, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from vmddpm_kernels.checks import check_discretization, check_flag, check_float, check_shape, misnamed
from vmddpm_kernels.interception import untraced
from vmddpm_kernels.ops.selective_scan import scan
from vmddpm_kernels.scan_inputs import ScanInputs, scan_options


@overload
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, *, delta_softplus: bool = False, discretization: str = "mamba",
    initial_state: Tensor | None = None, return_last_state: Literal[False] = False, channel_last: bool = False,
    backend: str | None = None,
) -> Tensor: ...  # fmt: skip
@overload
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, *, delta_softplus: bool = False, discretization: str = "mamba",
    initial_state: Tensor | None = None, return_last_state: Literal[True], channel_last: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, *, delta_softplus: bool = False, discretization: str = "mamba",
    initial_state: Tensor | None = None, return_last_state: bool, channel_last: bool = False,
    backend: str | None = None,
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
    backend: str | None = None,
    **names: NoReturn,
) -> Tensor | tuple[Tensor, Tensor]:
    """S6 (Mamba, arXiv 2312.00752, Algorithm 2) over a batch of sequences.

        h_l = exp(delta_l A) h_{l-1} + delta_l B_l u_l,   y_l = C_l h_l + D u_l,   out_l = y_l * silu(z_l)

    Args:
        u, delta: (B, D, L), or (B, L, D) with `channel_last`. Any strides; no copy is made of either layout.
        A: (D, N), negative.
        B, C: (B, N, L), or (B, G, N, L) with D divisible by the number of groups G;
            with `channel_last` (B, L, N) or (B, L, G, N).
        D, delta_bias: (D,).
        z: gate, shape of u.
        delta_softplus: apply softplus to delta + delta_bias (identity above 20); not by default.
        discretization: "mamba" (B̄ = ΔB, what Mamba and VMamba compute) or "zoh" (VM-DDPM's Eq. 6).
        initial_state: (B, D, N), zero if not given.
        return_last_state: also return h_L, (B, D, N); it carries gradient.
        channel_last: see the shapes above.
        backend: "cuda", "triton", "cpu" or "reference"; the best available one for u's device by default.

    Returns:
        out in u's shape and dtype; the last state in the dtype of the accumulation: float32, or float64 if u, delta, A,
        B or C is.

    Raises:
        TypeError, ValueError: naming the argument that does not fit.
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
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    groups, dim = untraced(_check, *tensors, channel_last)

    # A view and its derivative cost microseconds, a short scan not many more: a single group does with fewer.
    def split(t: Tensor, axis: int) -> Tensor:
        return t.unsqueeze(axis) if groups == 1 else t.unflatten(axis, (groups, dim // groups))

    def grouped(t: Tensor) -> Tensor:  # -> (B, G, L, D/G), a view
        if not channel_last:
            return split(t, 1).mT
        return t.unsqueeze(1) if groups == 1 else split(t, 2).transpose(1, 2)

    inputs = ScanInputs(
        grouped(u),
        grouped(delta),
        split(A, 0),
        _with_groups(B, channel_last),
        _with_groups(C, channel_last),
        None if D is None else split(D, 0),
        None if delta_bias is None else split(delta_bias, 0),
        None if initial_state is None else split(initial_state, 1),
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
    delta_bias: Tensor | None, initial_state: Tensor | None, channel_last: bool,
) -> tuple[int, int]:  # fmt: skip
    """The numbers of groups and channels. Raise TypeError or ValueError, naming the argument, if one does not fit."""
    axes = "B, L, D" if channel_last else "B, D, L"
    check_float("u", u)
    if u.dim() != 3:
        raise ValueError(f"u must have shape ({axes}), got {tuple(u.shape)}")
    check_float("delta", delta, u)
    for name, t in (("delta", delta), ("z", z)):
        if t is not None:
            check_float(name, t, u)
            check_shape(name, t, axes, tuple(u.shape))
    batch, dim = u.shape[0], u.shape[2 if channel_last else 1]
    groups = [_groups(name, t, u, dim, channel_last) for name, t in (("B", B), ("C", C))]
    if groups[0] != groups[1]:
        axes = _matrix_axes(channel_last)
        raise ValueError(f"C must have shape {axes} with G = {groups[0]} as B has, got {groups[1]}")
    check_float("A", A, u)
    if A.dim() != 2:
        raise ValueError(f"A must have shape (D, N), got {tuple(A.shape)}")
    check_shape("A", A, "D, N", (dim, A.shape[1]))
    for name, t in (("D", D), ("delta_bias", delta_bias)):
        if t is not None:
            check_float(name, t, u)
            check_shape(name, t, "D", (dim,))
    if initial_state is not None:
        check_float("initial_state", initial_state, u)
        check_shape("initial_state", initial_state, "B, D, N", (batch, dim, A.shape[1]))
    return groups[0], dim


def _groups(name: str, matrix: Tensor, u: Tensor, dim: int, channel_last: bool) -> int:
    """Of B or C as the user gives it."""
    check_float(name, matrix, u)
    axes = _matrix_axes(channel_last)
    if matrix.dim() not in (3, 4):
        raise ValueError(f"{name} must have shape {axes}, got {tuple(matrix.shape)}")
    groups = 1 if matrix.dim() == 3 else matrix.shape[2 if channel_last else 1]
    if groups == 0 or dim % groups:
        raise ValueError(f"the {dim} channels of u must divide into the {groups} groups of {name} {axes}")
    return groups


def _matrix_axes(channel_last: bool) -> str:
    return "(B, L, N) or (B, L, G, N)" if channel_last else "(B, N, L) or (B, G, N, L)"


def _with_groups(matrix: Tensor, channel_last: bool) -> Tensor:
    """B or C as the user gives it -> (B, G, L, N), a view."""
    if channel_last:
        return matrix.unsqueeze(1) if matrix.dim() == 3 else matrix.transpose(1, 2)
    return (matrix.unsqueeze(1) if matrix.dim() == 3 else matrix).mT
