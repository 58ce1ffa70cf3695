"""The forward scan; scan_steps.py describes the layout."""
# mypy: ignore-errors

import triton.language as tl

from vmddpm_kernels.backends.triton import scan_steps
from vmddpm_kernels.backends.triton.launch import kernel


@kernel
def scan_forward(
    x, x_b: tl.int64, x_k: tl.int64, x_l: tl.int64, x_d: tl.int64,
    delta, delta_b: tl.int64, delta_k: tl.int64, delta_l: tl.int64, delta_d: tl.int64,
    A, B, C, D, delta_bias, initial_state, table,
    y, y_b: tl.int64, y_k: tl.int64, y_l: tl.int64, y_d: tl.int64,
    last_state, checkpoints,
    routes: tl.int64, length: tl.int64, channels: tl.int64, walked: tl.int64,
    STATES: tl.constexpr, CHUNK: tl.constexpr, SOFTPLUS: tl.constexpr, ZOH: tl.constexpr, ADDS: tl.constexpr,
    GROUP: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y along every route. A program walks `walked` routes in order. ADDS is set if it walks several routes or groups
    of states: those after the first add to y.

    `checkpoints` (B, K, chunks, N, D) receive the states before each chunk of CHUNK steps."""
    FLOAT: tl.constexpr = A.dtype.element_ty
    GROUPS: tl.constexpr = (STATES + GROUP - 1) // GROUP
    blocks = tl.cdiv(channels, BLOCK)
    program = tl.program_id(0).to(tl.int64)
    channel = program % blocks * BLOCK + tl.arange(0, BLOCK)
    owned = channel < channels
    sequence = program // blocks * walked
    batch, first_route = sequence // routes, sequence % routes
    chunks = tl.cdiv(length, CHUNK)

    for part in range(walked * GROUPS):
        route, first = first_route + part // GROUPS, part % GROUPS * GROUP
        sequence = batch * routes + route
        parameter = route * channels + channel
        state = (sequence * channels + channel) * STATES
        rates = scan_steps.load_rates(A, parameter * STATES, first, owned, STATES, GROUP)
        bias = None if delta_bias is None else tl.load(delta_bias + parameter, mask=owned, other=0.0)
        skip = None if D is None else tl.load(D + parameter, mask=owned & (first == 0), other=0.0)
        if initial_state is None:
            h = scan_steps.zeros(FLOAT, GROUP, BLOCK)
        else:
            h = scan_steps.load_states(initial_state, state, 1, first, owned, STATES, GROUP)
        x_at = x + batch * x_b + route * x_k + channel * x_d
        delta_at = delta + batch * delta_b + route * delta_k + channel * delta_d
        B_at, C_at = B + sequence * length * STATES, C + sequence * length * STATES
        y_at = y + batch * y_b + route * y_k + channel * y_d

        for chunk in range(chunks):
            start = chunk * CHUNK
            if checkpoints is not None:
                at = (sequence * chunks + chunk) * STATES * channels + channel
                scan_steps.store_states(checkpoints, at, channels, first, owned, h, STATES, GROUP)
            order = None if table is None else table + route * length + start
            steps = tl.minimum(length - start, CHUNK).to(tl.int32)
            for step in range(0, steps, STEPS):
                # Load all steps before storing any: the compiler moves nothing across a store.
                pixels, us, sizes, earlier, outs = (), (), (), (), ()
                for i in tl.static_range(STEPS):
                    pixel = scan_steps.pixel_of(order, start, step + i, steps)
                    inside = owned & (step + i < steps)
                    u = tl.load(x_at + pixel * x_l, mask=inside, other=0.0).to(FLOAT)
                    size = tl.load(delta_at + pixel * delta_l, mask=inside, other=0.0).to(FLOAT)
                    if ADDS:
                        earlier += (tl.load(y_at + pixel * y_l, mask=inside & (part > 0), other=0.0).to(FLOAT),)
                    pixels += (pixel,)
                    us += (u,)
                    sizes += (scan_steps.step_size(size, bias, inside, SOFTPLUS),)
                for i in tl.static_range(STEPS):
                    row_B = scan_steps.load_row(B_at, pixels[i] * STATES, first, STATES, GROUP, BLOCK)
                    row_C = scan_steps.load_row(C_at, pixels[i] * STATES, first, STATES, GROUP, BLOCK)
                    h, _ = scan_steps.advance(h, sizes[i], sizes[i] * us[i], rates, row_B, ZOH, GROUP)
                    out = scan_steps.inner(h, row_C, GROUP)
                    if D is not None:
                        out += skip * us[i]
                    if ADDS:
                        out += earlier[i]
                    outs += (out,)
                for i in tl.static_range(STEPS):
                    tl.store(y_at + pixels[i] * y_l, outs[i], mask=owned & (step + i < steps))
        scan_steps.store_states(last_state, state, 1, first, owned, h, STATES, GROUP)
