"""Causal convolutions and single steps of a selective scan in plain PyTorch, differentiable to any order."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vmddpm_kernels.interception import not_autocast, recorded_by_autograd
from vmddpm_kernels.step_inputs import ConvInputs, StateInputs


def causal_conv1d(inputs: ConvInputs, silu: bool) -> Tensor:
    """(B, L, D) in x's dtype and memory order, computed in float32 or wider and rounded once."""
    x, weight, bias, history = inputs
    dtype, before = inputs.accumulation(), weight.shape[1] - 1
    steps = x.mT.to(dtype)                                                      # (B, D, L)
    steps = F.pad(steps, (before, 0)) if history is None else torch.cat([history.mT.to(dtype), steps], dim=-1)
    if steps.shape[-1] <= before or 0 in steps.shape:  # F.conv1d raises for empty inputs
        y = steps[..., before:] * 1
    else:
        with not_autocast(x.device.type):
            y = F.conv1d(
                steps, weight.to(dtype)[:, None], None if bias is None else bias.to(dtype), groups=weight.shape[0]
            )
    y = (F.silu(y) if silu else y).to(x.dtype)
    laid_out: Tensor = y.contiguous().mT if inputs.channel_first() else y.mT.contiguous()
    return laid_out


def state_update(inputs: StateInputs, softplus: bool) -> tuple[Tensor, Tensor]:
    """y in u's shape and dtype, and the next state in the state's shape and dtype."""
    state, u, delta, A, B, C, D, z, delta_bias = inputs
    dtype = inputs.accumulation()
    heads = state.dim() == 4

    def of_heads(matrix: Tensor) -> Tensor:  # B or C -> (B, H, 1, N), or (B, 1, N)
        matrix = matrix.to(dtype)
        if heads:
            matrix = matrix.repeat_interleave(state.shape[1] // matrix.shape[1], dim=1)
        return matrix.unsqueeze(-2)

    x, steps = u.to(dtype), delta.to(dtype)
    if delta_bias is not None:
        steps = steps + delta_bias.to(dtype)
    if softplus:
        steps = F.softplus(steps)
    decay = torch.exp(steps[..., None] * A.to(dtype))                           # (B, H, P, N)
    h = decay * state.to(dtype) + (steps * x)[..., None] * of_heads(B)
    y = (h * of_heads(C)).sum(-1)
    if D is not None:
        y = y + D.to(dtype) * x
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(u.dtype), h.to(state.dtype)


def state_update_gradients(
    inputs: StateInputs, softplus: bool, dy: Tensor | None, dstate: Tensor | None
) -> list[Tensor | None]:
    """The gradients of the inputs, None for None, from those of y and the next state, None for zero. Differentiable."""
    state, u, delta, A, B, C, D, z, delta_bias = inputs
    dtype = inputs.accumulation()
    heads = state.shape[1] if state.dim() == 4 else 1
    groups = B.shape[1] if state.dim() == 4 else 1

    def of_heads(t: Tensor, axes: int) -> Tensor:  # adds the axis of heads, `axes` from the end, if missing
        return t.to(dtype) if state.dim() == 4 else t.to(dtype).unsqueeze(-axes - 1)

    def of_groups(t: Tensor) -> Tensor:  # B or C -> (B, H, 1, N)
        return of_heads(t, 1).repeat_interleave(heads // groups, dim=1).unsqueeze(-2)

    h, x, raw, rate = of_heads(state, 2), of_heads(u, 1), of_heads(delta, 1), of_heads(A, 2)
    if delta_bias is not None:
        raw = raw + of_heads(delta_bias, 1)
    steps = F.softplus(raw) if softplus else raw
    decay = torch.exp(steps[..., None] * rate)                                  # (B, H, P, N)
    after = decay * h + (steps * x)[..., None] * of_groups(B)
    dafter = torch.zeros_like(after) if dstate is None else of_heads(dstate, 2)
    skip = torch.zeros((), dtype=dtype, device=x.device) if D is None else of_heads(D, 1)
    dy = torch.zeros_like(x) if dy is None else of_heads(dy, 1)                 # (B, H, P)
    dz = None
    if z is not None:
        gate = of_heads(z, 1)
        sigmoid = torch.sigmoid(gate)
        dz = dy * ((after * of_groups(C)).sum(-1) + skip * x) * sigmoid * (1 + gate * (1 - sigmoid))
        dy = dy * gate * sigmoid
    dafter = dafter + dy[..., None] * of_groups(C)
    ddecay = dafter * h * decay
    along_B = (dafter * of_groups(B)).sum(-1)
    dsteps = (ddecay * rate).sum(-1) + x * along_B
    draw = dsteps * torch.where(raw > 20, torch.ones_like(raw), torch.sigmoid(raw)) if softplus else dsteps

    def summed_by_group(t: Tensor) -> Tensor:  # (B, H, P, N) -> (B, G, N)
        total: Tensor = t.unflatten(1, (groups, heads // groups)).sum((2, 3))
        return total

    grads = (
        dafter * decay, dy * skip + steps * along_B, draw, (ddecay * steps[..., None]).sum(0),
        summed_by_group(dafter * (steps * x)[..., None]), summed_by_group(after * dy[..., None]),
        (dy * x).sum(0), dz, draw.sum(0),
    )  # fmt: skip
    return [
        None if t is None or grad is None else grad.reshape(t.shape).to(t.dtype) for grad, t in zip(grads, inputs)
    ]


def gradients(
    function: Callable[[Sequence[Tensor | None]], Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The gradients of the inputs of a function of plain PyTorch, None for None, from those of its results."""
    with recorded_by_autograd():
        leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
        results = function(leaves)
    given = [(r, g.to(r.dtype)) for r, g in zip(results, grads) if g is not None and r.requires_grad]
    present = [t for t in leaves if t is not None]
    if not given:
        return [None if t is None else torch.zeros_like(t) for t in inputs]
    found = iter(
        torch.autograd.grad(
            [r for r, _ in given], present, [g for _, g in given], allow_unused=True, materialize_grads=True
        )
    )
    return [None if t is None else next(found) for t in inputs]


class ReferenceSteps:
    """These operators in plain PyTorch, for backends without kernels for them."""

    def causal_conv1d(self, inputs: ConvInputs, silu: bool) -> Tensor:
        return causal_conv1d(inputs, silu)

    def causal_conv1d_backward(
        self, dy: Tensor, inputs: ConvInputs, silu: bool, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        return gradients(lambda leaves: [causal_conv1d(ConvInputs(*leaves), silu)], inputs, [dy])  # type: ignore[arg-type]

    def causal_conv1d_update(
        self, x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
    ) -> Tensor:
        before = state[:, state.shape[1] - weight.shape[1] + 1 :]
        y = self.causal_conv1d(ConvInputs(x, weight, bias, before), silu)
        state.copy_(torch.cat([state, x.to(state.dtype)], dim=1)[:, x.shape[1] :])
        return y

    def state_update(self, inputs: StateInputs, softplus: bool) -> Tensor:
        y, state = state_update(inputs, softplus)
        inputs.state.copy_(state)
        return y
