"""Cross scan and cross merge through Triton: chooses a kernel for the memory layout, allocates results and launches it.
Kernels are compiled per memory layout, never per image size."""

from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from vmddpm_kernels.backends.extension import empty, int32
from vmddpm_kernels.backends.triton import planes, rows
from vmddpm_kernels.backends.triton.gather import gather_by_table
from vmddpm_kernels.backends.triton.launch import INTERPRETED, launch, warp_size
from vmddpm_kernels.checks import check_memory
from vmddpm_kernels.routes import RouteOrder, check_table_once

STEPS, CHANNELS = 32, 32  # tile along a table: whole sectors on both sides, whichever axis is contiguous
PIXELS = 64               # pixels per tile of rows
SECTOR_BYTES, VECTOR_BYTES = 32, 16

# Tiles of planes, by element size in bytes. NUMBERS: elements per tile; the second only if a smaller tile would cut
# sectors. SIDES_ALONE, SIDES: height and width of a tile that is not a whole image, for one channel and for a sector of
# channels.
NUMBERS = {2: (8192, 16384), 4: (8192,), 8: (4096,)}
SIDES_ALONE = {2: (64, 128), 4: (64, 128), 8: (64, 64)}
SIDES = {2: (16, 32), 4: (32, 32), 8: (32, 32)}
PER_THREAD = 16           # elements per thread

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Side(NamedTuple):
    """An image or sequences (B, K, L, C), with route stride 0 if the routes share one image."""

    name: str  # the kernel's parameter
    tensor: Tensor
    strides: tuple[int, int, int, int]

    def arguments(self) -> dict[str, Any]:
        strides = {f"{self.name}_{axis}": stride for axis, stride in zip("bkld", self.strides)}
        return {self.name: self.tensor, **strides}

    @property
    def in_rows(self) -> bool:
        return self.strides[3] < self.strides[2]

    def aligned(self, *elements: int) -> bool:
        """Whether the tensor's start, its batch and route strides and these counts are multiples of a vector."""
        size = self.tensor.element_size()
        distances = (*self.strides[:2], *elements)
        return self.tensor.data_ptr() % VECTOR_BYTES == 0 and all(n * size % VECTOR_BYTES == 0 for n in distances)

    def lead(self) -> int:
        """Elements from the start of a sector to the first one."""
        return self.tensor.data_ptr() % SECTOR_BYTES // self.tensor.element_size()


def _side(name: str, tensor: Tensor, one_image: bool = False) -> _Side:
    b, k, l, d = tensor.stride()
    return _Side(name, tensor, (b, 0 if one_image else k, l, d))


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


def _layout(side: _Side, tile: _Tile, order: RouteOrder) -> Any:
    """The LAYOUT of a side for the kernels of planes."""
    _, _, l, d = side.strides
    channels, length = side.tensor.shape[3], order.height * order.width
    if side.in_rows and d == 1:
        return planes.ROWS_VECTORS if side.aligned(l, tile.group, channels) else planes.ROWS
    if tile.is_whole(order) and l == 1 and d == length:
        if side.aligned(tile.group * length, channels * length):
            return planes.FLAT_VECTORS
        # The tile begins at the start of a sector.
        if tile.group * length + SECTOR_BYTES // side.tensor.element_size() <= tile.numbers:
            return planes.FLAT
    return planes.STRIDED


