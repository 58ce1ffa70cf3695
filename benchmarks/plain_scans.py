"""The selective scan in plain PyTorch, without kernels, for torch.compile: all states of the sequence are in memory,
computed one step at a time or by PyTorch's scan operators."""

from collections.abc import Callable

import torch
import torch._dynamo
from torch import Tensor
from torch._higher_order_ops import associative_scan, scan
from torch.nn import functional as F

torch._dynamo.config.capture_scalar_outputs = True  # without it torch 2.13 does not compile `by_scan`

States = Callable[[Tensor, Tensor], Tensor]


def step_loop(a: Tensor, b: Tensor) -> Tensor:
    """h_l = a_l h_{l-1} + b_l for a, b (B, D, L, N), h_{-1} = 0."""
    h, states = torch.zeros_like(b[:, :, 0]), []
    for l in range(b.shape[2]):
        h = a[:, :, l] * h + b[:, :, l]
        states.append(h)
    return torch.stack(states, dim=2)


def by_associative_scan(a: Tensor, b: Tensor) -> Tensor:
    def combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    mode = "pointwise" if b.is_cuda else "generic"
    return associative_scan(combine, (a, b), dim=2, combine_mode=mode)[1]


def by_scan(a: Tensor, b: Tensor) -> Tensor:
    def step(h: Tensor, now: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h = now[0] * h + now[1]
        return h, h.clone()

    return scan(step, torch.zeros_like(b[:, :, 0]), (a.movedim(2, 0), b.movedim(2, 0)))[1].movedim(0, 2)


def selective_scan(
    states: States, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor
) -> Tensor:
    """u, delta (B, D, L), A (D, N), B, C (B, N, L), D, bias (D) -> y (B, D, L), half precision in float32."""
    x, delta, B, C = (t.float() for t in (u, delta, B, C))
    delta = F.softplus(delta + bias[:, None])
    a = torch.exp(delta[..., None] * A[:, None])                                # (B, D, L, N)
    b = (delta * x)[..., None] * B.transpose(1, 2)[:, None]                     # (B, D, L, N)
    y = torch.einsum("bdln,bnl->bdl", states(a, b), C) + D[:, None] * x
    return y.to(u.dtype)
