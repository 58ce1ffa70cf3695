"""Plain PyTorch: the definition of every operator, on any device and in any floating dtype, differentiable
as often as one likes. Written to be read and to be compared against, one step at a time; not to be fast."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vmddpm_kernels.routes import check_table


def available() -> tuple[bool, str]:
    return True, "PyTorch, any device and floating dtype, differentiable to any order"


def _gather(x: Tensor, table: Tensor) -> Tensor:
    """x (B, K or 1, L, D) in pixel order -> (B, K, L, D) in the order of each route."""
    routes, length = table.shape
    index = table.long()[None, :, :, None].expand(x.shape[0], routes, length, x.shape[3])
    return x.expand(-1, routes, -1, -1).gather(2, index)


def _inverse(table: Tensor) -> Tensor:
    return table.long().argsort(dim=1).to(table.dtype)


def scan_routes(x: Tensor, table: Tensor) -> Tensor:
    """Cross scan: x (B, K or 1, L, C) in pixel order -> (B, K, L, C), step l of route k reads table[k, l]."""
    check_table(table, x.shape[2])
    return _gather(x, table)


def merge_routes(y: Tensor, table: Tensor, *, merge: bool) -> Tensor:
    """Cross merge, the adjoint of `scan_routes`: y (B, K, L, C) back to pixel order, summed over k if `merge`.

    The sum is taken in float32 (float64 for float64) and rounded once."""
    check_table(table, y.shape[2])
    pixels = _gather(y, _inverse(table))
    if not merge:
        return pixels
    accumulate = torch.promote_types(y.dtype, torch.float32)
    return pixels.to(accumulate).sum(1, keepdim=True).to(y.dtype)


def zoh_factor(v: Tensor) -> Tensor:
    """expm1(v) / v, 1 at v = 0: the zero-order-hold weight of paper Eq. 6."""
    small = v.abs() < 1e-4
    safe = torch.where(small, torch.ones_like(v), v)
    series = 1 + v / 2 * (1 + v / 3 * (1 + v / 4))
    return torch.where(small, series, torch.expm1(safe) / safe)


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    table: Tensor | None,
    *,
    delta_softplus: bool,
    zoh: bool,
) -> tuple[Tensor, Tensor]:
    """h_l = exp(delta A) h_{l-1} + delta B x (paper Eq. 5-6), y_l = C h_l + D x, along every route.

    x (B, K, L, D), or (B, L, D) shared by the routes; delta (B, K, L, D); A (K, D, N); B, C (B, K, L, N);
    D, delta_bias (K, D); initial_state (B, K, D, N); table (K, L). Returns y in x's shape and dtype, summed over the
    routes if they share x, and the last state (B, K, D, N) in the dtype of the accumulation.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    for tensor in (delta, A, B, C):
        dtype = torch.promote_types(dtype, tensor.dtype)
    out_dtype, merge = x.dtype, x.dim() == 3
    if merge:
        x = x.unsqueeze(1)
    batch, K, length, dim = delta.shape
    x, delta, A, B, C = (t.to(dtype) for t in (x, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)[:, None, :]
    if delta_softplus:
        delta = F.softplus(delta)
    if table is not None:
        check_table(table, length)
        x, delta, B, C = (_gather(t, table) for t in (x, delta, B, C))
    else:
        x = x.expand(-1, K, -1, -1)

    if initial_state is None:
        h = torch.zeros(batch, K, dim, A.shape[2], dtype=dtype, device=x.device)
    else:
        h = initial_state.to(dtype)
    ys = []
    # unbind, not indexing: the gradient of an index is a tensor of the whole sequence, at every step.
    for x_l, delta_l, B_l, C_l in zip(*(t.unbind(2) for t in (x, delta, B, C))):
        v = delta_l[..., None] * A                                              # (B, K, D, N)
        drive = (delta_l * x_l)[..., None] * B_l[:, :, None, :]                 # (B, K, D, N)
        if zoh:
            drive = drive * zoh_factor(v)
        h = torch.exp(v) * h + drive
        ys.append((h * C_l[:, :, None, :]).sum(-1))                             # (B, K, D)
    y = torch.stack(ys, dim=2) if ys else x.new_zeros(batch, K, 0, dim)
    if D is not None:
        y = y + D.to(dtype)[:, None, :] * x
    if table is not None:
        y = _gather(y, _inverse(table))
    if merge:
        y = y.sum(1)
    return y.to(out_dtype), h
