"""What the forward and the backward scan share, and how both are laid out.

A program owns BLOCK channels of one sequence, or of one image along all its routes, and walks it STEPS steps at a
time. The states of a channel are a tile [PER_THREAD, SLICES, BLOCK], state n = slice * PER_THREAD + s: Triton spreads
the last axes of a tile over the threads, so that a thread holds PER_THREAD states of one channel in registers. What
belongs to a step and a channel is loaded as a tile [STEPS, BLOCK] and spread over the slices as [STEPS, SLICES, BLOCK];
a thread then holds every step of its channel, and taking one of them costs nothing. Steps beyond the end have step size
zero, which leaves the states as they are.

`state_stride` is 1. The compiler is not told, as it would spread the states of a channel over threads to load them
side by side, and leave them there."""
# mypy: ignore-errors

import triton
import triton.language as tl

from vmddpm_kernels.backends.triton import math


@triton.jit
def pixels_of(table, route, first, length, STEPS: tl.constexpr):
    """The pixels of steps first, first + 1, ... of a route (0 beyond the end), and which of the steps exist."""
    step = first + tl.arange(0, STEPS)
    exists = step < length
    pixel = tl.where(exists, step, 0)
    if table is not None:
        pixel = tl.load(table + route * length + pixel, mask=exists, other=0)
    return pixel.to(tl.int64), exists


@triton.jit
def load_rows(tensor, pixel, stride_l, channel, stride_d, inside, ACCUMULATE: tl.constexpr):
    """[STEPS, BLOCK] of a tensor in pixel order, zero where not inside."""
    at = pixel[:, None] * stride_l + channel[None, :] * stride_d
    return tl.load(tensor + at, mask=inside, other=0.0).to(ACCUMULATE)


@triton.jit
def step_sizes(delta, bias, inside, SOFTPLUS: tl.constexpr):
    """delta [STEPS, BLOCK] as it was given, bias [BLOCK] -> the step sizes, zero where not inside."""
    if bias is not None:
        delta += bias[None, :]
    if SOFTPLUS:
        delta = math.softplus(delta)
    return tl.where(inside, delta, 0.0)


@triton.jit
def spread(tile, SLICES: tl.constexpr):
    """[STEPS, BLOCK] -> [STEPS, SLICES, BLOCK]."""
    return tl.broadcast_to(tile[:, None, :], [tile.shape[0], SLICES, tile.shape[1]])


@triton.jit
def take(tile, i):
    """Step i of [STEPS, SLICES, BLOCK] as [1, SLICES, BLOCK]."""
    here = tl.arange(0, tile.shape[0]) == i
    return tl.sum(tl.where(here[:, None, None], tile, 0.0), axis=0)[None, :, :]


@triton.jit
def put(tile, i, row):
    """The tile with row [SLICES, BLOCK] as its step i."""
    here = tl.arange(0, tile.shape[0]) == i
    return tl.where(here[:, None, None], row[None, :, :], tile)


@triton.jit
def matrix_row(table, route, sequence, step, length, STATES: tl.constexpr):
    """Where one step's row begins in B and C."""
    pixel = tl.where(step < length, step, 0)
    if table is not None:
        pixel = tl.load(table + route * length + pixel, mask=length > 0, other=0)
    return (sequence * length + pixel) * STATES


@triton.jit
def load_row(matrix, row, n, STATES: tl.constexpr):
    """The states n [PER_THREAD, SLICES, 1] of a row."""
    return tl.load(matrix + row + n, mask=n < STATES, other=0.0)


@triton.jit
def advance(h, delta, drive, rate, row_B, ZOH: tl.constexpr):
    """One step of the recurrence (paper Eq. 5-6), and its decay: h [PER_THREAD, SLICES, BLOCK], delta and
    drive = delta x [1, SLICES, BLOCK], row_B [PER_THREAD, SLICES, 1]."""
    v = delta * rate
    decay = math.decay(v)
    drive = drive * row_B
    if ZOH:
        phi, _ = math.zoh_weight(math.from_rate(v), decay)
        drive *= phi
    return decay * h + drive, decay
