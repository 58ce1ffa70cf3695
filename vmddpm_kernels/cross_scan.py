"""Cross scan and cross merge: an image to four sequences and back (VMamba, arXiv 2401.10166), as pure copies."""

from typing import Any

import torch
from torch import Tensor

from vmddpm_kernels import ops
from vmddpm_kernels.backends import reference, select
from vmddpm_kernels.checks import check_float
from vmddpm_kernels.library import below_autograd, call, differentiate, vmap_by_loop
from vmddpm_kernels.routes import routes


def cross_scan(
    x: Tensor,
    in_channel_first: bool = True,
    out_channel_first: bool = True,
    one_by_one: bool = False,
    scans: int | str = 0,
    *,
    permutation: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """The image read along four routes; VMamba's `cross_scan_fn`. L = H*W.

    Args:
        x: (B, C, H, W), or (B, H, W, C) if not `in_channel_first`. With `one_by_one` route k reads an image of
            its own: (B, 4, C, H, W) or (B, H, W, 4, C). Any strides.
        out_channel_first: layout of the result.
        scans: which routes, see `vmddpm_kernels.routes`.
        permutation: (L,) pixel order of Sequence Regeneration, see `patch_permutation`.
        backend: "cuda", "cpu" or "reference"; the best available one for x's device by default.

    Returns:
        (B, 4, C, L), or (B, L, 4, C) if not `out_channel_first`; contiguous, x's dtype, an exact copy of values.

    Raises:
        TypeError, ValueError: naming the argument that does not fit.
    """
    check_float("x", x)
    image, (height, width) = _image_to_routes(x, in_channel_first, one_by_one, "x")
    table = routes(height, width, scans, permutation, device=x.device)
    y = apply_routes(image, table, out_channel_first, backend)              # (B, 4, L, C)
    return y.transpose(2, 3) if out_channel_first else y.transpose(1, 2)


def cross_merge(
    y: Tensor,
    in_channel_first: bool = True,
    out_channel_first: bool = True,
    one_by_one: bool = False,
    scans: int | str = 0,
    *,
    permutation: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """The four sequences put back at their pixels and summed: VMamba's `cross_merge_fn`, `cross_scan`'s adjoint.

    As in VMamba, `in_channel_first` names the image side (the result) and `out_channel_first` the sequence side (y).

    Args:
        y: (B, 4, C, H, W), or (B, H, W, 4, C) if not `out_channel_first`. H and W give the image's size; the
            elements are steps of the routes, in order.
        one_by_one: keep the four images apart instead of summing them.
        scans, permutation, backend: as in `cross_scan`.

    Returns:
        (B, C, L), or (B, L, C) if not `in_channel_first`; with `one_by_one` (B, 4, C, L) or (B, L, 4, C).
        Contiguous, y's dtype; half precision is summed in float32 and rounded once.

    Raises:
        TypeError, ValueError: naming the argument that does not fit.
    """
    check_float("y", y)
    sequences, (height, width) = _image_to_routes(y, out_channel_first, True, "y")
    table = routes(height, width, scans, permutation, device=y.device)
    pixels = apply_merge(sequences, table, not one_by_one, in_channel_first, backend)  # (B, 4 or 1, L, C)
    if one_by_one:
        return pixels.transpose(2, 3) if in_channel_first else pixels.transpose(1, 2)
    return pixels[:, 0].transpose(1, 2) if in_channel_first else pixels[:, 0]


def _image_to_routes(x: Tensor, channel_first: bool, per_route: bool, name: str) -> tuple[Tensor, tuple[int, int]]:
    """An image or four of them -> (B, 1 or 4, L, C) and (H, W)."""
    axes = ["B, H, W, C", "B, C, H, W", "B, H, W, 4, C", "B, 4, C, H, W"][2 * per_route + channel_first]
    route_axis = 1 if channel_first else 3
    if x.dim() != (5 if per_route else 4) or (per_route and x.shape[route_axis] != 4):
        raise ValueError(f"{name} must have shape ({axes}), got {tuple(x.shape)}")
    if not per_route:
        x = x.unsqueeze(route_axis)
    image = x.permute(0, 1, 3, 4, 2) if channel_first else x.permute(0, 3, 1, 2, 4)  # (B, K, H, W, C)
    return image.flatten(2, 3), (image.shape[2], image.shape[3])


def apply_routes(x: Tensor, table: Tensor, channel_first: bool, backend: str | None = None) -> Tensor:
    """x (B, K or 1, L, C) in pixel order -> (B, K, L, C): step l of route k reads pixel table[k, l].

    `channel_first` asks for memory in (B, K, C, L) order behind the same logical shape, otherwise (B, L, K, C)."""
    chosen = select(backend, x)
    if chosen == "reference":
        return _as_layout(reference.scan_routes(x, table), channel_first)
    return call(ops.scan_routes, CrossScan, x, table, channel_first, chosen)


def apply_merge(y: Tensor, table: Tensor, merge: bool, channel_first: bool, backend: str | None = None) -> Tensor:
    """The adjoint of `apply_routes`: y (B, K, L, C) -> (B, 1, L, C), the sum over routes, or (B, K, L, C)."""
    chosen = select(backend, y)
    if chosen == "reference":
        return _as_layout(reference.merge_routes(y, table, merge=merge), channel_first)
    return call(ops.merge_routes, CrossMerge, y, table, merge, channel_first, chosen)


def _as_layout(t: Tensor, channel_first: bool) -> Tensor:
    if channel_first:
        return t.transpose(2, 3).contiguous().transpose(2, 3)
    return t.transpose(1, 2).contiguous().transpose(1, 2)


class CrossScan(torch.autograd.Function):
    """`apply_routes` on the compiled kernels; differentiable to any order, its backward is `CrossMerge`.

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
        return call(ops.merge_routes, CrossMerge, dy, table, *ctx.options), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return vmap_by_loop(CrossScan, info, in_dims, *args)


class CrossMerge(torch.autograd.Function):
    """`apply_merge` on the compiled kernels; differentiable to any order, its backward is `CrossScan`.

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
        return call(ops.scan_routes, CrossScan, dx, table, *ctx.options), None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return vmap_by_loop(CrossMerge, info, in_dims, *args)


differentiate(ops.scan_routes, CrossScan)
differentiate(ops.merge_routes, CrossMerge)
