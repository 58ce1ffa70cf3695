"""Cross scan and merge against VMamba's definition, element by element."""

import itertools

import numpy as np
import pytest
import torch
from oracle import route_destination

import vmddpm_kernels as vk

LAYOUTS = list(itertools.product([True, False], [True, False]))


def scan_by_definition(x, in_first, out_first, one_by_one, code):
    x = x.numpy()
    if one_by_one:
        images = x if in_first else x.transpose(0, 3, 4, 1, 2)                    # (B, 4, C, H, W)
    else:
        image = x if in_first else x.transpose(0, 3, 1, 2)                        # (B, C, H, W)
        images = np.stack([image] * 4, axis=1)
    batch, _, channels, height, width = images.shape
    out = np.full((batch, 4, channels, height * width), np.nan, dtype=x.dtype)
    for k, h, w in itertools.product(range(4), range(height), range(width)):
        out[:, k, :, route_destination(code, k, h, w, height, width)] = images[:, k, :, h, w]
    return torch.from_numpy(out if out_first else np.ascontiguousarray(out.transpose(0, 3, 1, 2)))


def merge_by_definition(y, in_first, out_first, one_by_one, code):
    y = y.numpy()
    y = y if out_first else y.transpose(0, 3, 4, 1, 2)                            # (B, 4, C, H, W)
    batch, _, channels, height, width = y.shape
    flat = y.reshape(batch, 4, channels, height * width)
    images = np.full((batch, 4, channels, height * width), np.nan, dtype=y.dtype)
    for k, h, w in itertools.product(range(4), range(height), range(width)):
        images[:, k, :, h * width + w] = flat[:, k, :, route_destination(code, k, h, w, height, width)]
    if one_by_one:
        return torch.from_numpy(images if in_first else np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    merged = images.sum(1)
    return torch.from_numpy(merged if in_first else np.ascontiguousarray(merged.transpose(0, 2, 1)))


def image(batch, channels, height, width, first, one_by_one, dtype=torch.float64):
    """Small integers: sums of four are exact in every dtype."""
    shape = (batch, 4, channels, height, width) if one_by_one else (batch, channels, height, width)
    x = torch.randint(-50, 50, shape).to(dtype)
    if first:
        return x
    return x.permute(0, 3, 4, 1, 2).contiguous() if one_by_one else x.permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("scans", [0, 1, 2, 3])
@pytest.mark.parametrize(("in_first", "out_first"), LAYOUTS)
@pytest.mark.parametrize(("height", "width"), [(4, 7), (1, 5), (9, 8)])
def test_equals_definition(backend, height, width, in_first, out_first, scans, one_by_one):
    layout = (in_first, out_first, one_by_one, scans)
    x = image(2, 3, height, width, in_first, one_by_one)
    y = vk.cross_scan(x, *layout, backend=backend)
    assert y.is_contiguous()
    assert torch.equal(y, scan_by_definition(x, *layout))

    y = image(2, 3, height, width, out_first, True)
    merged = vk.cross_merge(y, *layout, backend=backend)
    assert merged.is_contiguous()
    assert torch.equal(merged, merge_by_definition(y, *layout))


@pytest.mark.parametrize(("in_first", "out_first"), LAYOUTS)
@pytest.mark.parametrize("one_by_one", [False, True])
def test_adjoint_and_gradients(backend, in_first, out_first, one_by_one):
    """Exact adjoints: gradcheck and gradgradcheck, and the inner-product identity with a permutation."""
    layout = (in_first, out_first, one_by_one, 3)
    x = image(1, 2, 3, 2, in_first, one_by_one).requires_grad_()
    y = image(1, 2, 3, 2, out_first, True).requires_grad_()
    options = {"permutation": vk.patch_permutation(3, 2, seed=1), "backend": backend}
    fast = {"fast_mode": backend == "triton"}  # interpreted: one random direction instead of every element
    assert torch.autograd.gradcheck(lambda t: vk.cross_scan(t, *layout, **options), (x,), **fast)
    assert torch.autograd.gradcheck(lambda t: vk.cross_merge(t, *layout, **options), (y,), **fast)
    assert torch.autograd.gradgradcheck(lambda t: vk.cross_scan(t, *layout, **options) ** 2, (x,), **fast)
    assert torch.autograd.gradgradcheck(lambda t: vk.cross_merge(t, *layout, **options) ** 2, (y,), **fast)
    scanned = vk.cross_scan(x, *layout, **options)
    merged = vk.cross_merge(y, *layout, **options)
    (gradient,) = torch.autograd.grad(scanned, x, y.detach().reshape(scanned.shape))
    assert torch.equal(gradient.flatten(), merged.detach().flatten())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_strides_and_dtypes(backend, dtype):
    big = torch.randn(3, 10, 12, 14).to(dtype)
    x = big[::2, 1:8:3, ::5, 1::4]
    assert not x.is_contiguous()
    expected = scan_by_definition(x.double().contiguous(), True, True, False, 0).to(dtype)
    assert torch.equal(vk.cross_scan(x, backend=backend), expected)
    last = x.permute(0, 2, 3, 1)
    assert torch.equal(vk.cross_scan(last, in_channel_first=False, backend=backend), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_merge_rounds_once(backend, dtype):
    y = torch.randn(2, 4, 5, 6, 7).to(dtype)
    exact = merge_by_definition(y.double(), True, True, False, 0)
    assert torch.equal(vk.cross_merge(y, backend=backend), exact.float().to(dtype))


def test_special_values_are_copied(backend):
    bits = torch.tensor([0x7FC00001, -0x7FFFFF, 0x7F800000, 1, -0x80000000, 0x00400000], dtype=torch.int32)
    x = bits.view(torch.float32).view(1, 1, 2, 3)
    assert torch.equal(vk.cross_scan(x, backend=backend)[0, 0, 0].view(torch.int32), bits)


def test_bad_shapes():
    for function, tensor, words in [
        (vk.cross_scan, torch.zeros(2, 3, 4), r"x must have shape \(B, C, H, W\)"),
        (vk.cross_merge, torch.zeros(2, 4, 3, 8), r"y must have shape \(B, 4, C, H, W\)"),
        (vk.cross_merge, torch.zeros(2, 3, 3, 4, 4), r"y must have shape \(B, 4, C, H, W\)"),
    ]:
        with pytest.raises(ValueError, match=words):
            function(tensor)
    with pytest.raises(ValueError, match="scans"):
        vk.cross_scan(torch.zeros(1, 1, 2, 2), scans=7)
    with pytest.raises(ValueError, match=r"x .* must have at least one pixel"):
        vk.cross_scan(torch.zeros(1, 1, 0, 2))
    with pytest.raises(TypeError, match="x must be float16"):
        vk.cross_scan(torch.zeros(1, 1, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="permutation"):
        vk.cross_scan(torch.zeros(1, 1, 2, 2), permutation=torch.tensor([0, 1, 2, 2]))
