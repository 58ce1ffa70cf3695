"""Sums a scan's results over the routes of an image."""
# mypy: ignore-errors

import triton
import triton.language as tl

from vmddpm_kernels.backends.triton.launch import kernel

TOGETHER = tl.constexpr(4)  # loads in flight before the first sum


@triton.jit
def fold(image, parts, size, routes, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = tl.max_constancy(i < size, VECTOR)
    FLOAT: tl.constexpr = parts.dtype.element_ty
    PART: tl.constexpr = VECTOR * FLOAT.primitive_bitwidth // 8
    IMAGE: tl.constexpr = VECTOR * image.dtype.element_ty.primitive_bitwidth // 8
    total = tl.zeros([BLOCK], FLOAT)
    for first in range(0, routes, TOGETHER):
        loaded = ()
        for k in tl.static_range(TOGETHER):
            at = tl.max_contiguous(tl.multiple_of(parts + (first + k) * size + i, PART), VECTOR)
            loaded += (tl.load(at, mask=inside & (first + k < routes), other=0.0),)
        for k in tl.static_range(TOGETHER):
            total += loaded[k]
    at = tl.max_contiguous(tl.multiple_of(image + i, IMAGE), VECTOR)
    tl.store(at, total, mask=inside)


@kernel
def fold_routes(image, parts, size: tl.int64, routes: tl.int64, BLOCK: tl.constexpr):
    """image[i] = the sum of parts[k, i] over k, in order, for i < size; both are contiguous and aligned to 16 bytes."""
    if size % 4 == 0:
        fold(image, parts, size, routes, BLOCK, 4)
    else:
        fold(image, parts, size, routes, BLOCK, 1)
