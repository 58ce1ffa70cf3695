"""The recurrence as a parallel scan in plain PyTorch, without compiled kernels.

h_l = a_l h_{l-1} + b_l composes as (a, b) . (a', b') = (a a', a' b + b'), an associative product, so all prefixes
follow from log2(L) doublings (Hillis and Steele). Its gradient is the same scan run backwards.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def _prefixes(a: Tensor, b: Tensor) -> Tensor:
    """a, b (..., L, N) -> h (..., L, N), h_{-1} = 0."""
    length, reach = a.shape[-2], 1
    while reach < length:
        b = torch.cat([b[..., :reach, :], b[..., reach:, :] + a[..., reach:, :] * b[..., :-reach, :]], dim=-2)
        reach *= 2
        if reach < length:
            half = reach // 2
            a = torch.cat([a[..., :half, :], a[..., half:, :] * a[..., :-half, :]], dim=-2)
    return b


class ParallelScan(torch.autograd.Function):
    """h_l = a_l h_{l-1} + b_l for a, b (..., L, N)."""

    @staticmethod
    def forward(ctx, a, b):
        h = _prefixes(a, b)
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    def backward(ctx, dh):
        a, h = ctx.saved_tensors
        # g_l = dh_l + a_{l+1} g_{l+1}: the same recurrence from the end.
        later = F.pad(a[..., 1:, :], (0, 0, 0, 1)).flip(-2)
        g = _prefixes(later, dh.flip(-2)).flip(-2)
        return g * F.pad(h[..., :-1, :], (0, 0, 1, 0)), g


def cross_selective_scan(x, delta, A, B, C, D, delta_bias, table):
    """vmddpm_kernels.cross_selective_scan by `ParallelScan`: gathers routes, scans and merges."""
    batch, K, length, dim = delta.shape
    index = table.long()[None, :, :, None]

    def gather(t):  # (B, K, L, C) in pixel order -> in the order of the routes
        return t.gather(2, index.expand(batch, K, length, t.shape[3]))

    xs = gather(x[:, None].expand(-1, K, -1, -1)).transpose(2, 3)                       # (B, K, D, L)
    deltas = F.softplus(gather(delta) + delta_bias[:, None]).transpose(2, 3)            # (B, K, D, L)
    B, C = gather(B), gather(C)                                                         # (B, K, L, N)
    a = torch.exp(deltas[..., None] * A[:, :, None])                                    # (B, K, D, L, N)
    b = (deltas * xs)[..., None] * B[:, :, None]                                        # (B, K, D, L, N)
    h = ParallelScan.apply(a.flatten(1, 2), b.flatten(1, 2)).unflatten(1, (K, dim))
    y = torch.einsum("bkdln,bkln->bkld", h, C) + D[:, None] * xs.transpose(2, 3)        # (B, K, L, D)
    return y.gather(2, table.long().argsort(1)[None, :, :, None].expand(batch, K, length, dim)).sum(1)
