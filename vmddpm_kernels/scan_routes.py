"""Copies along visit orders, differentiable to any order: what `cross_scan` and `cross_merge` are made of."""

from typing import Any

import torch
from torch import Tensor

from vmddpm_kernels.backends import implementation, reference, select


def apply_routes(x: Tensor, table: Tensor, channel_first: bool, backend: str | None = None) -> Tensor:
    """x (B, K or 1, L, C) in pixel order -> (B, K, L, C): step l of route k reads pixel table[k, l].

    `channel_first` asks for memory in (B, K, C, L) order behind the same logical shape, otherwise (B, L, K, C)."""
    chosen = select(backend, x)
    if chosen == "reference":
        return _as_layout(reference.scan_routes(x, table), channel_first)
    return ScanRoutes.apply(x, table, channel_first, chosen)


def apply_merge(y: Tensor, table: Tensor, merge: bool, channel_first: bool, backend: str | None = None) -> Tensor:
    """The adjoint of `apply_routes`: y (B, K, L, C) -> (B, 1, L, C), the sum over routes, or (B, K, L, C)."""
    chosen = select(backend, y)
    if chosen == "reference":
        return _as_layout(reference.merge_routes(y, table, merge=merge), channel_first)
    return MergeRoutes.apply(y, table, merge, channel_first, chosen)


def _as_layout(t: Tensor, channel_first: bool) -> Tensor:
    if channel_first:
        return t.transpose(2, 3).contiguous().transpose(2, 3)
    return t.transpose(1, 2).contiguous().transpose(1, 2)


class ScanRoutes(torch.autograd.Function):
    """`apply_routes` on the compiled kernels; differentiable to any order, its backward is `MergeRoutes`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, channel_first: bool, backend: str) -> Tensor:
        ctx.save_for_backward(table)
        ctx.merge = x.shape[1] == 1 and table.shape[0] > 1
        ctx.channel_first, ctx.backend = channel_first, backend
        return implementation(backend).scan_routes(x, table, channel_first=channel_first)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (table,) = ctx.saved_tensors
        return MergeRoutes.apply(dy.resolve_neg(), table, ctx.merge, ctx.channel_first, ctx.backend), None, None, None


class MergeRoutes(torch.autograd.Function):
    """`apply_merge` on the compiled kernels; differentiable to any order, its backward is `ScanRoutes`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, table: Tensor, merge: bool, channel_first: bool, backend: str) -> Tensor:
        ctx.save_for_backward(table)
        ctx.channel_first, ctx.backend = channel_first, backend
        return implementation(backend).merge_routes(y, table, merge=merge, channel_first=channel_first)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
        (table,) = ctx.saved_tensors
        return ScanRoutes.apply(dx.resolve_neg(), table, ctx.channel_first, ctx.backend), None, None, None, None
