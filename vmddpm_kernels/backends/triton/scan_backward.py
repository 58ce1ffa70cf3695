"""The adjoint of the scan; scan_steps.py says how it is laid out."""
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
def scan_backward(
    x, x_b: tl.int64, x_k: tl.int64, x_l: tl.int64, x_d: tl.int64,
    delta, delta_b: tl.int64, delta_k: tl.int64, delta_l: tl.int64, delta_d: tl.int64,
    A, B, C, D, delta_bias, table, checkpoints, scratch,
    dy, dy_b: tl.int64, dy_k: tl.int64, dy_l: tl.int64, dy_d: tl.int64,
    dlast_state,
    dx, dx_b: tl.int64, dx_k: tl.int64, dx_l: tl.int64, dx_d: tl.int64,
    ddelta, ddelta_b: tl.int64, ddelta_k: tl.int64, ddelta_l: tl.int64, ddelta_d: tl.int64,
    dA, dB, dC, dD, ddelta_bias, dinitial_state,
    batches: tl.int64, routes: tl.int64, length: tl.int64, channels: tl.int64, blocks: tl.int64, state_stride: tl.int64,
    STATES: tl.constexpr, CHUNK: tl.constexpr, SOFTPLUS: tl.constexpr, ZOH: tl.constexpr, MERGE: tl.constexpr,
    STEPS: tl.constexpr, PER_THREAD: tl.constexpr, SLICES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """With v = delta A and the forward h_l = e^v h_{l-1} + phi(v) drive B, drive = delta x, walks back:
      g = dh + C dy,  dC += <dy, h_l>,  dB += <g phi, drive>,  ddrive += g phi B,
      dv = g (e^v h_{l-1} + phi'(v) drive B),  ddelta += dv A,  dA += dv delta,  dh <- e^v g.

    Chunks are walked from the last to the first: once forwards from the checkpoint, keeping in `scratch`
    (programs, CHUNK / STEPS, N, BLOCK) the states before each STEPS steps, then backwards, STEPS at a time, whose
    states are computed again in registers. dB and dC (blocks, B, K, L, N) are sums over the channels of a block;
    dA (B, K, D, N), dD and ddelta_bias (B, K, D) over the steps of a sequence."""
    ACCUMULATE: tl.constexpr = A.dtype.element_ty
    TILES: tl.constexpr = CHUNK // STEPS
    program = tl.program_id(0).to(tl.int64)
    block = program % blocks
    channel = block * BLOCK + tl.arange(0, BLOCK)
    s, part = tl.arange(0, PER_THREAD), tl.arange(0, SLICES)
    n = part[None, :, None] * PER_THREAD + s[:, None, None]                         # (PER_THREAD, SLICES, 1)
    d = channel[None, None, :]                                                      # (1, 1, BLOCK)
    owned = (n < STATES) & (d < channels)
    dB_sums = dB + block * batches * routes * length * STATES
    dC_sums = dC + block * batches * routes * length * STATES
    KEPT: tl.constexpr = PER_THREAD * SLICES * BLOCK
    lane = tl.arange(0, BLOCK)[None, None, :]
    own_scratch = scratch + program * TILES * KEPT + n * BLOCK + lane
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
        if dlast_state is None:
            dh = tl.zeros([PER_THREAD, SLICES, BLOCK], ACCUMULATE)
        else:
            dh = tl.load(dlast_state + state, mask=owned, other=0.0)
        dA_sum = tl.zeros([PER_THREAD, SLICES, BLOCK], ACCUMULATE)
        dD_sum = tl.zeros([STEPS, BLOCK], ACCUMULATE)
        dbias_sum = tl.zeros([STEPS, BLOCK], ACCUMULATE)
        x_image, delta_image = x + batch * x_b + route * x_k, delta + batch * delta_b + route * delta_k

        chunks = tl.cdiv(length, CHUNK)
        for later_chunks in range(chunks):
            chunk = chunks - 1 - later_chunks
            saved = checkpoints + (sequence * chunks + chunk) * STATES * channels
            h = tl.load(saved + n * channels + d, mask=owned, other=0.0)
            tl.store(own_scratch, h)
            tiles = tl.minimum(TILES, tl.cdiv(length - chunk * CHUNK, STEPS))
            for tile in range(1, tiles):
                first = chunk * CHUNK + (tile - 1) * STEPS
                pixel, exists = pixels_of(table, route, first, length, STEPS)
                inside = exists[:, None] & (channel < channels)[None, :]
                u = load_rows(x_image, pixel, x_l, channel, x_d, inside, ACCUMULATE)
                sizes = load_rows(delta_image, pixel, delta_l, channel, delta_d, inside, ACCUMULATE)
                sizes = step_sizes(sizes, bias, inside, SOFTPLUS)
                deltas, drives = spread(sizes, SLICES), spread(sizes * u, SLICES)
                for i in tl.static_range(STEPS):
                    row = matrix_row(table, route, sequence, first + i, length, STATES)
                    h, _ = advance(h, take(deltas, i), take(drives, i), rate, load_row(B, row, n, STATES), ZOH)
                tl.store(own_scratch + tile * KEPT, h)
            tl.debug_barrier()

            for later_tiles in range(tiles):
                tile = tiles - 1 - later_tiles
                first = chunk * CHUNK + tile * STEPS
                pixel, exists = pixels_of(table, route, first, length, STEPS)
                inside = exists[:, None] & (channel < channels)[None, :]
                u = load_rows(x_image, pixel, x_l, channel, x_d, inside, ACCUMULATE)
                sizes = load_rows(delta_image, pixel, delta_l, channel, delta_d, inside, ACCUMULATE)
                sizes = step_sizes(sizes, bias, inside, SOFTPLUS)
                if dy is None:
                    slope = tl.zeros([STEPS, BLOCK], ACCUMULATE)
                else:
                    dy_image = dy + batch * dy_b + route * dy_k
                    slope = load_rows(dy_image, pixel, dy_l, channel, dy_d, inside, ACCUMULATE)
                deltas, drives, slopes = spread(sizes, SLICES), spread(sizes * u, SLICES), spread(slope, SLICES)

                h = tl.load(own_scratch + tile * KEPT)
                states, decays, rows = (h,), (), ()
                for i in tl.static_range(STEPS):
                    row = matrix_row(table, route, sequence, first + i, length, STATES)
                    row_B, row_C = load_row(B, row, n, STATES), load_row(C, row, n, STATES)
                    h, decay = advance(h, take(deltas, i), take(drives, i), rate, row_B, ZOH)
                    states += (h,)
                    decays += (decay,)
                    rows += ((row, row_B, row_C),)

                dsizes = tl.zeros([STEPS, SLICES, BLOCK], ACCUMULATE)
                ddrives = tl.zeros([STEPS, SLICES, BLOCK], ACCUMULATE)
                for i in tl.static_range(STEPS - 1, -1, -1):
                    delta_i, drive_i, dy_i = take(deltas, i), take(drives, i), take(slopes, i)
                    row, row_B, row_C = rows[i]
                    g = dh + dy_i * row_C
                    dh = decays[i] * g
                    dv = dh * states[i]
                    weighted = g
                    if ZOH:
                        phi, dphi = math.zoh_weight(math.from_rate(delta_i * rate), decays[i])
                        dv += g * dphi * drive_i * row_B
                        weighted = g * phi
                    dA_sum += dv * delta_i
                    dsizes = put(dsizes, i, tl.sum(dv * rate, axis=0))
                    ddrives = put(ddrives, i, tl.sum(weighted * row_B, axis=0))
                    # Every thread has the sum over the channels. The first of each row stores it: a tile without the
                    # channels' axis would be laid out anew, through shared memory.
                    stored = (n < STATES) & (lane == 0) & (first + i + 0 * lane < length)
                    at = row + n * state_stride + 0 * lane
                    tl.store(dB_sums + at, tl.sum(weighted * drive_i, axis=2, keep_dims=True), mask=stored)
                    tl.store(dC_sums + at, tl.sum(dy_i * states[i + 1], axis=2, keep_dims=True), mask=stored)

                ddrive = tl.sum(ddrives, axis=1)                                    # (STEPS, BLOCK)
                dsize = math.from_rate(tl.sum(dsizes, axis=1)) + ddrive * u
                if SOFTPLUS:
                    dsize *= math.softplus_slope(sizes)
                dsize = tl.where(inside, dsize, 0.0)
                dbias_sum += dsize
                to = ddelta + batch * ddelta_b + route * ddelta_k
                tl.store(to + pixel[:, None] * ddelta_l + channel[None, :] * ddelta_d, dsize, mask=inside)
                du = ddrive * sizes
                if D is not None:
                    du += slope * tl.load(D + parameter, mask=channel < channels, other=0.0)[None, :]
                    dD_sum += slope * u
                to = dx + batch * dx_b + route * dx_k + pixel[:, None] * dx_l + channel[None, :] * dx_d
                if MERGE and route > 0:
                    du += tl.load(to, mask=inside, other=0.0).to(ACCUMULATE)
                tl.store(to, du, mask=inside)
            tl.debug_barrier()  # the next chunk writes over the scratch, the next route adds to dx

        tl.store(dA + state, dA_sum, mask=owned)
        parameter = sequence * channels + channel
        if D is not None:
            tl.store(dD + parameter, tl.sum(dD_sum, axis=0), mask=channel < channels)
        if delta_bias is not None:
            tl.store(ddelta_bias + parameter, tl.sum(dbias_sum, axis=0), mask=channel < channels)
        if dinitial_state is not None:
            tl.store(dinitial_state + state, dh, mask=owned)
