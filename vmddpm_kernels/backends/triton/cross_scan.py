"""Cross scan and cross merge through Triton: what the kernel is given, and the memory that it fills."""

import torch
import triton.language as tl
from torch import Tensor

from vmddpm_kernels.backends.extension import empty, int32
from vmddpm_kernels.backends.triton.gather import gather_along_routes
from vmddpm_kernels.backends.triton.launch import INTERPRETED, check_memory, launch
from vmddpm_kernels.routes import check_table_once

STEPS, CHANNELS = 32, 32  # of a tile: whole sectors of memory on either side, whichever axis is contiguous there


def _gather(image: Tensor, table: Tensor, merge: bool, channel_first: bool) -> Tensor:
    """image (B, K or 1, L, C) -> (B, K, L, C), or (B, 1, L, C) if `merge`."""
    check_memory((image,))
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


def cross_scan(x: Tensor, table: Tensor, channel_first: bool) -> Tensor:
    """x (B, K or 1, L, C) in pixel order -> (B, K, L, C) in the order of the routes; an exact copy."""
    check_table_once(table, x.shape[2])
    return _gather(x, int32(table), False, channel_first)


def cross_merge(y: Tensor, table: Tensor, sum_routes: bool, channel_first: bool) -> Tensor:
    """y (B, K, L, C) in the order of the routes -> (B, 1, L, C) summed over them, or (B, K, L, C)."""
    check_table_once(table, y.shape[2])
    steps = torch.arange(table.shape[1], dtype=torch.int32, device=table.device).expand_as(table)
    inverse = torch.empty(table.shape, dtype=torch.int32, device=table.device).scatter_(1, table.long(), steps)
    return _gather(y, inverse, sum_routes, channel_first)
