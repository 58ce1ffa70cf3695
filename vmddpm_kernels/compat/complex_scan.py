"""The selective scan with complex states, as in mamba_ssm; it has no kernel and runs one step at a time in PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vmddpm_kernels.checks import check_dense, check_float, check_optional, check_shape, check_states
from vmddpm_kernels.compat.groups import common_groups


def complex_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """h_l = exp(delta A) h_{l-1} + delta B u,   y_l = 2 Re(C h_l) + D u: each state represents a conjugate pair.

    Args:
        u, delta, z: (batch, dim, length).
        A: complex (dim, d_state).
        B, C: complex (dim, d_state), or real (batch, d_state, 2 * length) or (batch, groups, d_state, 2 * length) with
            alternating real and imaginary parts.
        D, delta_bias: (dim,).

    Returns:
        out (batch, dim, length) in u's dtype, and the last state (batch, dim, d_state).
    """
    batch, dim, length = u.shape
    check_float("delta", delta, u)
    for name, t in (("delta", delta), ("z", z)):
        check_optional(name, t, u, "batch, dim, length", (batch, dim, length))
    for name, t in (("D", D), ("delta_bias", delta_bias)):
        check_optional(name, t, u, "dim", (dim,))
    check_dense("A", A)
    if A.dtype not in (torch.complex64, torch.complex128):
        raise TypeError(f"A must be complex64, complex128 or real, got {A.dtype}")
    if A.dim() != 2 or A.shape[0] != dim:
        raise ValueError(f"A must have shape (dim, d_state) with dim = {dim}, got {tuple(A.shape)}")
    check_states(A.shape[1])
    B, C = common_groups(u, _as_complex("B", B, u, A), _as_complex("C", C, u, A))
    for name, t in (("B", B), ("C", C)):
        check_shape(name, t, "batch, groups, d_state, length", (batch, B.shape[1], A.shape[1], length))

    wide = torch.promote_types(u.dtype, A.real.dtype)
    x, steps = u.to(wide), delta.to(wide)
    if delta_bias is not None:
        steps = steps + delta_bias.to(wide)[:, None]
    if delta_softplus:
        steps = F.softplus(steps)
    per_group = (B.shape[1], dim // B.shape[1])
    h = torch.zeros_like(A).expand(batch, -1, -1)
    ys = []
    for x_l, steps_l, B_l, C_l in zip(*(t.unbind(-1) for t in (x, steps, B, C))):
        drive = (steps_l * x_l).unflatten(1, per_group)[..., None] * B_l[:, :, None]
        h = torch.exp(steps_l[..., None] * A) * h + drive.flatten(1, 2)
        ys.append(2 * (h.unflatten(1, per_group) * C_l[:, :, None]).sum(-1).real.flatten(1))
    y = torch.stack(ys, dim=-1) if ys else torch.zeros_like(x)
    if D is not None:
        y = y + D.to(wide)[:, None] * x
    if z is not None:
        y = y * F.silu(z.to(wide))
    return y.to(u.dtype), h


def _as_complex(name: str, matrix: Tensor, u: Tensor, A: Tensor) -> Tensor:
    """B or C as complex (dim, d_state), (batch, d_state, length) or (batch, groups, d_state, length)."""
    check_dense(name, matrix)
    if matrix.is_complex() and matrix.dim() == 2:
        check_float(name, matrix.real, u)
        return matrix.to(A.dtype)
    check_float(name, matrix, u)
    if matrix.dim() == 2:
        return matrix.to(A.dtype)
    if matrix.dim() not in (3, 4) or matrix.shape[-1] != 2 * u.shape[2]:
        raise ValueError(
            f"{name} must have shape (dim, d_state), (batch, d_state, 2 * length) or (batch, groups, d_state, "
            f"2 * length) with length = {u.shape[2]} if A is complex, got {tuple(matrix.shape)}"
        )
    return torch.view_as_complex(matrix.to(A.real.dtype).contiguous().unflatten(-1, (u.shape[2], 2)))
