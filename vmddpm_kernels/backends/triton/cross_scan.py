"""Cross scan and cross merge through Triton: one kernel that gathers along a table, and may add up what it gathers."""
# mypy: allow-untyped-defs

import torch
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from vmddpm_kernels.backends.extension import empty
from vmddpm_kernels.backends.triton.launch import INTERPRETED, kernel, launch
from vmddpm_kernels.routes import check_table_once

STEPS, CHANNELS = 32, 32  # of a tile: whole sectors of memory on either side, whichever axis is contiguous there


@kernel
def gather_along_routes(
    image, image_b: tl.int64, image_k: tl.int64, image_l: tl.int64, image_d: tl.int64,
    out, out_b: tl.int64, out_k: tl.int64, out_l: tl.int64, out_d: tl.int64,
    table, routes: tl.int64, length: tl.int64, channels: tl.int64, MERGE: tl.constexpr, ACCUMULATE: tl.constexpr,
    STEPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """out[b, k, l] = image[b, k, table[k, l]], or with MERGE out[b, 0, l], their sum over k in order."""
    program = tl.program_id(0).to(tl.int64)
    blocks, tiles = tl.cdiv(channels, CHANNELS), tl.cdiv(length, STEPS)
    d = (program % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    step = (program // blocks % tiles) * STEPS + tl.arange(0, STEPS)
    sequence = program // blocks // tiles
    inside = (step < length)[:, None] & (d < channels)[None, :]
    if MERGE:
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


def _gather(image: Tensor, table: Tensor, merge: bool, channel_first: bool) -> Tensor:
    """image (B, K or 1, L, C) -> (B, K, L, C), or (B, 1, L, C) if `merge`."""
    batch, images, length, channels = image.shape
    routes, wide = table.shape[0], torch.promote_types(image.dtype, torch.float32)
    accumulate = tl.float64 if wide == torch.float64 else tl.float32
    # Triton's interpreter cuts digits off where a GPU rounds to bfloat16: there torch does it.
    dtype = wide if merge and INTERPRETED else image.dtype
    out = empty((batch, 1 if merge else routes, length, channels), channel_first, dtype, image.device)
    image_strides = (image.stride(0), 0 if images == 1 else image.stride(1), image.stride(2), image.stride(3))
    sequences = batch * (1 if merge else routes)
    launch(
        gather_along_routes, sequences * -(-length // STEPS) * -(-channels // CHANNELS), image.device,
        image, *image_strides, out, *out.stride(), table, routes, length, channels,
        MERGE=merge, ACCUMULATE=accumulate, STEPS=STEPS, CHANNELS=CHANNELS, num_warps=4,
    )  # fmt: skip
    return out.to(image.dtype)


def scan_routes(x: Tensor, table: Tensor, *, channel_first: bool) -> Tensor:
    """x (B, K or 1, L, C) in pixel order -> (B, K, L, C) in the order of the routes; an exact copy."""
    check_table_once(table, x.shape[2])
    return _gather(x, table.to(torch.int32).contiguous(), False, channel_first)


def merge_routes(y: Tensor, table: Tensor, *, merge: bool, channel_first: bool) -> Tensor:
    """y (B, K, L, C) in the order of the routes -> (B, 1, L, C) summed over them if `merge`, else (B, K, L, C)."""
    check_table_once(table, y.shape[2])
    steps = torch.arange(table.shape[1], dtype=torch.int32, device=table.device).expand_as(table)
    inverse = torch.empty(table.shape, dtype=torch.int32, device=table.device).scatter_(1, table.long(), steps)
    return _gather(y, inverse, merge, channel_first)
