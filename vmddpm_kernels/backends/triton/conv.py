"""The causal convolution: a program has a tile [STEPS, CHANNELS] and reads each tap one step further back. Gradients
recompute the slope of SiLU."""
# mypy: ignore-errors

import triton
import triton.language as tl

from vmddpm_kernels.backends.triton.launch import kernel
from vmddpm_kernels.backends.triton.math import exp_negative


@triton.jit
def sigmoid(v):
    e = exp_negative(tl.abs(v))
    return tl.where(v < 0.0, e, 1.0) / (e + 1.0)


@triton.jit
def tile_of(length, channels, STEPS: tl.constexpr, CHANNELS: tl.constexpr):
    """A program's batch, steps [STEPS, 1] and channels [1, CHANNELS]."""
    program = tl.program_id(0).to(tl.int64)
    blocks, tiles = tl.cdiv(channels, CHANNELS), tl.cdiv(length, STEPS)
    d = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    step = program // blocks % tiles * STEPS + tl.arange(0, STEPS)
    return program // blocks // tiles, step[:, None], d[None, :]


@triton.jit
def tap_at(x, x_l, x_d, history, step, d, inside, length, channels, W: tl.constexpr, ACC: tl.constexpr):
    """x of one sequence; steps before the first are read from `history`, and are 0 without it."""
    value = tl.load(x + step * x_l + d * x_d, mask=inside & (step >= 0) & (step < length), other=0).to(ACC)
    if history is not None:
        early = inside & (step < 0)
        value += tl.load(history + (step + (W - 1)) * channels + d, mask=early, other=0).to(ACC)
    return value


@triton.jit
def weighted(
    x, x_l, x_d, history, weight, bias, step, d, inside, length, channels, W: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    v = tl.zeros(inside.shape, ACC)
    if bias is not None:
        v += tl.load(bias + d, mask=inside, other=0)
    for k in tl.static_range(W):
        tap = tap_at(x, x_l, x_d, history, step - (W - 1) + k, d, inside, length, channels, W, ACC)
        v += tl.load(weight + d * W + k, mask=inside, other=0) * tap
    return v


@triton.jit
def slope_at(
    dy, dy_l, dy_d, x, x_l, x_d, history, weight, bias, step, d, inside, length, channels, SILU: tl.constexpr,
    W: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient of v, 0 outside the sequence."""
    inside = inside & (step >= 0) & (step < length)
    dv = tl.load(dy + step * dy_l + d * dy_d, mask=inside, other=0).to(ACC)
    if SILU:
        v = weighted(x, x_l, x_d, history, weight, bias, step, d, inside, length, channels, W, ACC)
        s = sigmoid(v)
        dv = tl.where(inside, dv * (s * (v * (1.0 - s) + 1.0)), 0.0)
    return dv


@kernel
def conv_forward(
    x, x_b: tl.int64, x_l: tl.int64, x_d: tl.int64, y, y_b: tl.int64, y_l: tl.int64, y_d: tl.int64,
    history, weight, bias, length: tl.int64, channels: tl.int64, SILU: tl.constexpr, W: tl.constexpr,
    STEPS: tl.constexpr, CHANNELS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    batch, step, d = tile_of(length, channels, STEPS, CHANNELS)
    inside = (step < length) & (d < channels)
    if history is not None:
        history += batch * (W - 1) * channels
    v = weighted(x + batch * x_b, x_l, x_d, history, weight, bias, step, d, inside, length, channels, W, ACC)
    if SILU:
        v = v * sigmoid(v)
    tl.store(y + batch * y_b + step * y_l + d * y_d, v, mask=inside)


@kernel
def conv_input_gradient(
    dy, dy_b: tl.int64, dy_l: tl.int64, dy_d: tl.int64, x, x_b: tl.int64, x_l: tl.int64, x_d: tl.int64,
    dx, dx_b: tl.int64, dx_l: tl.int64, dx_d: tl.int64, dhistory, history, weight, bias, length: tl.int64,
    channels: tl.int64, SILU: tl.constexpr, W: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """dx, and dhistory for the W - 1 steps before the first."""
    batch, step, d = tile_of(length + (W - 1), channels, STEPS, CHANNELS)
    step -= W - 1
    inside = (step < length) & (d < channels)
    if history is not None:
        history += batch * (W - 1) * channels
    total = tl.zeros([STEPS, CHANNELS], ACC)
    for k in tl.static_range(W):
        dv = slope_at(
            dy + batch * dy_b, dy_l, dy_d, x + batch * x_b, x_l, x_d, history, weight, bias, step + (W - 1) - k, d,
            inside, length, channels, SILU, W, ACC,
        )  # fmt: skip
        total += tl.load(weight + d * W + k, mask=d < channels, other=0) * dv
    tl.store(dx + batch * dx_b + step * dx_l + d * dx_d, total, mask=inside & (step >= 0))
    if dhistory is not None:
        at = dhistory + (batch * (W - 1) + step + (W - 1)) * channels + d
        tl.store(at, total, mask=inside & (step < 0))


@kernel
def conv_weight_gradient(
    dy, dy_b: tl.int64, dy_l: tl.int64, dy_d: tl.int64, x, x_b: tl.int64, x_l: tl.int64, x_d: tl.int64,
    dweight, dbias, history, weight, bias, length: tl.int64, channels: tl.int64, SILU: tl.constexpr,
    W: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dweight (B, D, W) and dbias (B, D), to be summed over the batch. A program handles one tap, or the bias."""
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(channels, CHANNELS)
    d = (program % blocks * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    k, batch = program // blocks % (W + 1), program // blocks // (W + 1)
    if history is not None:
        history += batch * (W - 1) * channels
    total = tl.zeros([CHANNELS], ACC)
    for start in range(0, length, STEPS):
        step = (start + tl.arange(0, STEPS))[:, None].to(tl.int64)
        inside = (step < length) & (d < channels)
        dv = slope_at(
            dy + batch * dy_b, dy_l, dy_d, x + batch * x_b, x_l, x_d, history, weight, bias, step, d, inside, length,
            channels, SILU, W, ACC,
        )  # fmt: skip
        tap = tap_at(x + batch * x_b, x_l, x_d, history, step - (W - 1) + k, d, inside, length, channels, W, ACC)
        total += tl.sum(dv * tl.where(k == W, 1.0, tap), axis=0)
    place = tl.arange(0, CHANNELS) + program % blocks * CHANNELS
    tl.store(dweight + (batch * channels + place) * W + k, total, mask=(place < channels) & (k < W))
    if dbias is not None:
        tl.store(dbias + batch * channels + place, total, mask=(place < channels) & (k == W))