def _launch_planes(kernel: Any, image: _Side, sequences: _Side, order: RouteOrder, images: int, **types: Any) -> None:
    batch, _, _, channels = sequences.tensor.shape
    size = sequences.tensor.element_size()
    tile = _tile(order, channels, size, image.in_rows or sequences.in_rows)
    sides: dict[str, Any] = {}
    for side in (image, sequences):
        layout = _layout(side, tile, order).value
        sides |= {**side.arguments(), f"{side.name}_lead": side.lead(), side.name.upper(): layout}
    programs = batch * images * -(-channels // tile.group)
    programs *= -(-order.height // tile.height) * -(-order.width // tile.width)
    launch(
        kernel, programs, image.tensor.device, **sides, images=images, scans=order.scans, height=order.height,
        width=order.width, channels=channels, group=tile.group, tile_height=tile.height, tile_width=tile.width,
        N=tile.numbers, VECTOR=VECTOR_BYTES // size, **types, num_warps=tile.numbers // PER_THREAD // warp_size(),
    )  # fmt: skip


def _unit(side: _Side) -> int:
    return 1 if side.strides[3] == 1 else 0 if side.strides[2] == 1 else -1


def _launch_rows(
    kernel: Any, image: _Side, sequences: _Side, order: RouteOrder, inverse: Tensor | None, images: int, **types: Any
) -> None:
    batch, routes, length, channels = sequences.tensor.shape
    vector = VECTOR_BYTES // sequences.tensor.element_size()
    in_rows = [side for side in (image, sequences) if _unit(side) == 1]
    aligned = all(side.aligned(side.strides[2], channels) for side in in_rows)
    launch(
        kernel, batch * images * -(-channels // CHANNELS) * -(-length // PIXELS), image.tensor.device,
        **image.arguments(), **sequences.arguments(), inverse=inverse, images=images, routes=routes, scans=order.scans,
        height=order.height, width=order.width, length=length, channels=channels, IMAGE=_unit(image),
        VECTOR=vector if aligned else 1, PIXELS=PIXELS, CHANNELS=CHANNELS, **types, num_warps=4,
        **{sequences.name.upper(): _unit(sequences)},
    )  # fmt: skip


def _launch_gather(image: _Side, out: _Side, table: Tensor, sum_routes: bool, accumulate: Any) -> None:
    batch, sequences, length, channels = out.tensor.shape
    launch(
        gather_by_table, batch * sequences * -(-length // STEPS) * -(-channels // CHANNELS), image.tensor.device,
        **image._replace(name="image").arguments(), **out._replace(name="out").arguments(), table=table,
        routes=table.shape[0], length=length, channels=channels, SUM_ROUTES=sum_routes, ACCUMULATE=accumulate,
        STEPS=STEPS, CHANNELS=CHANNELS, num_warps=4,
    )  # fmt: skip


def _in_rows(image: _Side, sequences: _Side, order: RouteOrder) -> bool:
    """Whether to use the kernels of rows rather than of planes. They cut sectors of an image in planes, and too many if
    it is small."""
    channels, size = sequences.tensor.shape[3], sequences.tensor.element_size()
    if not sequences.in_rows or image.in_rows:
        return sequences.in_rows
    tile = _tile(order, channels, size, True)
    return tile.numbers > NUMBERS[size][0] or not tile.is_whole(order)


def _as_bits(tensor: Tensor) -> Tensor:
    return tensor.view(_BITS[tensor.element_size()])


def _inverse(table: Tensor) -> Tensor:
    steps = torch.arange(table.shape[1], dtype=torch.int32, device=table.device).expand_as(table)
    return torch.empty(table.shape, dtype=torch.int32, device=table.device).scatter_(1, table.long(), steps)


def cross_scan(x: Tensor, order: RouteOrder, channel_first: bool) -> Tensor:
    """x (B, K or 1, L, C) in pixel order -> (B, K, L, C) in route order; an exact copy."""
    check_memory((x,))
    batch, images, length, channels = x.shape
    routes = order.route_count()
    out = empty((batch, routes, length, channels), channel_first, x.dtype, x.device)
    image, sequences = _side("image", _as_bits(x), images == 1), _side("out", _as_bits(out))
    if order.table is not None:
        check_table_once(order.table, length)
        table = int32(order.table)
        if sequences.in_rows:
            _launch_rows(rows.scan_rows, image, sequences, order, _inverse(table), images)
        else:
            _launch_gather(image, sequences, table, False, tl.int32)
    elif _in_rows(image, sequences, order):
        _launch_rows(rows.scan_rows, image, sequences, order, None, images)
    else:
        _launch_planes(planes.scan_planes, image, sequences, order, images)
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
    image, sequences = _side("image", out, sum_routes), _side("y", y)
    accumulate = tl.float64 if wide == torch.float64 else tl.float32
    if not sum_routes:
        image, sequences = _side("image", _as_bits(out)), _side("y", _as_bits(y))
        accumulate = {2: tl.int16, 4: tl.int32, 8: tl.int64}[y.element_size()]
    if order.table is not None:
        check_table_once(order.table, length)
        inverse = _inverse(int32(order.table))
        if sequences.in_rows:
            _launch_rows(rows.merge_rows, image, sequences, order, inverse, images, ACCUMULATE=accumulate)
        else:
            _launch_gather(sequences, image, inverse, sum_routes, accumulate)
    elif _in_rows(image, sequences, order):
        _launch_rows(rows.merge_rows, image, sequences, order, None, images, ACCUMULATE=accumulate)
    else:
        _launch_planes(planes.merge_planes, image, sequences, order, images, ACCUMULATE=accumulate)
    return out.to(y.dtype)
