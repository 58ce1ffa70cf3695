"""Cross scan and cross merge through Triton: chooses a kernel for the memory layout, allocates results and launches it.
Kernels are compiled per memory layout, never per image size.

Images and sequences are (B, K, L, C); an image that all routes share is expanded to K, with route stride 0."""

from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from vmddpm_kernels.backends.extension import empty, int32
from vmddpm_kernels.backends.triton import planes, rows
from vmddpm_kernels.backends.triton.launch import INTERPRETED, launch, strided, warp_size
from vmddpm_kernels.checks import check_memory
from vmddpm_kernels.routes import RouteOrder, check_table_once

PIXELS, CHANNELS = 64, 32  # tile of rows: whole sectors, whichever axis is contiguous
SECTOR_BYTES, VECTOR_BYTES = 32, 16

# Tiles of planes, by element size in bytes. NUMBERS: elements per tile; the second only if a smaller tile would cut
# sectors. SIDES_ALONE, SIDES: height and width of a tile that is not a whole image, for one channel and for a sector of
# channels.
NUMBERS = {2: (8192, 16384), 4: (8192,), 8: (4096,)}
SIDES_ALONE = {2: (64, 128), 4: (64, 128), 8: (64, 64)}
SIDES = {2: (16, 32), 4: (32, 32), 8: (32, 32)}
PER_THREAD = 16           # elements per thread

# Integers of an element's size in bytes: to copy exactly.
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_INTEGERS = {2: tl.int16, 4: tl.int32, 8: tl.int64}


def _in_rows(tensor: Tensor) -> bool:
    return tensor.stride(3) < tensor.stride(2)


def _aligned(tensor: Tensor, *elements: int) -> bool:
    """Whether the tensor's start, its batch and route strides and these counts are multiples of a vector."""
    size = tensor.element_size()
    distances = (*tensor.stride()[:2], *elements)
    return tensor.data_ptr() % VECTOR_BYTES == 0 and all(n * size % VECTOR_BYTES == 0 for n in distances)


class _Tile(NamedTuple):
    group: int    # channels
    height: int
    width: int
    numbers: int  # elements a program holds: a power of two, at least group * height * width

    def is_whole(self, order: RouteOrder) -> bool:
        return (self.height, self.width) == (order.height, order.width)


def _tile(order: RouteOrder, channels: int, size: int, rows: bool) -> _Tile:
    """As many channels of a whole image as a tile holds, in whole sectors if a side is in rows; else a part of an
    image. `size` is the element size in bytes."""
    sector = SECTOR_BYTES // size
    cuts_sectors = order.height % sector > 0 or order.width % sector > 0
    for numbers in NUMBERS[size] if rows and cuts_sectors else NUMBERS[size][:1]:
        fit = numbers // (order.height * order.width)
        if fit >= sector:
            fit -= fit % sector
        if fit >= (min(sector, channels) if rows else 1):
            return _Tile(min(fit, channels), order.height, order.width, numbers)
    height, width = (SIDES if rows else SIDES_ALONE)[size]
    return _Tile(sector if rows else 1, min(height, order.height), min(width, order.width), NUMBERS[size][0])


def _in_planes(name: str, tensor: Tensor, tile: _Tile, order: RouteOrder) -> dict[str, Any]:
    """The arguments of the kernels of planes for an image or sequences."""
    size = tensor.element_size()
    lead = tensor.data_ptr() % SECTOR_BYTES // size  # elements from the start of a sector to the first one
    layout = _layout(tensor, tile, order).value
    return {**strided(name, tensor), f"{name}_lead": lead, name.upper(): layout}


def _layout(tensor: Tensor, tile: _Tile, order: RouteOrder) -> Any:
    _, _, length, channels = tensor.shape
    _, _, l, d = tensor.stride()
    if _in_rows(tensor) and d == 1:
        return planes.ROWS_VECTORS if _aligned(tensor, l, tile.group, channels) else planes.ROWS
    if tile.is_whole(order) and l == 1 and d == length:
        if _aligned(tensor, tile.group * length, channels * length):
            return planes.FLAT_VECTORS
        # The tile begins at the start of a sector.
        if tile.group * length + SECTOR_BYTES // tensor.element_size() <= tile.numbers:
            return planes.FLAT
    return planes.STRIDED


