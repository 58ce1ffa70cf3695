"""The sum of what a scan stored for each of the routes of an image."""
# mypy: ignore-errors

import triton.language as tl

from vmddpm_kernels.backends.triton.launch import kernel


@kernel
def fold_routes(image, parts, size: tl.int64, routes: tl.int64, BLOCK: tl.constexpr):
    """image[i] = the sum of parts[k, i] over k in order, of `size` numbers that lie side by side."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(parts + i, mask=i < size, other=0.0)
    for k in range(1, routes):
        total += tl.load(parts + k * size + i, mask=i < size, other=0.0)
    tl.store(image + i, total, mask=i < size)
