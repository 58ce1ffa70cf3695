"""Copies along visit orders, differentiable to any order: `torch.ops.vmddpm.cross_scan` and its adjoint,
`torch.ops.vmddpm.cross_merge`."""

from typing import Any

import torch
from torch import Tensor

from vmddpm_kernels.backends import by_name, reference, select
from vmddpm_kernels.backends.extension import empty
from vmddpm_kernels.checks import FLOATS, INTEGERS, check_axes, check_shape, check_tensor
from vmddpm_kernels.interception import Ways, entry_below_autograd, in_forward_mode, refuse_batched
from vmddpm_kernels.library import define, differentiate, directly, vmap_by_loop
from vmddpm_kernels.routes import RouteOrder, check_scan_code, private_copy

_ORDER = len(RouteOrder._fields)


def cross_scan(x: Tensor, order: RouteOrder, channel_first: bool, backend: str | None = None) -> Tensor:
    """x (B, K or 1, L, C) in pixel order -> (B, K, L, C): step l of route k reads pixel table[k, l].

    With `channel_first` the result is (B, K, C, L) in memory, otherwise (B, L, K, C)."""
    chosen = select(backend, x)
    call = _scan if chosen == reference.NAME else _SCAN.way_in(x, order.table)
    if call is cross_scan_op:
        _check("x", x, order, one_image=True)
    result: Tensor = call(x, *order, channel_first, chosen)
    return result


def cross_merge(
    y: Tensor, order: RouteOrder, sum_routes: bool, channel_first: bool, backend: str | None = None
) -> Tensor:
    """The adjoint of `cross_scan`: y (B, K, L, C) -> (B, 1, L, C), the sum over routes, or (B, K, L, C)."""
    chosen = select(backend, y)
    call = _merge if chosen == reference.NAME else _MERGE.way_in(y, order.table)
    if call is cross_merge_op:
        _check("y", y, order, one_image=False)
    result: Tensor = call(y, *order, sum_routes, channel_first, chosen)
    return result


def _check(name: str, tensor: Tensor, order: RouteOrder, one_image: bool) -> None:
    """Raise TypeError or ValueError unless shapes, dtypes and devices fit. A backend checks the table's values."""
    check_tensor(name, tensor, None, FLOATS)
    batch, images, length, channels = check_axes(name, tensor, "B, K, L, C")
    table, height, width, scans = order
    if table is None:
        check_scan_code(scans)
        if height < 1 or width < 1 or height * width != length:
            raise ValueError(f"height and width must give the {length} pixels of {name}, got {height} x {width}")
    else:
        check_tensor("table", table, tensor, INTEGERS)
        routes = check_axes("table", table, "K, L")[0]
        if routes < 1:
            raise ValueError("table (K, L) must have at least one route, got K = 0")
        check_shape("table", table, "K, L", (routes, length))
    if not (one_image and images == 1):
        check_shape(name, tensor, "B, K, L, C", (batch, order.route_count(), length, channels))


def _scan(x: Tensor, *args: Any) -> Tensor:
    order, channel_first, backend = RouteOrder(*args[:_ORDER]), args[-2], args[-1]
    _check("x", x, order, one_image=True)
    return by_name(backend, x).cross_scan(x, order, channel_first)


def _scan_fake(x: Tensor, *args: Any) -> Tensor:
    order, channel_first = RouteOrder(*args[:_ORDER]), args[-2]
    _check("x", x, order, one_image=True)
    batch, _, length, channels = x.shape
    return empty((batch, order.route_count(), length, channels), channel_first, x.dtype, x.device)


def _merge(y: Tensor, *args: Any) -> Tensor:
    order, (sum_routes, channel_first, backend) = RouteOrder(*args[:_ORDER]), args[_ORDER:]
    _check("y", y, order, one_image=False)
    return by_name(backend, y).cross_merge(y, order, sum_routes, channel_first)


def _merge_fake(y: Tensor, *args: Any) -> Tensor:
    order, (sum_routes, channel_first, _) = RouteOrder(*args[:_ORDER]), args[_ORDER:]
    _check("y", y, order, one_image=False)
    batch, routes, length, channels = y.shape
    return empty((batch, 1 if sum_routes else routes, length, channels), channel_first, y.dtype, y.device)


# A table of visit orders, or None for the four routes numbered `scans` over height x width pixels.
_ROUTES = "Tensor? table, SymInt height, SymInt width, int scans"
cross_scan_op = define(
    f"cross_scan(Tensor x, {_ROUTES}, bool channel_first, str backend) -> Tensor", _scan, _scan_fake
)
cross_merge_op = define(
    f"cross_merge(Tensor y, {_ROUTES}, bool sum_routes, bool channel_first, str backend) -> Tensor",
    _merge,
    _merge_fake,
)


class CrossScan(torch.autograd.Function):
    """`cross_scan`, linear: differentiable to any order, its backward is `CrossMerge`. The arguments of `apply` are
    those of the operator."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        result: Tensor = entry_below_autograd(cross_scan_op, _scan, args[:2])(*args)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, *order = inputs[: 1 + _ORDER]
        ctx.options = inputs[1 + _ORDER :]
        _keep(ctx, order)
        ctx.one_image = x.shape[1] == 1 and output.shape[1] > 1

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        refuse_batched(dy)
        order = _kept(ctx)
        return _MERGE.way_in(dy, order.table)(dy, *order, ctx.one_image, *ctx.options), *[None] * 6

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: None) -> Any:
        return CrossScan.apply(dx, *_kept(ctx), *ctx.options)  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return vmap_by_loop(CrossScan, info, in_dims, *args)


class CrossMerge(torch.autograd.Function):
    """`cross_merge`, linear: differentiable to any order, its backward is `CrossScan`. The arguments of `apply` are
    those of the operator."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        result: Tensor = entry_below_autograd(cross_merge_op, _merge, args[:2])(*args)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, *order = inputs[: 1 + _ORDER]
        ctx.sum_routes, *ctx.options = inputs[1 + _ORDER :]
        _keep(ctx, order)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
        refuse_batched(dx)
        order = _kept(ctx)
        return _SCAN.way_in(dx, order.table)(dx, *order, *ctx.options), *[None] * 7

    @staticmethod
    def jvp(ctx: Any, dy: Tensor, *_: None) -> Any:
        return CrossMerge.apply(dy, *_kept(ctx), ctx.sum_routes, *ctx.options)  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return vmap_by_loop(CrossMerge, info, in_dims, *args)


def _keep(ctx: Any, order: list[Any]) -> None:
    """Save the order of the routes with a copy of the table, which the caller cannot change before the backward."""
    table, *ctx.sizes = order
    if table is not None:
        table = private_copy(table)
        ctx.save_for_backward(table)
        if in_forward_mode():
            ctx.save_for_forward(table)


def _kept(ctx: Any) -> RouteOrder:
    return RouteOrder(ctx.saved_tensors[0] if ctx.saved_tensors else None, *ctx.sizes)


differentiate(cross_scan_op, CrossScan, _scan)
differentiate(cross_merge_op, CrossMerge, _merge)
_SCAN = Ways(cross_scan_op, CrossScan.apply, directly(CrossScan, _scan), _scan)
_MERGE = Ways(cross_merge_op, CrossMerge.apply, directly(CrossMerge, _merge), _merge)