def _launch_planes(kernel: Any, image: Tensor, y: Tensor, order: RouteOrder, images: int, **types: Any) -> None:
    batch, _, _, channels = y.shape
    size = y.element_size()
    tile = _tile(order, channels, size, _in_rows(image) or _in_rows(y))
    programs = batch * images * -(-channels // tile.group)
    programs *= -(-order.height // tile.height) * -(-order.width // tile.width)
    launch(
        kernel, programs, y.device, **_in_planes("image", image, tile, order), **_in_planes("y", y, tile, order),
        images=images, scans=order.scans, height=order.height, width=order.width, channels=channels, group=tile.group,
        tile_height=tile.height, tile_width=tile.width, N=tile.numbers, VECTOR=VECTOR_BYTES // size, **types,
        num_warps=tile.numbers // PER_THREAD // warp_size(),
    )  # fmt: skip


def _unit(tensor: Tensor) -> int:
    return 1 if tensor.stride(3) == 1 else 0 if tensor.stride(2) == 1 else -1


def _launch_rows(
    kernel: Any, image: Tensor, y: Tensor, order: RouteOrder, images: int, inverse: Tensor | None, **types: Any
) -> None:
    batch, routes, length, channels = y.shape
    vector = VECTOR_BYTES // min(image.element_size(), y.element_size())
    in_rows = [t for t in (image, y) if _unit(t) == 1]
    in_vectors = in_rows and all(_aligned(t, t.stride(2), channels) for t in in_rows)
    launch(
        kernel, batch * images * -(-channels // CHANNELS) * -(-length // PIXELS), y.device, **strided("image", image),
        **strided("y", y), inverse=inverse, images=images, routes=routes, scans=order.scans, height=order.height,
        width=order.width, length=length, channels=channels, IMAGE=_unit(image), Y=_unit(y),
        VECTOR=vector if in_vectors else 1, PIXELS=PIXELS, CHANNELS=CHANNELS, **types, num_warps=4,
    )  # fmt: skip


def _by_rows(image: Tensor, y: Tensor, order: RouteOrder) -> bool:
    """Whether to use the kernels of rows rather than of planes. They alone read tables. They cut sectors of an image in
    planes, and too many if it is small."""
    if order.table is not None:
        return True
    if not _in_rows(y) or _in_rows(image):
        return _in_rows(y)
    tile = _tile(order, y.shape[3], y.element_size(), True)
    return tile.numbers > NUMBERS[y.element_size()][0] or not tile.is_whole(order)


def _as_bits(tensor: Tensor) -> Tensor:
    return tensor.view(_BITS[tensor.element_size()])


def _table(order: RouteOrder, length: int) -> Tensor | None:
    if order.table is None:
        return None
    check_table_once(order.table, length)
    return int32(order.table)


def _inverse(table: Tensor | None) -> Tensor | None:
    if table is None:
        return None
    steps = torch.arange(table.shape[1], dtype=torch.int32, device=table.device).expand_as(table)
    return torch.empty(table.shape, dtype=torch.int32, device=table.device).scatter_(1, table.long(), steps)


def cross_scan(x: Tensor, order: RouteOrder, channel_first: bool) -> Tensor:
    """x (B, K or 1, L, C) in pixel order -> (B, K, L, C) in route order; an exact copy."""
    check_memory((x,))
    batch, images, length, channels = x.shape
    shape = batch, order.route_count(), length, channels
    out = empty(shape, channel_first, x.dtype, x.device)
    image, y = _as_bits(x.expand(shape)), _as_bits(out)
    table = _table(order, length)
    if table is not None and not _in_rows(y):
        # Steps take their pixels, as pixels take their steps in a merge: sectors of the sequences are written whole.
        _launch_rows(rows.merge_rows, y, image, order, shape[1], table, ACCUMULATE=_INTEGERS[y.element_size()])
    elif _by_rows(image, y, order):
        _launch_rows(rows.scan_rows, image, y, order, images, _inverse(table))
    else:
        _launch_planes(planes.scan_planes, image, y, order, images)
    return out


def cross_merge(y: Tensor, order: RouteOrder, sum_routes: bool, channel_first: bool) -> Tensor:
    """y (B, K, L, C) in route order -> (B, 1, L, C) summed over routes, or (B, K, L, C), in pixel order."""
    check_memory((y,))
    batch, routes, length, channels = y.shape
    images = 1 if sum_routes else routes
    wide = torch.promote_types(y.dtype, torch.float32)
    # Triton's interpreter truncates to bfloat16 where a GPU rounds, so torch rounds there.
    dtype = wide if sum_routes and INTERPRETED else y.dtype
    out = empty((batch, images, length, channels), channel_first, dtype, y.device)
    image, sequences = out.expand(y.shape), y
    accumulate = tl.float64 if wide == torch.float64 else tl.float32
    if not sum_routes:
        image, sequences = _as_bits(out), _as_bits(y)
        accumulate = _INTEGERS[y.element_size()]
    if _by_rows(image, sequences, order):
        inverse = _inverse(_table(order, length))
        _launch_rows(rows.merge_rows, image, sequences, order, images, inverse, ACCUMULATE=accumulate)
    else:
        _launch_planes(planes.merge_planes, image, sequences, order, images, ACCUMULATE=accumulate)
    return out.to(y.dtype)


def sum_over_routes(image: Tensor, parts: Tensor) -> None:
    """image (B, L, C) = the sum of parts (B, K, L, C) over k, in order: the merge of routes that visit pixel after
    pixel. Both are channel first or both are not."""
    if not _in_rows(parts):
        image, parts = image.mT, parts.mT
    order = RouteOrder(None, 1, parts.shape[2], scans=1)
    accumulate = tl.float64 if parts.dtype == torch.float64 else tl.float32
    _launch_rows(rows.merge_rows, image[:, None], parts, order, 1, None, ACCUMULATE=accumulate)
