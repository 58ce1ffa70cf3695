"""Code shared by the forward and the backward scan, and their layout.

A program owns BLOCK channels of one sequence, or of one image along some of its routes. A tile has one axis, the
channels, which Triton spreads over the lanes of a warp. A channel's states are a tuple of these tiles: a lane holds
them all in its registers, and lanes exchange nothing that belongs to a channel. A row of B or C belongs to all
channels: every lane loads it whole. More than GROUP states are walked in groups, one after another, and their results
are summed. Steps beyond the end have step size zero, which leaves the states unchanged."""
# mypy: ignore-errors

import triton
import triton.language as tl

from vmddpm_kernels.backends.triton import math


@triton.jit
def zeros(FLOAT: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
    """N tiles."""
    tiles = ()
    for _ in tl.static_range(N):
        tiles += (tl.zeros([BLOCK], FLOAT),)
    return tiles


@triton.jit
def load_states(memory, at, stride, first, inside, STATES: tl.constexpr, GROUP: tl.constexpr):
    """The states first, first + 1, ... of every channel, `stride` apart; zero beyond the last."""
    tiles = ()
    for s in tl.static_range(GROUP):
        mask = inside if STATES % GROUP == 0 else inside & (first + s < STATES)
        tiles += (tl.load(memory + at + (first + s) * stride, mask=mask, other=0.0),)
    return tiles


@triton.jit
def store_states(memory, at, stride, first, inside, tiles, STATES: tl.constexpr, GROUP: tl.constexpr):
    for s in tl.static_range(GROUP):
        mask = inside if STATES % GROUP == 0 else inside & (first + s < STATES)
        tl.store(memory + at + (first + s) * stride, tiles[s], mask=mask)


@triton.jit
def load_rates(A, at, first, inside, STATES: tl.constexpr, GROUP: tl.constexpr):
    rates = ()
    for s in tl.static_range(GROUP):
        mask = inside if STATES % GROUP == 0 else inside & (first + s < STATES)
        rates += (math.as_rate(tl.load(A + at + first + s, mask=mask, other=0.0)),)
    return rates


@triton.jit
def pixel_of(table, first, step, steps):
    """The pixel of a step of a chunk of `steps` steps that begins with step `first` of a route. Beyond the end, the
    pixel of the chunk's first step."""
    step = tl.where(step < steps, step, 0)
    # Unsigned, for cheaper 64-bit products.
    return first + step if table is None else tl.load(table + step).to(tl.uint32).to(tl.int64)


@triton.jit
def load_row(matrix, row, first, STATES: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """The states first, first + 1, ... of a row of B or C, for every lane. Rows of whole, aligned 16-byte vectors are
    loaded as vectors: by tiles in which all lanes load the same four states."""
    values = ()
    if STATES % 4 == 0 and GROUP % 4 == 0:
        for s in tl.static_range(0, GROUP, 4):
            state = tl.broadcast_to((first + s + tl.arange(0, 4))[None, :], [BLOCK, 4])
            at = tl.max_contiguous(tl.multiple_of(matrix + row + state, [1, 16]), [1, 4])
            if STATES % GROUP == 0:
                four = tl.load(at)
            else:
                four = tl.load(at, mask=tl.max_constancy(state < STATES, [1, 4]), other=0.0)
            even, odd = tl.split(tl.reshape(four, [BLOCK, 2, 2]))
            s0, s2 = tl.split(even)
            s1, s3 = tl.split(odd)
            values += (s0, s1, s2, s3)
    else:
        for s in tl.static_range(GROUP):
            values += (tl.load(matrix + row + first + s, mask=first + s < STATES, other=0.0),)
    return values


@triton.jit
def step_size(delta, bias, inside, SOFTPLUS: tl.constexpr):
    """The given delta -> the step size, zero where not inside."""
    if bias is not None:
        delta += bias
    if SOFTPLUS:
        delta = math.softplus(delta)
    return tl.where(inside, delta, 0.0)


@triton.jit
def advance(h, delta, drive, rates, row_B, ZOH: tl.constexpr, GROUP: tl.constexpr):
    """One step of the recurrence (paper Eq. 5-6), with drive = delta x: the states after it and their decays."""
    decays, after = (), ()
    for s in tl.static_range(GROUP):
        decays += (math.decay(delta * rates[s]),)
    for s in tl.static_range(GROUP):
        driven = drive * row_B[s]
        if ZOH:
            driven *= math.zoh_weight(math.from_rate(delta * rates[s]), decays[s], False)
        after += (decays[s] * h[s] + driven,)
    return after, decays


@triton.jit
def inner(a, b, N: tl.constexpr):
    """The sum of N products, in four partial sums: shorter chains of latency and of rounding."""
    parts = ()
    for s in tl.static_range(N if N < 4 else 4):
        parts += (a[s] * b[s],)
    for s in tl.static_range(4, N):
        longer = ()
        for i in tl.static_range(4):
            longer += (parts[i] + a[s] * b[s] if s % 4 == i else parts[i],)
        parts = longer
    total = parts[0]
    for i in tl.static_range(1, N if N < 4 else 4):
        total += parts[i]
    return total


@triton.jit
def halve(tiles, N: tl.constexpr, DISTANCE: tl.constexpr):
    """One stage of a butterfly sum, N tiles -> N / 2: two lanes DISTANCE apart send each other the half that the other
    lane keeps. A single tile is summed over both lanes."""
    lane = tl.arange(0, tiles[0].shape[0])
    halved = ()
    if N <= 1:
        halved += (tiles[0] + tl.gather(tiles[0], lane ^ DISTANCE, 0),)
    else:
        upper = lane & DISTANCE != 0
        for i in tl.static_range(N // 2):
            low, high = tiles[i], tiles[N // 2 + i]
            kept, given = tl.where(upper, high, low), tl.where(upper, low, high)
            halved += (kept + tl.gather(given, lane ^ DISTANCE, 0),)
    return halved


@triton.jit
def sum_over_lanes(tiles, N: tl.constexpr, BLOCK: tl.constexpr):
    """N tiles (a power of two, at most BLOCK) -> one tile: each run of BLOCK / N lanes holds one tile's sum over all
    lanes, in order. Takes about 4 N instructions, where N separate sums take 10 N."""
    for i in tl.static_range(7):
        if BLOCK >> i > 1:
            tiles = halve(tiles, N >> i, BLOCK >> (i + 1))
    return tiles[0]
