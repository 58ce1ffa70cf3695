"""Cross scan and cross merge, channel first and last, against VMamba's formula in plain PyTorch, VMamba's kernels and a
plain copy of the four sequences."""

from typing import Any

import torch

import vmddpm_kernels as vk
from benchmarks import plain_routes
from benchmarks.implementations import leaves
from benchmarks.limits import Work
from benchmarks.problem import BOTH, FORWARD, ROUTES, Case, Implementation

# A large image, an odd one, a batch of one and a large batch; stages of VMamba-T at 224 x 224
IMAGES = [(4, 64, 64, 96), (4, 31, 33, 192), (1, 32, 32, 96), (16, 16, 16, 384)]
STAGES = [(4, 56, 56, 192), (4, 14, 14, 768), (4, 7, 7, 1536)]
EVERY = [Case(*size, 1, dtype) for dtype in (torch.float32, torch.bfloat16) for size in (*IMAGES, *STAGES)]
QUICK = [*(Case(*size, 1) for size in (*IMAGES, STAGES[2])), *(Case(*size, 1, torch.bfloat16) for size in STAGES[:2])]
CASES = {"quick": QUICK, "full": [*EVERY, Case(1, 256, 256, 96, 1)]}
DIRECTIONS = (FORWARD, BOTH)
IMPLEMENTATIONS = ("ours", "plain PyTorch", "reference", "VMamba", "copy")


class Copy(torch.autograd.Function):
    """A copy of the largest tensor of a scan or merge, forward and backward."""

    @staticmethod
    def forward(ctx: Any, t: torch.Tensor) -> torch.Tensor:
        return t.clone()

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> torch.Tensor:
        return dy.clone()


def draw(case, device, seed):
    g = torch.Generator(device).manual_seed(seed)
    shape = (case.batch, ROUTES, case.channels, case.height, case.width)
    return torch.randn(shape, generator=g, device=device).to(case.dtype)        # (B, 4, C, H, W)


def draw_channel_last(case, device, seed):
    return draw(case, device, seed).permute(0, 3, 4, 1, 2).contiguous()         # (B, H, W, 4, C)


def same(t):
    return t


def sequence(image, channel_first):
    """The image with height and width flattened to one axis."""
    return (image.flatten(-2) if channel_first else image.flatten(1, 2)).contiguous()


def scan_by(run, channel_first):
    routes = 1 if channel_first else 3
    return lambda four, *_: Implementation(leaves(four.select(routes, 0)), run, sequence(four, channel_first), same)


def merge_by(run, channel_first):
    routes = 1 if channel_first else 3
    return lambda four, *_: Implementation(leaves(four), run, sequence(four.select(routes, 0), channel_first), same)


def vmamba(index, by, channel_first):
    def make(four, backend, baselines):
        theirs = baselines["VMamba"][index]
        return by(lambda t: theirs(t, channel_first, channel_first, False, 0), channel_first)(four)

    return make


def copy(four, *_):
    return Implementation(leaves(four), Copy.apply, four, None)


def makers(by, operator, plain, vmamba_index, channel_first):
    return {
        "ours": by(lambda t: operator(t, channel_first, channel_first), channel_first),
        "plain PyTorch": by(plain, channel_first),
        "reference": by(lambda t: operator(t, channel_first, channel_first, backend="reference"), channel_first),
        "VMamba": vmamba(vmamba_index, by, channel_first),
        "copy": copy,
    }


SCANS = makers(scan_by, vk.cross_scan, plain_routes.cross_scan, 0, channel_first=True)
MERGES = makers(merge_by, vk.cross_merge, plain_routes.cross_merge, 2, channel_first=True)
SCANS_CHANNEL_LAST = makers(scan_by, vk.cross_scan, plain_routes.cross_scan_channel_last, 0, channel_first=False)
MERGES_CHANNEL_LAST = makers(merge_by, vk.cross_merge, plain_routes.cross_merge_channel_last, 2, channel_first=False)


def moved(case, direction):
    """One image and four sequences, and as many again in the backward."""
    tensors = (1 + ROUTES) * (2 if direction == BOTH else 1)
    return Work(tensors * case.batch * case.channels * case.length * case.dtype.itemsize)


def test_cross_scan(harness, case, direction, implementation):
    harness(SCANS, case, direction, implementation, draw=draw, work=lambda _: moved(case, direction))


def test_cross_merge(harness, case, direction, implementation):
    harness(MERGES, case, direction, implementation, draw=draw, work=lambda _: moved(case, direction))


def test_cross_scan_channel_last(harness, case, direction, implementation):
    work = moved(case, direction)
    harness(SCANS_CHANNEL_LAST, case, direction, implementation, draw=draw_channel_last, work=lambda _: work)


def test_cross_merge_channel_last(harness, case, direction, implementation):
    work = moved(case, direction)
    harness(MERGES_CHANNEL_LAST, case, direction, implementation, draw=draw_channel_last, work=lambda _: work)
