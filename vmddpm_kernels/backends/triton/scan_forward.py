"""The forward scan; scan_steps.py says how it is laid out."""
# mypy: ignore-errors

import triton.language as tl

from vmddpm_kernels.backends.triton import math
from vmddpm_kernels.backends.triton.launch import kernel
from vmddpm_kernels.backends.triton.scan_steps import (
    advance,
    load_row,
    load_rows,
    matrix_row,
    pixels_of,
    put,
    spread,
    step_sizes,
    take,
)


@kernel
def scan_forward(
    x, x_b: tl.int64, x_k: tl.int64, x_l: tl.int64, x_d: tl.int64,
    delta, delta_b: tl.int64, delta_k: tl.int64, delta_l: tl.int64, delta_d: tl.int64,
    A, B, C, D, delta_bias, initial_state, table,
    y, y_b: tl.int64, y_k: tl.int64, y_l: tl.int64, y_d: tl.int64,
    last_state, checkpoints,
    routes: tl.int64, length: tl.int64, channels: tl.int64, blocks: tl.int64, state_stride: tl.int64,
    STATES: tl.constexpr, CHUNK: tl.constexpr, SOFTPLUS: tl.constexpr, ZOH: tl.constexpr, MERGE: tl.constexpr,
    STEPS: tl.constexpr, PER_THREAD: tl.constexpr, SLICES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y along every route, or with MERGE the sum over the routes of an image, which one program walks in order.

    `checkpoints` (B, K, chunks, N, D) get the states before each chunk of CHUNK steps."""
    ACCUMULATE: tl.constexpr = A.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    channel = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    s, part = tl.arange(0, PER_THREAD), tl.arange(0, SLICES)
    n = part[None, :, None] * PER_THREAD + s[:, None, None]                         # (PER_THREAD, SLICES, 1)
    d = channel[None, None, :]                                                      # (1, 1, BLOCK)
    owned = (n < STATES) & (d < channels)
    if MERGE:
        batch, first_route, end_route = program // blocks, 0, routes
    else:
        batch, first_route = (program // blocks) // routes, (program // blocks) % routes
        end_route = first_route + 1

    for route in range(first_route, end_route):
        sequence = batch * routes + route
        parameter = route * channels + channel                                      # (BLOCK,)
        rate = math.as_rate(tl.load(A + (route * channels + d) * STATES + n * state_stride, mask=owned, other=0.0))
        bias = None
        if delta_bias is not None:
            bias = tl.load(delta_bias + parameter, mask=channel < channels, other=0.0)
        state = (sequence * channels + d) * STATES + n * state_stride
        if initial_state is None:
            h = tl.zeros([PER_THREAD, SLICES, BLOCK], ACCUMULATE)
        else:
            h = tl.load(initial_state + state, mask=owned, other=0.0)
        for first in range(0, length, STEPS):
            if checkpoints is not None and first % CHUNK == 0:
                saved = (sequence * tl.cdiv(length, CHUNK) + first // CHUNK) * STATES * channels
                tl.store(checkpoints + saved + n * channels + d, h, mask=owned)
            pixel, exists = pixels_of(table, route, first, length, STEPS)
            inside = exists[:, None] & (channel < channels)[None, :]
            u = load_rows(x + batch * x_b + route * x_k, pixel, x_l, channel, x_d, inside, ACCUMULATE)
            sizes = load_rows(
                delta + batch * delta_b + route * delta_k, pixel, delta_l, channel, delta_d, inside, ACCUMULATE
            )
            sizes = step_sizes(sizes, bias, inside, SOFTPLUS)
            deltas, drives = spread(sizes, SLICES), spread(sizes * u, SLICES)
            out = tl.zeros([STEPS, SLICES, BLOCK], ACCUMULATE)
            for i in tl.static_range(STEPS):
                row = matrix_row(table, route, sequence, first + i, length, STATES)
                row_B, row_C = load_row(B, row, n, STATES), load_row(C, row, n, STATES)
                h, _ = advance(h, take(deltas, i), take(drives, i), rate, row_B, ZOH)
                out = put(out, i, tl.sum(h * row_C, axis=0))
            result = tl.sum(out, axis=1)                                            # (STEPS, BLOCK)
            if D is not None:
                result += tl.load(D + parameter, mask=channel < channels, other=0.0)[None, :] * u
            to = y + batch * y_b + route * y_k + pixel[:, None] * y_l + channel[None, :] * y_d
            if MERGE and route > 0:
                result += tl.load(to, mask=inside, other=0.0).to(ACCUMULATE)
            tl.store(to, result, mask=inside)
        tl.store(last_state + state, h, mask=owned)
        tl.debug_barrier()  # the next route adds to what other threads of this program may have written
