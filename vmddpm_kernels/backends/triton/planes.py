"""Cross scan and cross merge along the regular routes, for sequences with contiguous steps and for small images. A
program reads a tile of an image (the whole image if it fits) for some channels once, and gathers it from shared memory
in the order of each route. The merge gathers each route in pixel order and sums in registers.

A tile is N elements in memory order, so that a warp's elements are neighbours in memory. LAYOUT describes the memory:

    STRIDED        any strides; channel after channel
    FLAT           contiguous channels without gaps, read from the start of a sector of 32 bytes
    FLAT_VECTORS   FLAT in whole vectors of 16 bytes
    ROWS           contiguous channels of each pixel; pixel after pixel
    ROWS_VECTORS   ROWS in whole vectors of 16 bytes
"""
# mypy: ignore-errors

import triton
import triton.language as tl

from vmddpm_kernels.backends.triton.launch import kernel
from vmddpm_kernels.backends.triton.walk import regular_walk

STRIDED, FLAT, FLAT_VECTORS, ROWS, ROWS_VECTORS = map(tl.constexpr, range(5))


@triton.jit
def swizzled(index, VECTOR: tl.constexpr):
    """Permutes vectors within each 64 elements, so that elements a power of two apart, as in a column, fall into
    different banks of shared memory. It is its own inverse."""
    return index ^ ((((index >> 6) ^ (index >> 9)) & 7) * VECTOR)


