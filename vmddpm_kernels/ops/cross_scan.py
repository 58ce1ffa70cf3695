"""Copies along visit orders, differentiable to any order: `torch.ops.vmddpm.cross_scan` and its adjoint,
`torch.ops.vmddpm.cross_merge`."""

from typing import Any

import torch
from torch import Tensor

from vmddpm_kernels.backends import by_name, reference, select
from vmddpm_kernels.backends.extension import empty
from vmddpm_kernels.checks import FLOATS, INTEGERS, check_axes, check_shape, check_tensor
from vmddpm_kernels.interception import entry, entry_below_autograd, in_forward_mode
from vmddpm_kernels.library import define, differentiate, vmap_by_loop
from vmddpm_kernels.routes import private_copy


def scan_routes(x: Tensor, table: Tensor, channel_first: bool, backend: str | None = None) -> Tensor:
    """x (B, K or 1, L, C) in pixel order -> (B, K, L, C): step l of route k reads pixel table[k, l].

    `channel_first` asks for memory in (B, K, C, L) order behind the same logical shape, otherwise (B, L, K, C)."""
    chosen = select(backend, x)
    if chosen == reference.NAME:
        _check("x", x, table, shared=True)
        return by_name(chosen, x).cross_scan(x, table, channel_first)
    result: Tensor = entry(cross_scan, CrossScan, _scan, (x, table))(x, table, channel_first, chosen)
    return result


def merge_routes(
    y: Tensor, table: Tensor, sum_routes: bool, channel_first: bool, backend: str | None = None
) -> Tensor:
    """The adjoint of `scan_routes`: y (B, K, L, C) -> (B, 1, L, C), the sum over routes, or (B, K, L, C)."""
    chosen = select(backend, y)
    if chosen == reference.NAME:
        _check("y", y, table, shared=False)
        return by_name(chosen, y).cross_merge(y, table, sum_routes, channel_first)
    result: Tensor = entry(cross_merge, CrossMerge, _merge, (y, table))(y, table, sum_routes, channel_first, chosen)
    return result


def _check(name: str, tensor: Tensor, table: Tensor, shared: bool) -> None:
    """Raise TypeError or ValueError unless shapes, dtypes and devices fit. A backend checks the table's values."""
    check_tensor(name, tensor, None, FLOATS)
    batch, images, length, channels = check_axes(name, tensor, "B, K, L, C")
    check_tensor("table", table, tensor, INTEGERS)
    routes = check_axes("table", table, "K, L")[0]
    if routes < 1:
        raise ValueError("table (K, L) must have at least one route, got K = 0")
    check_shape("table", table, "K, L", (routes, length))
    if not (shared and images == 1):
        check_shape(name, tensor, "B, K, L, C", (batch, routes, length, channels))


def _scan(x: Tensor, table: Tensor, channel_first: bool, backend: str) -> Tensor:
    _check("x", x, table, shared=True)
    return by_name(backend, x).cross_scan(x, table, channel_first)


def _scan_fake(x: Tensor, table: Tensor, channel_first: bool, backend: str) -> Tensor:
    _check("x", x, table, shared=True)
    batch, _, length, channels = x.shape
    return empty((batch, table.shape[0], length, channels), channel_first, x.dtype, x.device)


def _merge(y: Tensor, table: Tensor, sum_routes: bool, channel_first: bool, backend: str) -> Tensor:
    _check("y", y, table, shared=False)
    return by_name(backend, y).cross_merge(y, table, sum_routes, channel_first)


def _merge_fake(y: Tensor, table: Tensor, sum_routes: bool, channel_first: bool, backend: str) -> Tensor:
    _check("y", y, table, shared=False)
    batch, routes, length, channels = y.shape
    return empty((batch, 1 if sum_routes else routes, length, channels), channel_first, y.dtype, y.device)


cross_scan = define(
    "cross_scan(Tensor x, Tensor table, bool channel_first, str backend) -> Tensor", _scan, _scan_fake
)
cross_merge = define(
    "cross_merge(Tensor y, Tensor table, bool sum_routes, bool channel_first, str backend) -> Tensor",
    _merge,
    _merge_fake,
)


class CrossScan(torch.autograd.Function):
    """`cross_scan`, linear: differentiable to any order, its backward is `CrossMerge`. The arguments of `apply` are
    those of the operator."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        result: Tensor = entry_below_autograd(cross_scan, _scan, args[:2])(*args)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, table, *ctx.options = inputs
        ctx.shared = x.shape[1] == 1 and table.shape[0] > 1
        _keep(ctx, table)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (table,) = ctx.saved_tensors
        call = entry(cross_merge, CrossMerge, _merge, (dy, table))
        return call(dy, table, ctx.shared, *ctx.options), None, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: None) -> Any:
        return CrossScan.apply(dx, *ctx.saved_tensors, *ctx.options)  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return vmap_by_loop(CrossScan, info, in_dims, *args)


class CrossMerge(torch.autograd.Function):
    """`cross_merge`, linear: differentiable to any order, its backward is `CrossScan`. The arguments of `apply` are
    those of the operator."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        result: Tensor = entry_below_autograd(cross_merge, _merge, args[:2])(*args)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, table, ctx.sum_routes, *ctx.options = inputs
        _keep(ctx, table)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
        (table,) = ctx.saved_tensors
        call = entry(cross_scan, CrossScan, _scan, (dx, table))
        return call(dx, table, *ctx.options), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, dy: Tensor, *_: None) -> Any:
        return CrossMerge.apply(dy, *ctx.saved_tensors, ctx.sum_routes, *ctx.options)  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return vmap_by_loop(CrossMerge, info, in_dims, *args)


def _keep(ctx: Any, table: Tensor) -> None:
    """Save a copy of the table, which nobody can change before the backward."""
    table = private_copy(table)
    ctx.save_for_backward(table)
    if in_forward_mode():
        ctx.save_for_forward(table)


differentiate(cross_scan, CrossScan, _scan)
differentiate(cross_merge, CrossMerge, _merge)
