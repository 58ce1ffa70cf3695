"""Copies along visit orders, differentiable to any order: what `cross_scan` and `cross_merge` are made of."""

from typing import Any

import torch
from torch import Tensor

from vmddpm_kernels import ops
from vmddpm_kernels.backends import reference, select
from vmddpm_kernels.library import below_autograd, call, differentiate, vmap_by_loop


def apply_routes(x: Tensor, table: Tensor, channel_first: bool, backend: str | None = None) -> Tensor:
    """x (B, K or 1, L, C) in pixel order -> (B, K, L, C): step l of route k reads pixel table[k, l].

    `channel_first` asks for memory in (B, K, C, L) order behind the same logical shape, otherwise (B, L, K, C)."""
    chosen = select(backend, x)
    if chosen == "reference":
        return _as_layout(reference.scan_routes(x, table), channel_first)
    return call(ops.scan_routes, ScanRoutes, x.requires_grad, x, table, channel_first, chosen)


def apply_merge(y: Tensor, table: Tensor, merge: bool, channel_first: bool, backend: str | None = None) -> Tensor:
    """The adjoint of `apply_routes`: y (B, K, L, C) -> (B, 1, L, C), the sum over routes, or (B, K, L, C)."""
    chosen = select(backend, y)
    if chosen == "reference":
        return _as_layout(reference.merge_routes(y, table, merge=merge), channel_first)
    return call(ops.merge_routes, MergeRoutes, y.requires_grad, y, table, merge, channel_first, chosen)


def _as_layout(t: Tensor, channel_first: bool) -> Tensor:
    if channel_first:
        return t.transpose(2, 3).contiguous().transpose(2, 3)
    return t.transpose(1, 2).contiguous().transpose(1, 2)


class ScanRoutes(torch.autograd.Function):
    """`apply_routes` on the compiled kernels; differentiable to any order, its backward is `MergeRoutes`.

    The arguments of `apply` are those of `ops.scan_routes`."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return below_autograd(ops.scan_routes, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, table, channel_first, backend = inputs
        ctx.save_for_backward(table)
        ctx.options = x.shape[1] == 1 and table.shape[0] > 1, channel_first, backend

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (table,) = ctx.saved_tensors
        return call(ops.merge_routes, MergeRoutes, True, dy.resolve_neg(), table, *ctx.options), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return vmap_by_loop(ScanRoutes, info, in_dims, *args)


class MergeRoutes(torch.autograd.Function):
    """`apply_merge` on the compiled kernels; differentiable to any order, its backward is `ScanRoutes`.

    The arguments of `apply` are those of `ops.merge_routes`."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return below_autograd(ops.merge_routes, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, table, _, *ctx.options = inputs
        ctx.save_for_backward(table)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
        (table,) = ctx.saved_tensors
        return call(ops.scan_routes, ScanRoutes, True, dx.resolve_neg(), table, *ctx.options), None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return vmap_by_loop(MergeRoutes, info, in_dims, *args)


differentiate(ops.scan_routes, ScanRoutes)
differentiate(ops.merge_routes, MergeRoutes)
