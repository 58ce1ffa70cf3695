"""Cross scan and cross merge as VMamba defines them, in a few lines of plain PyTorch: copies, transposes and flips.
Each is the other's gradient."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Formula = Callable[[Tensor], Tensor]


def scan_channel_first(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 4, C, L): rows, columns, and both backwards."""
    batch, channels, height, width = x.shape
    xs = x.new_empty((batch, 4, channels, height * width))
    xs[:, 0] = x.flatten(2, 3)
    xs[:, 1] = x.transpose(2, 3).flatten(2, 3)
    xs[:, 2:4] = torch.flip(xs[:, 0:2], dims=[-1])
    return xs


def merge_channel_first(ys: Tensor) -> Tensor:
    """(B, 4, C, H, W) -> (B, C, L): the four sequences put back and summed."""
    batch, _, channels, height, width = ys.shape
    ys = ys.flatten(3)
    ys = ys[:, 0:2] + ys[:, 2:4].flip(dims=[-1])
    return ys[:, 0] + ys[:, 1].unflatten(2, (width, height)).transpose(2, 3).contiguous().view(batch, channels, -1)


def scan_channel_last(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, L, 4, C)"""
    batch, height, width, channels = x.shape
    xs = x.new_empty((batch, height * width, 4, channels))
    xs[:, :, 0] = x.flatten(1, 2)
    xs[:, :, 1] = x.transpose(1, 2).flatten(1, 2)
    xs[:, :, 2:4] = torch.flip(xs[:, :, 0:2], dims=[1])
    return xs


def merge_channel_last(ys: Tensor) -> Tensor:
    """(B, H, W, 4, C) -> (B, L, C)"""
    batch, height, width, _, channels = ys.shape
    ys = ys.flatten(1, 2)
    ys = ys[:, :, 0:2] + ys[:, :, 2:4].flip(dims=[1])
    return ys[:, :, 0] + ys[:, :, 1].unflatten(1, (width, height)).transpose(1, 2).reshape(batch, -1, channels)


def differentiable(formula: Formula, adjoint: Formula, pixels: int) -> Formula:
    """`formula` with `adjoint` as its gradient. Dimension `pixels` of the result becomes height and width again."""

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, t: Tensor) -> Tensor:
            ctx.shape, ctx.size = t.shape, t.shape[-2:] if pixels == -1 else t.shape[1:3]
            return formula(t)

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Tensor:
            return adjoint(dy.unflatten(pixels, ctx.size)).view(ctx.shape)

    return Differentiable.apply


cross_scan = differentiable(scan_channel_first, merge_channel_first, pixels=-1)
cross_merge = differentiable(merge_channel_first, scan_channel_first, pixels=-1)
cross_scan_channel_last = differentiable(scan_channel_last, merge_channel_last, pixels=1)
cross_merge_channel_last = differentiable(merge_channel_last, scan_channel_last, pixels=1)
