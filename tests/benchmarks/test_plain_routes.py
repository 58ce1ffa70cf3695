"""VMamba's formula in plain PyTorch equals the operators' definition: copies by a table."""

import pytest
import torch

import vmddpm_kernels as vk
from benchmarks import plain_routes

SIZES = [(4, 4), (3, 5), (1, 7), (7, 1)]


def images(height, width, channel_first, *routes):
    t = torch.randint(-50, 50, (2, *routes, 3, height, width)).double()  # sums of whole numbers are exact
    return t if channel_first else t.movedim((-2, -1), (1, 2)).contiguous()


@pytest.mark.parametrize("channel_first", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_scan(size, channel_first):
    x = images(*size, channel_first).requires_grad_()
    scan = plain_routes.cross_scan if channel_first else plain_routes.cross_scan_channel_last
    xs = scan(x)
    table = vk.routes(*size).long()
    pixels = x.flatten(2) if channel_first else x.flatten(1, 2)
    expected = pixels[:, :, table].movedim(2, 1) if channel_first else pixels[:, table.T]
    assert torch.equal(xs, expected)
    weights = torch.randint_like(xs, -50, 50)
    (found,), (gradient,) = torch.autograd.grad(xs, x, weights), torch.autograd.grad(expected, x, weights)
    assert torch.equal(found, gradient)


@pytest.mark.parametrize("channel_first", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_merge(size, channel_first):
    ys = images(*size, channel_first, 4).requires_grad_()
    merge = plain_routes.cross_merge if channel_first else plain_routes.cross_merge_channel_last
    y = merge(ys)
    steps = vk.routes(*size).argsort(dim=1)  # the step at which route k visits each pixel
    sequences = ys.flatten(3) if channel_first else ys.flatten(1, 2).permute(0, 2, 3, 1)  # (B, 4, C, L)
    expected = sum(sequences[:, k, :, steps[k]] for k in range(4))
    expected = expected if channel_first else expected.transpose(1, 2)
    assert torch.equal(y, expected)
    weights = torch.randint_like(y, -50, 50)
    (found,), (gradient,) = torch.autograd.grad(y, ys, weights), torch.autograd.grad(expected, ys, weights)
    assert torch.equal(found, gradient)
