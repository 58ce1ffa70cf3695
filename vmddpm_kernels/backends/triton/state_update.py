"""One step of the selective scan: a program has a few channels of one head with all their states."""
# mypy: ignore-errors

import triton.language as tl

from vmddpm_kernels.backends.triton.conv import sigmoid
from vmddpm_kernels.backends.triton.launch import kernel
from vmddpm_kernels.backends.triton.math import as_rate, decay, softplus


@kernel
def update(
    state, state_b: tl.int64, state_h: tl.int64, state_p: tl.int64, state_n: tl.int64,
    u, u_b: tl.int64, u_h: tl.int64, u_p: tl.int64, delta, delta_b: tl.int64, delta_h: tl.int64, delta_p: tl.int64,
    A, A_h: tl.int64, A_p: tl.int64, A_n: tl.int64, first, first_b: tl.int64, first_g: tl.int64, first_n: tl.int64,
    second, second_b: tl.int64, second_g: tl.int64, second_n: tl.int64, D, D_h: tl.int64, D_p: tl.int64,
    z, z_b: tl.int64, z_h: tl.int64, z_p: tl.int64, bias, bias_h: tl.int64, bias_p: tl.int64,
    y, y_b: tl.int64, y_h: tl.int64, y_p: tl.int64, heads: tl.int64, channels: tl.int64, states: tl.int64,
    heads_of_group: tl.int64, SOFTPLUS: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """`first` and `second` are B and C."""
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(channels, CHANNELS)
    p = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    h, b = program // blocks % heads, program // blocks // heads
    n = tl.arange(0, STATES).to(tl.int64)
    inside, live = p < channels, n < states
    both = inside[:, None] & live[None, :]
    group = h // heads_of_group

    x = tl.load(u + b * u_b + h * u_h + p * u_p, mask=inside, other=0).to(ACC)
    step = tl.load(delta + b * delta_b + h * delta_h + p * delta_p, mask=inside, other=0).to(ACC)
    if bias is not None:
        step += tl.load(bias + h * bias_h + p * bias_p, mask=inside, other=0).to(ACC)
    if SOFTPLUS:
        step = softplus(step)
    rate = as_rate(tl.load(A + h * A_h + p[:, None] * A_p + n[None, :] * A_n, mask=both, other=0).to(ACC))
    into = tl.load(first + b * first_b + group * first_g + n * first_n, mask=live, other=0).to(ACC)
    out = tl.load(second + b * second_b + group * second_g + n * second_n, mask=live, other=0).to(ACC)
    place = state + b * state_b + h * state_h + p[:, None] * state_p + n[None, :] * state_n
    now = tl.load(place, mask=both, other=0).to(ACC)
    now = decay(step[:, None] * rate) * now + (step * x)[:, None] * into[None, :]
    tl.store(place, now, mask=both)
    total = tl.sum(tl.where(both, now * out[None, :], 0.0), axis=1)
    if D is not None:
        total += tl.load(D + h * D_h + p * D_p, mask=inside, other=0).to(ACC) * x
    if z is not None:
        gate = tl.load(z + b * z_b + h * z_h + p * z_p, mask=inside, other=0).to(ACC)
        total *= gate * sigmoid(gate)
    tl.store(y + b * y_b + h * y_h + p * y_p, total, mask=inside)
