"""The adjoint of the scan; scan_steps.py describes the layout."""
# mypy: ignore-errors

import triton.language as tl

from vmddpm_kernels.backends.triton import math, scan_steps
from vmddpm_kernels.backends.triton.launch import kernel


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
    batches: tl.int64, routes: tl.int64, length: tl.int64, channels: tl.int64, walked: tl.int64,
    STATES: tl.constexpr, CHUNK: tl.constexpr, SOFTPLUS: tl.constexpr, ZOH: tl.constexpr, ADDS: tl.constexpr,
    GROUP: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """With v = delta A and the forward h_l = e^v h_{l-1} + phi(v) drive B, drive = delta x, the walk back is:
      g = dh + C dy,  dC += <dy, h_l>,  dB += <g phi, drive>,  ddrive += g phi B,
      dv = g (e^v h_{l-1} + phi'(v) drive B),  ddelta += dv A,  dA += dv delta,  dh <- e^v g.

    Chunks are walked from the last to the first. Each is first walked forwards from its checkpoint, saving the states
    before each tile of STEPS steps in `scratch` (programs, tiles of a chunk, GROUP, BLOCK), then backwards, recomputing
    each tile's states in registers. dB and dC (blocks, B, K, L, N) are sums over the channels of a block; dA
    (B, K, D, N), dD and ddelta_bias (B, K, D) are sums over the steps of a sequence. A program walks routes and adds to
    dx as the forward adds to y; groups of states also add to ddelta."""
    FLOAT: tl.constexpr = A.dtype.element_ty
    GROUPS: tl.constexpr = (STATES + GROUP - 1) // GROUP
    PADDED: tl.constexpr = 16 if GROUP > 8 else 8 if GROUP > 4 else 4 if GROUP > 2 else GROUP
    SHARE: tl.constexpr = BLOCK // (2 * PADDED)  # lanes for one sum of dB or dC
    blocks = tl.cdiv(channels, BLOCK)
    program = tl.program_id(0).to(tl.int64)
    block = program % blocks
    lane = tl.arange(0, BLOCK)
    channel = block * BLOCK + lane
    owned = channel < channels
    sequence = program // blocks * walked
    batch, first_route = sequence // routes, sequence % routes
    chunks = tl.cdiv(length, CHUNK)
    tiles = tl.cdiv(tl.minimum(length, CHUNK), STEPS)
    kept = scratch + program * tiles * (GROUP * BLOCK) + lane
    own_state = lane // SHARE % PADDED
    sums = tl.where(lane < BLOCK // 2, dB, dC) + block * batches * routes * length * STATES + own_state

    for part in range(walked * GROUPS):
        route, first = first_route + part // GROUPS, part % GROUPS * GROUP
        sequence = batch * routes + route
        parameter = route * channels + channel
        state = (sequence * channels + channel) * STATES
        rates = scan_steps.load_rates(A, parameter * STATES, first, owned, STATES, GROUP)
        bias = None if delta_bias is None else tl.load(delta_bias + parameter, mask=owned, other=0.0)
        skip = None if D is None else tl.load(D + parameter, mask=owned & (first == 0), other=0.0)
        if dlast_state is None:
            dh = scan_steps.zeros(FLOAT, GROUP, BLOCK)
        else:
            dh = scan_steps.load_states(dlast_state, state, 1, first, owned, STATES, GROUP)
        dA_sums = scan_steps.zeros(FLOAT, GROUP, BLOCK)
        dD_sum, dbias_sum = tl.zeros([BLOCK], FLOAT), tl.zeros([BLOCK], FLOAT)
        x_at = x + batch * x_b + route * x_k + channel * x_d
        delta_at = delta + batch * delta_b + route * delta_k + channel * delta_d
        B_at, C_at = B + sequence * length * STATES, C + sequence * length * STATES
        sums_at = sums + sequence * length * STATES + first
        dx_at = dx + batch * dx_b + route * dx_k + channel * dx_d
        ddelta_at = ddelta + batch * ddelta_b + route * ddelta_k + channel * ddelta_d
        if dy is not None:
            dy_at = dy + batch * dy_b + route * dy_k + channel * dy_d
        sums_stored = (lane % SHARE == 0) & (own_state < tl.minimum(GROUP, STATES - first))

        for later_chunks in range(chunks):
            chunk = chunks - 1 - later_chunks
            start = chunk * CHUNK
            order = None if table is None else table + route * length + start
            steps = tl.minimum(length - start, CHUNK).to(tl.int32)
            last = (steps - 1) // STEPS
            at = (sequence * chunks + chunk) * STATES * channels + channel
            h = scan_steps.load_states(checkpoints, at, channels, first, owned, STATES, GROUP)
            for tile in range(last):
                scan_steps.store_states(kept, tile * (GROUP * BLOCK), BLOCK, 0, lane >= 0, h, GROUP, GROUP)
                for i in tl.static_range(STEPS):
                    step = tile * STEPS + i
                    pixel = scan_steps.pixel_of(order, start, step, steps)
                    u = tl.load(x_at + pixel * x_l, mask=owned, other=0.0).to(FLOAT)
                    size = tl.load(delta_at + pixel * delta_l, mask=owned, other=0.0).to(FLOAT)
                    size = scan_steps.step_size(size, bias, owned, SOFTPLUS)
                    row_B = scan_steps.load_row(B_at, pixel * STATES, first, STATES, GROUP, BLOCK)
                    h, _ = scan_steps.advance(h, size, size * u, rates, row_B, ZOH, GROUP)
            scan_steps.store_states(kept, last * (GROUP * BLOCK), BLOCK, 0, lane >= 0, h, GROUP, GROUP)
            tl.debug_barrier()

            for later_tiles in range(last + 1):
                tile = last - later_tiles
                pixels, us, sizes, slopes, states, decays = (), (), (), (), (), ()
                for i in tl.static_range(STEPS):
                    pixel = scan_steps.pixel_of(order, start, tile * STEPS + i, steps)
                    inside = owned & (tile * STEPS + i < steps)
                    u = tl.load(x_at + pixel * x_l, mask=inside, other=0.0).to(FLOAT)
                    size = tl.load(delta_at + pixel * delta_l, mask=inside, other=0.0).to(FLOAT)
                    slope = tl.zeros([BLOCK], FLOAT)
                    if dy is not None:
                        slope = tl.load(dy_at + pixel * dy_l, mask=inside, other=0.0).to(FLOAT)
                    pixels += (pixel,)
                    us += (u,)
                    sizes += (scan_steps.step_size(size, bias, inside, SOFTPLUS),)
                    slopes += (slope,)
                after = scan_steps.load_states(kept, tile * (GROUP * BLOCK), BLOCK, 0, lane >= 0, GROUP, GROUP)
                for i in tl.static_range(STEPS):
                    row_B = scan_steps.load_row(B_at, pixels[i] * STATES, first, STATES, GROUP, BLOCK)
                    states += (after,)
                    after, decay = scan_steps.advance(after, sizes[i], sizes[i] * us[i], rates, row_B, ZOH, GROUP)
                    decays += (decay,)

                for i in tl.static_range(STEPS - 1, -1, -1):
                    size, u, slope = sizes[i], us[i], slopes[i]
                    drive = size * u
                    row_B = scan_steps.load_row(B_at, pixels[i] * STATES, first, STATES, GROUP, BLOCK)
                    row_C = scan_steps.load_row(C_at, pixels[i] * STATES, first, STATES, GROUP, BLOCK)
                    before, dvs, weighted, dB_terms, dC_terms, dA_added = (), (), (), (), (), ()
                    for s in tl.static_range(GROUP):
                        g = dh[s] + slope * row_C[s]
                        carried = decays[i][s] * g
                        dv = carried * states[i][s]
                        through = g
                        if ZOH:
                            phi, dphi = math.zoh_weight(math.from_rate(size * rates[s]), decays[i][s], True)
                            dv += g * dphi * drive * row_B[s]
                            through = g * phi
                        dvs += (dv,)
                        weighted += (through,)
                        dA_added += (dA_sums[s] + dv * size,)
                        dB_terms += (through * drive,)
                        dC_terms += (slope * after[s],)
                        before += (carried,)
                    dh, dA_sums = before, dA_added
                    after = states[i]
                    none = scan_steps.zeros(FLOAT, PADDED - GROUP, BLOCK)
                    sum = scan_steps.sum_over_lanes(dB_terms + none + dC_terms + none, 2 * PADDED, BLOCK)
                    exists = tile * STEPS + i < steps
                    tl.store(sums_at + pixels[i] * STATES, sum, mask=sums_stored & exists)

                    inside = owned & exists
                    ddrive = scan_steps.inner(weighted, row_B, GROUP)
                    dsize = math.from_rate(scan_steps.inner(dvs, rates, GROUP)) + ddrive * u
                    if SOFTPLUS:
                        dsize *= math.softplus_slope(size)
                    dsize = tl.where(inside, dsize, 0.0)
                    dbias_sum += dsize
                    du = ddrive * size
                    if D is not None:
                        du += slope * skip
                        dD_sum += slope * u
                    dx_to = dx_at + pixels[i] * dx_l
                    if ADDS:
                        du += tl.load(dx_to, mask=inside & (part > 0), other=0.0).to(FLOAT)
                    tl.store(dx_to, du, mask=inside)
                    ddelta_to = ddelta_at + pixels[i] * ddelta_l
                    if GROUPS > 1:
                        dsize += tl.load(ddelta_to, mask=inside & (first > 0), other=0.0).to(FLOAT)
                    tl.store(ddelta_to, dsize, mask=inside)
            tl.debug_barrier()  # the next chunk overwrites the scratch

        scan_steps.store_states(dA, state, 1, first, owned, dA_sums, STATES, GROUP)
        parameter = sequence * channels + channel
        if D is not None:
            tl.store(dD + parameter, dD_sum, mask=owned & (first == 0))
        if delta_bias is not None:
            if GROUPS > 1:
                dbias_sum += tl.load(ddelta_bias + parameter, mask=owned & (first > 0), other=0.0)
            tl.store(ddelta_bias + parameter, dbias_sum, mask=owned)
        if dinitial_state is not None:
            scan_steps.store_states(dinitial_state, state, 1, first, owned, dh, STATES, GROUP)
