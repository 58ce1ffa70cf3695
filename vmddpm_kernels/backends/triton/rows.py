"""Cross scan and cross merge for sequences with contiguous channels, in any order of the pixels: a program reads a tile
[PIXELS, CHANNELS] of the image once and writes it to all routes, or sums it from them."""
# mypy: ignore-errors

import triton
import triton.language as tl

from vmddpm_kernels.backends.triton.launch import kernel
from vmddpm_kernels.backends.triton.walk import step_of


@triton.jit
def memory_of(start, row, stride_l, d, stride_d, UNIT: tl.constexpr, VECTOR: tl.constexpr):
    """[PIXELS, CHANNELS] addresses. The channels are contiguous if UNIT is 1, the pixels if 0, neither if -1.
    VECTOR is 1, or the number of channels in 16 aligned bytes."""
    row, d = row.to(tl.int64), d.to(tl.int64)
    at = start + row[:, None] * (1 if UNIT == 0 else stride_l) + d[None, :] * (1 if UNIT == 1 else stride_d)
    if UNIT == 1 and VECTOR > 1:
        at = tl.max_contiguous(tl.multiple_of(at, [1, 16]), [1, VECTOR])
    return at


@triton.jit
def block_of(images, length, channels, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """A program's batch and image, its pixels and its channels. Less than 2^31, as 64-bit divisions are slow."""
    program = tl.program_id(0)
    blocks, tiles = tl.cdiv(channels, CHANNELS).to(tl.int32), tl.cdiv(length, PIXELS).to(tl.int32)
    d = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    pixel = program // blocks % tiles * PIXELS + tl.arange(0, PIXELS)
    program = program // blocks // tiles
    return program // images, program % images, pixel, d


@triton.jit
def steps_of(inverse, scans, route, pixel, height, width, length):
    """The steps at which a route visits the pixels, from the inverse table if given."""
    if inverse is not None:
        return tl.load(inverse + route * length + pixel, mask=pixel < length, other=0)
    else:  # noqa: RET505 - Triton compiles one of two branches
        h = pixel // width
        return step_of(scans, route, h, pixel - h * width, height, width)


@triton.jit
def inside_of(pixel, length, d, channels, VECTOR: tl.constexpr):
    inside = (pixel < length)[:, None] & (d < channels)[None, :]
    if VECTOR > 1:
        inside = tl.max_constancy(inside, [1, VECTOR])
    return inside


@kernel
def scan_rows(
    image, image_b: tl.int64, image_k: tl.int64, image_l: tl.int64, image_d: tl.int64,
    y, y_b: tl.int64, y_k: tl.int64, y_l: tl.int64, y_d: tl.int64,
    inverse, images: tl.int32, routes: tl.int32, scans: tl.int32, height: tl.int32, width: tl.int32, length: tl.int64,
    channels: tl.int64, IMAGE: tl.constexpr, Y: tl.constexpr, VECTOR: tl.constexpr, PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """y[b, k, step] = image[b, k, pixel], with one image for all routes if `images` is 1."""
    batch, first, pixel, d = block_of(images, length, channels, PIXELS, CHANNELS)
    inside = inside_of(pixel, length, d, channels, VECTOR)
    start = image + batch * image_b + first * image_k
    value = tl.load(memory_of(start, pixel, image_l, d, image_d, IMAGE, VECTOR), mask=inside, other=0)
    for k in range(first, tl.where(images == 1, routes, first + 1)):
        step = steps_of(inverse, scans, k, pixel, height, width, length)
        start = y + batch * y_b + k * y_k
        tl.store(memory_of(start, step, y_l, d, y_d, Y, VECTOR), value, mask=inside)


@kernel
def merge_rows(
    image, image_b: tl.int64, image_k: tl.int64, image_l: tl.int64, image_d: tl.int64,
    y, y_b: tl.int64, y_k: tl.int64, y_l: tl.int64, y_d: tl.int64,
    inverse, images: tl.int32, routes: tl.int32, scans: tl.int32, height: tl.int32, width: tl.int32, length: tl.int64,
    channels: tl.int64, IMAGE: tl.constexpr, Y: tl.constexpr, VECTOR: tl.constexpr, PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """image[b, k, pixel] = y[b, k, step], or their sum over the routes in order if `images` is 1."""
    batch, first, pixel, d = block_of(images, length, channels, PIXELS, CHANNELS)
    inside = inside_of(pixel, length, d, channels, VECTOR)
    total = tl.zeros([PIXELS, CHANNELS], ACCUMULATE)
    for k in range(first, tl.where(images == 1, routes, first + 1)):
        step = steps_of(inverse, scans, k, pixel, height, width, length)
        start = y + batch * y_b + k * y_k
        total += tl.load(memory_of(start, step, y_l, d, y_d, Y, VECTOR), mask=inside, other=0).to(ACCUMULATE)
    start = image + batch * image_b + first * image_k
    tl.store(memory_of(start, pixel, image_l, d, image_d, IMAGE, VECTOR), total, mask=inside)
