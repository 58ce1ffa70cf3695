"""The recurrence as a parallel scan in plain PyTorch, without compiled kernels.

h_l = a_l h_{l-1} + b_l composes as (a, b) . (a', b') = (a a', a' b + b'), an associative product, so all prefixes
follow from log2(L) doublings (Hillis and Steele). Its gradient is the same scan run backwards.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def _prefixes(a: Tensor, b: Tensor) -> Tensor:
    """a, b (B, L, D, N) -> h (B, L, D, N), h_{-1} = 0."""
    length, reach = a.shape[1], 1
    while reach < length:
        b = torch.cat([b[:, :reach], b[:, reach:] + a[:, reach:] * b[:, :-reach]], dim=1)
        if 2 * reach < length:
            a = torch.cat([a[:, :reach], a[:, reach:] * a[:, :-reach]], dim=1)
        reach *= 2
    return b


class ParallelScan(torch.autograd.Function):
    """h_l = a_l h_{l-1} + b_l for a, b (B, L, D, N)."""

    @staticmethod
    def forward(ctx, a, b):
        h = _prefixes(a, b)
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    def backward(ctx, dh):
        a, h = ctx.saved_tensors
        # g_l = dh_l + a_{l+1} g_{l+1}: the same recurrence from the end.
        later = F.pad(a[:, 1:], (0, 0, 0, 0, 0, 1)).flip(1)
        g = _prefixes(later, dh.flip(1)).flip(1)
        return g * F.pad(h[:, :-1], (0, 0, 0, 0, 1, 0)), g
