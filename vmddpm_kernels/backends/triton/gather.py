"""A gather along a table, for cross scan and merge; it can sum over the routes."""
# mypy: ignore-errors

import triton.language as tl

from vmddpm_kernels.backends.triton.launch import kernel


@kernel
def gather_by_table(
    image, image_b: tl.int64, image_k: tl.int64, image_l: tl.int64, image_d: tl.int64,
    out, out_b: tl.int64, out_k: tl.int64, out_l: tl.int64, out_d: tl.int64,
    table, routes: tl.int64, length: tl.int64, channels: tl.int64, SUM_ROUTES: tl.constexpr, ACCUMULATE: tl.constexpr,
    STEPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """out[b, k, l] = image[b, k, table[k, l]]; with SUM_ROUTES, out[b, 0, l] is their sum over k, in order."""
    program = tl.program_id(0).to(tl.int64)
    blocks, tiles = tl.cdiv(channels, CHANNELS), tl.cdiv(length, STEPS)
    d = (program % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    step = (program // blocks % tiles) * STEPS + tl.arange(0, STEPS)
    sequence = program // blocks // tiles
    inside = (step < length)[:, None] & (d < channels)[None, :]
    if SUM_ROUTES:
        batch, route = sequence, 0
        value = tl.zeros([STEPS, CHANNELS], ACCUMULATE)
        for k in range(routes):
            pixel = tl.load(table + k * length + step, mask=step < length, other=0).to(tl.int64)
            at = image + batch * image_b + k * image_k + pixel[:, None] * image_l + d[None, :] * image_d
            value += tl.load(at, mask=inside, other=0.0).to(ACCUMULATE)
    else:
        batch, route = sequence // routes, sequence % routes
        pixel = tl.load(table + route * length + step, mask=step < length, other=0).to(tl.int64)
        at = image + batch * image_b + route * image_k + pixel[:, None] * image_l + d[None, :] * image_d
        value = tl.load(at, mask=inside, other=0.0)
    to = out + batch * out_b + route * out_k + step[:, None] * out_l + d[None, :] * out_d
    tl.store(to, value, mask=inside)