@triton.jit
def quotient(number, by):
    """number // by for numbers below 2^16, as a product with 2^32 / by rounded up."""
    factor = (4294967295 // by.to(tl.int64) + 1).to(tl.uint32)
    return tl.where(by == 1, number, tl.umulhi(number.to(tl.uint32), factor).to(tl.int32))


@triton.jit
def parts_of(index, pixels, group, LAYOUT: tl.constexpr):
    """The place among a tile's pixels, and the channel, of each index."""
    index = tl.maximum(index, 0)
    if LAYOUT >= ROWS:
        place = quotient(index, group)
        return place, index - place * group
    else:  # noqa: RET505 - Triton compiles one of two branches
        channel = quotient(index, pixels)
        return index - channel * pixels, channel


@triton.jit
def index_of(place, channel, pixels, group, LAYOUT: tl.constexpr):
    return place * group + channel if LAYOUT >= ROWS else channel * pixels + place


@triton.jit
def memory_of(start, index, step, channel, stride_l, stride_d, LAYOUT: tl.constexpr, VECTOR: tl.constexpr):
    """The addresses of a tile's elements: by `index` in memory order, or by their steps or pixels and channels."""
    if LAYOUT == FLAT or LAYOUT == FLAT_VECTORS:  # noqa: SIM109 - constants of Triton are in no tuple
        at = start + index
    elif LAYOUT >= ROWS:
        at = start + step.to(tl.int64) * stride_l + channel
    else:
        at = start + step.to(tl.int64) * stride_l + channel.to(tl.int64) * stride_d
    if LAYOUT == FLAT_VECTORS or LAYOUT == ROWS_VECTORS:  # noqa: SIM109
        at = tl.max_contiguous(tl.multiple_of(at, 16), VECTOR)
    return at


@triton.jit
def inside_of(index, place, pixels, channel, count, LAYOUT: tl.constexpr, VECTOR: tl.constexpr):
    """Which elements of a tile exist."""
    inside = (index >= 0) & (place < pixels) & (channel < count)
    if LAYOUT == FLAT_VECTORS or LAYOUT == ROWS_VECTORS:  # noqa: SIM109
        inside = tl.max_constancy(inside, VECTOR)  # here, as the compiler forgets it for an argument
    return inside


@triton.jit
def numbers_of(route, N: tl.constexpr):
    """0, 1, ... N - 1, in a form that hides from the compiler that they are the same for every route. It would compute
    dependent values before the loop over the routes otherwise, and run out of registers."""
    return (tl.arange(0, N) + (route >> 40)).to(tl.int32)


@triton.jit
def lead_of(offset, lead, LAYOUT: tl.constexpr, SECTOR: tl.constexpr):
    """Elements from the start of a sector to a tile that begins `offset` elements after the tensor, itself `lead`
    elements into a sector."""
    return ((offset + lead) % SECTOR).to(tl.int32) if LAYOUT == FLAT else 0


@triton.jit
def block_of(images, channels, group, height, width, tile_height, tile_width):
    """A program's batch and image, its first channel and channel count, and its tile: top, left, height, width."""
    program = tl.program_id(0).to(tl.int64)
    groups = tl.cdiv(channels, group)
    channel = program % groups * group
    program = program // groups
    across, down = tl.cdiv(width, tile_width), tl.cdiv(height, tile_height)
    left, top = (program % across).to(tl.int32) * tile_width, (program // across % down).to(tl.int32) * tile_height
    program = program // across // down
    count = tl.minimum(channels - channel, group).to(tl.int32)
    rows, columns = tl.minimum(height - top, tile_height), tl.minimum(width - left, tile_width)
    return program // images, program % images, channel, count, top, left, rows, columns


@triton.jit
def line_of(columns, lines_back, line_back, height, width, top, left, rows, across):
    """A route in a tile of rows x across pixels: the length and number of its lines in the tile, the length of a line
    of the image, the route's first step in a line, and its first line."""
    size, lines = tl.where(columns, rows, across), tl.where(columns, across, rows)
    whole, all_lines = tl.where(columns, height, width), tl.where(columns, width, height)
    before, lines_before = tl.where(columns, top, left), tl.where(columns, left, top)
    first = tl.where(line_back, whole - before - size, before)
    first_line = tl.where(lines_back, all_lines - lines_before - lines, lines_before)
    return size, lines, whole, first, first_line


@kernel
def scan_planes(
    image, image_b: tl.int64, image_k: tl.int64, image_l: tl.int64, image_d: tl.int64, image_lead: tl.int32,
    y, y_b: tl.int64, y_k: tl.int64, y_l: tl.int64, y_d: tl.int64, y_lead: tl.int32,
    images: tl.int32, scans: tl.int32, height: tl.int32, width: tl.int32, channels: tl.int64,
    group: tl.int32, tile_height: tl.int32, tile_width: tl.int32,
    IMAGE: tl.constexpr, Y: tl.constexpr, N: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """y[b, k, step] = image[b, k, pixel], with one image for all four routes if `images` is 1."""
    batch, first_image, channel, count, top, left, rows, across = block_of(
        images, channels, group, height, width, tile_height, tile_width
    )
    pixels = rows * across
    offset = batch * image_b + first_image * image_k + channel * image_d
    lead = lead_of(offset, image_lead, IMAGE, 2 * VECTOR)
    index = swizzled(tl.arange(0, N), VECTOR) - lead
    place, c = parts_of(index, pixels, group, IMAGE)
    h = quotient(place, across)
    pixel = (top + h) * width + left + place - h * across
    inside = inside_of(index, place, pixels, c, count, IMAGE, VECTOR)
    tile = tl.load(memory_of(image + offset, index, pixel, c, image_l, image_d, IMAGE, VECTOR), mask=inside, other=0)
    for k in range(first_image, tl.where(images == 1, 4, first_image + 1)):
        offset = batch * y_b + k * y_k + channel * y_d
        y_index = numbers_of(k, N) - lead_of(offset, y_lead, Y, 2 * VECTOR)
        place, c = parts_of(y_index, pixels, group, Y)
        columns, lines_back, line_back = regular_walk(scans, k)
        size, lines, whole, first, first_line = line_of(
            columns, lines_back, line_back, height, width, top, left, rows, across
        )
        line = quotient(place, size)
        place_in_line = place - line * size
        step = (first_line + line) * whole + first + place_in_line
        line = tl.where(lines_back, lines - 1 - line, line)
        place_in_line = tl.where(line_back, size - 1 - place_in_line, place_in_line)
        found = tl.where(columns, place_in_line * across + line, line * across + place_in_line)
        inside = inside_of(y_index, place, pixels, c, count, Y, VECTOR)
        source = tl.where(inside, index_of(found, c, pixels, group, IMAGE) + lead, 0)
        value = tl.gather(tile, swizzled(source, VECTOR), 0)
        at = memory_of(y + offset, y_index, step, c, y_l, y_d, Y, VECTOR)
        tl.store(at, value, mask=inside)


@kernel
def merge_planes(
    image, image_b: tl.int64, image_k: tl.int64, image_l: tl.int64, image_d: tl.int64, image_lead: tl.int32,
    y, y_b: tl.int64, y_k: tl.int64, y_l: tl.int64, y_d: tl.int64, y_lead: tl.int32,
    images: tl.int32, scans: tl.int32, height: tl.int32, width: tl.int32, channels: tl.int64,
    group: tl.int32, tile_height: tl.int32, tile_width: tl.int32,
    IMAGE: tl.constexpr, Y: tl.constexpr, N: tl.constexpr, VECTOR: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """image[b, k, pixel] = y[b, k, step], or their sum over the routes in order if `images` is 1."""
    batch, first_image, channel, count, top, left, rows, across = block_of(
        images, channels, group, height, width, tile_height, tile_width
    )
    pixels = rows * across
    image_offset = batch * image_b + first_image * image_k + channel * image_d
    image_lead = lead_of(image_offset, image_lead, IMAGE, 2 * VECTOR)
    total = tl.zeros([N], ACCUMULATE)
    for k in range(first_image, tl.where(images == 1, 4, first_image + 1)):
        offset = batch * y_b + k * y_k + channel * y_d
        lead = lead_of(offset, y_lead, Y, 2 * VECTOR)
        y_index = swizzled(numbers_of(k, N), VECTOR) - lead
        place, y_c = parts_of(y_index, pixels, group, Y)
        columns, lines_back, line_back = regular_walk(scans, k)
        size, lines, whole, first, first_line = line_of(
            columns, lines_back, line_back, height, width, top, left, rows, across
        )
        line = quotient(place, size)
        step = (first_line + line) * whole + first + place - line * size
        there = inside_of(y_index, place, pixels, y_c, count, Y, VECTOR)
        tile = tl.load(memory_of(y + offset, y_index, step, y_c, y_l, y_d, Y, VECTOR), mask=there, other=0)
        index = numbers_of(k, N) - image_lead
        place, c = parts_of(index, pixels, group, IMAGE)
        inside = inside_of(index, place, pixels, c, count, IMAGE, VECTOR)
        h = quotient(place, across)
        w = place - h * across
        line, place = tl.where(columns, w, h), tl.where(columns, h, w)
        line = tl.where(lines_back, lines - 1 - line, line)
        place = tl.where(line_back, size - 1 - place, place)
        source = tl.where(inside, index_of(line * size + place, c, pixels, group, Y) + lead, 0)
        total += tl.gather(tile, swizzled(source, VECTOR), 0).to(ACCUMULATE)
    index = tl.arange(0, N) - image_lead
    place, c = parts_of(index, pixels, group, IMAGE)
    h = quotient(place, across)
    pixel = (top + h) * width + left + place - h * across
    at = memory_of(image + image_offset, index, pixel, c, image_l, image_d, IMAGE, VECTOR)
    tl.store(at, total, mask=inside_of(index, place, pixels, c, count, IMAGE, VECTOR))
