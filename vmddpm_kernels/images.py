"""Cross scan and cross merge of tensors with two to four pixel axes. On a CPU, one call of the extension does this if
the routes need no table and nothing intercepts the call; other calls rearrange the axes for the operators."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vmddpm_kernels.backends import extension, select
from vmddpm_kernels.checks import check_flag, check_float
from vmddpm_kernels.curves import LETTERS, route_names
from vmddpm_kernels.interception import Way, apply_of, refuse_batched, untraced, way_in
from vmddpm_kernels.ops.cross_scan import cross_merge, cross_scan
from vmddpm_kernels.routes import route_order

Size = tuple[int, ...]  # size of an image or a volume whose pixels are flattened to one axis


class Layout(NamedTuple):
    """The layout arguments of `cross_scan` and `cross_merge`, and the routes."""

    in_channel_first: bool
    out_channel_first: bool
    one_by_one: bool
    scans: int | str


def scan_image(
    x: Tensor, layout: Layout, permutation: Tensor | None, backend: str | None, size: Size | None = None
) -> Tensor:
    """`cross_scan`. x has an axis for each pixel dimension, the result one axis for all pixels; with `size` (H, W), as
    for the gradient of `merge_image`, x has one pixel axis and the result several."""
    y = None if permutation is not None else _at_once(x, layout, backend, size, merge=False)
    if y is not None:
        return y
    check_float("x", x)
    _check_flags(layout)
    in_channel_first, out_channel_first, one_by_one, scans = layout
    if size is not None:
        x = x.unflatten(_pixel_axis(in_channel_first, one_by_one), size)
    image, extents = _to_routes(x, in_channel_first, one_by_one, scans, "x")
    order = route_order(extents, scans, permutation, x.device)
    sequences = cross_scan(image, order, out_channel_first, backend)                   # (B, K, L, C)
    y = sequences.transpose(2, 3) if out_channel_first else sequences.transpose(1, 2)
    return y if size is None else y.unflatten(_pixel_axis(out_channel_first, True), size)


def merge_image(
    y: Tensor, layout: Layout, permutation: Tensor | None, backend: str | None, size: Size | None = None
) -> Tensor:
    """`cross_merge`; pixels and `size` as in `scan_image`."""
    x = None if permutation is not None else _at_once(y, layout, backend, size, merge=True)
    if x is not None:
        return x
    check_float("y", y)
    _check_flags(layout)
    in_channel_first, out_channel_first, one_by_one, scans = layout
    if size is not None:
        y = y.unflatten(_pixel_axis(out_channel_first, True), size)
    sequences, extents = _to_routes(y, out_channel_first, True, scans, "y")
    order = route_order(extents, scans, permutation, y.device)
    pixels = cross_merge(sequences, order, not one_by_one, in_channel_first, backend)  # (B, K or 1, L, C)
    if not one_by_one:
        pixels = pixels[:, 0]
        x = pixels.transpose(1, 2) if in_channel_first else pixels
    else:
        x = pixels.transpose(2, 3) if in_channel_first else pixels.transpose(1, 2)
    return x if size is None else x.unflatten(_pixel_axis(in_channel_first, one_by_one), size)


def _at_once(tensor: Tensor, layout: Layout, backend: str | None, size: Size | None, *, merge: bool) -> Tensor | None:
    """The result from one call of the extension, or None if the call is intercepted or not for the backend `cpu`."""
    if tensor is None or (size is not None and len(size) != 2):
        return None
    way = way_in((tensor,))
    if (way is not Way.KERNEL and way is not Way.AUTOGRAD) or select(backend, tensor) != "cpu":
        return None
    height, width = size or (0, 0)
    result = extension.native.cross_image(tensor, height, width, *layout, merge, torch.get_num_threads())
    if result is None or way is Way.KERNEL:
        return result
    followed: Tensor = _apply(tensor, (result, layout, size, merge))
    return followed


class _AtOnce(torch.autograd.Function):
    """apply(tensor, (result, layout, size, merge)): `result` with the adjoint copy as its gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, call: tuple[Tensor, Layout, Size | None, bool]) -> Tensor:
        result, *ctx.call = call
        ctx.shape = tensor.shape
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        refuse_batched(gradient)
        layout, size, merge = ctx.call
        if size is None:  # the pixels have one axis in the gradient and two in the tensor
            axis = _pixel_axis(layout[merge], merge or layout.one_by_one)
            size = ctx.shape[axis : axis + 2]
        else:
            size = None
        adjoint = scan_image if merge else merge_image
        return adjoint(gradient, layout, None, "cpu", size), None


_apply = apply_of(_AtOnce)


def _pixel_axis(channel_first: bool, per_route: bool) -> int:
    """The first axis of the pixels of (B, C, H, W) or (B, H, W, C), with routes (B, 4, C, H, W) or (B, H, W, 4, C)."""
    return (3 if per_route else 2) if channel_first else 1


def _check_flags(layout: Layout) -> None:
    for name in ("in_channel_first", "out_channel_first", "one_by_one"):
        check_flag(name, getattr(layout, name))


def _to_routes(
    x: Tensor, channel_first: bool, per_route: bool, scans: int | str, name: str
) -> tuple[Tensor, Size]:
    """An image or one for each route -> (B, 1 or K, L, C) and (H, W) or (D, H, W)."""
    size = untraced(_image_size, x, channel_first, per_route, scans, name)
    if not per_route:
        x = x.unsqueeze(1 if channel_first else -2)
    first = 3 if channel_first else 1
    pixels = range(first, first + len(size))
    image = x.permute(0, 1, *pixels, 2) if channel_first else x.permute(0, -2, *pixels, -1)  # (B, K, D, H, W, C)
    return image.flatten(2, -2), size


def _image_size(x: Tensor, channel_first: bool, per_route: bool, scans: int | str, name: str) -> Size:
    axes = x.dim() - (3 if per_route else 2)
    fits = 2 <= axes <= len(LETTERS)
    count = len(route_names(scans, axes if fits else 2)) if per_route else 1
    if not fits or (per_route and x.shape[1 if channel_first else -2] != count):
        shapes = [_shape(channel_first, per_route, count, n) for n in ([axes] if fits else [2, 3])]
        on_one_axis = "; with its pixels on one axis, as cross_scan returns it, give size=(height, width)"
        raise ValueError(
            f"{name} must have shape {' or '.join(shapes)}, got {tuple(x.shape)}"
            f"{on_one_axis if name == 'y' and x.dim() == 4 else ''}"
        )
    size = tuple(x.shape[-axes:] if channel_first else x.shape[1 : 1 + axes])
    if min(size) == 0:
        raise ValueError(
            f"{name} {_shape(channel_first, per_route, count, axes)} must have at least one pixel, got {tuple(x.shape)}"
        )
    return size


def _shape(channel_first: bool, per_route: bool, count: int, axes: int) -> str:
    """The shape of an image, for error messages."""
    pixels, channel = list(LETTERS[-axes:].upper()), [str(count), "C"] if per_route else ["C"]
    return f"({', '.join(['B', *channel, *pixels] if channel_first else ['B', *pixels, *channel])})"
