"""The steps of a CSM after its scan: norm, gate, projection. On a CPU they process blocks of pixels that stay in the
cache from one operator to the next, and the backward recomputes their intermediate results instead of saving them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vmddpm_kernels.interception import in_forward_mode, traced, transformed
from vmddpm_kernels.linear import linear, weight_gradient
from vmddpm_kernels.modules import Linear

ROWS = 256  # pixels of a block: enough for an efficient matrix product, few enough for the cache


def gated_projection(y: Tensor, gate: Tensor, norm: nn.LayerNorm, out: Linear) -> Tensor:
    """out(norm(y) * silu(gate)): y and gate (B, L, D) -> (B, L, C)."""
    if not (_is_plain(norm, nn.LayerNorm) and _is_plain(out, Linear) and out.bias is None) or not _can_use_blocks(
        y, gate, norm.weight, norm.bias, out.weight
    ):
        projected: Tensor = out(norm(y) * F.silu(gate))
        return projected
    blocks: Tensor = GatedProjection.apply(
        y.flatten(0, 1), gate.flatten(0, 1), norm.weight, norm.bias, out.weight, norm.eps
    )
    return blocks.view(*y.shape[:2], out.out_features)


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether the module has exactly this type and no hooks."""
    return type(module) is kind and not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _can_use_blocks(*tensors: Tensor) -> bool:
    """Whether all tensors are plain CPU tensors, and no compiler, tracer, transform or autocast is active. Half
    precision is excluded, because sums of many blocks would lose digits."""
    dtype = tensors[0].dtype
    return (
        dtype in (torch.float32, torch.float64)
        and all(type(t) in (Tensor, nn.Parameter) and t.is_cpu and t.dtype == dtype for t in tensors)
        and not torch.compiler.is_compiling()
        and not (traced() or transformed() or in_forward_mode() or torch.is_autocast_enabled("cpu"))
    )


class GatedProjection(torch.autograd.Function):
    """silu(gate) times the layer norm of y, times the weight: y and gate (T, D), weight (C, D) -> (T, C)."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(y, gate, scale, shift, weight)
        ctx.eps = eps
        projected = y.new_empty(len(y), len(weight))
        for y_b, gate_b, projected_b in zip(y.split(ROWS), gate.split(ROWS), projected.split(ROWS)):
            gated = F.layer_norm(y_b, scale.shape, scale, shift, eps).mul_(F.silu(gate_b))
            projected_b.copy_(linear(gated, weight))
        return projected

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, gate, scale, shift, weight = inputs = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient will be differentiated again
            projected = F.linear(F.layer_norm(y, scale.shape, scale, shift, ctx.eps) * F.silu(gate), weight)
            differentiable = [t for t in inputs if t.requires_grad]
            grads = iter(torch.autograd.grad(projected, differentiable, grad, create_graph=True))
            return *(next(grads) if t.requires_grad else None for t in inputs), None
        dy, dgate = torch.empty_like(y), torch.empty_like(gate)
        dweight: Tensor | None = None
        dscale, dshift = torch.zeros_like(scale), torch.zeros_like(shift)
        for y_b, gate_b, grad_b, dy_b, dgate_b in zip(*(t.split(ROWS) for t in (y, gate, grad, dy, dgate))):
            normed, mean, rstd = torch.native_layer_norm(y_b, scale.shape, scale, shift, ctx.eps)
            opened = F.silu(gate_b)
            dgated = linear(grad_b, weight.mT)                                  # (T, D)
            dweight_b = weight_gradient(normed * opened, grad_b)
            dweight = dweight_b if dweight is None else dweight.add_(dweight_b)
            torch.ops.aten.silu_backward.grad_input(normed.mul_(dgated), gate_b, grad_input=dgate_b)
            dy_b[:], dscale_b, dshift_b = torch.ops.aten.native_layer_norm_backward(
                opened.mul_(dgated), y_b, scale.shape, mean, rstd, scale, shift, [True] * 3
            )
            dscale += dscale_b
            dshift += dshift_b
        return dy, dgate, dscale, dshift, dweight, None
