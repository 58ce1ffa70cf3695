"""Cross scan and merge against VMamba's definition, element by element."""

import itertools
from functools import cache

import numpy as np
import pytest
import torch
from oracle import route_destination

import vmddpm_kernels as vk

LAYOUTS = list(itertools.product([True, False], [True, False]))


@cache
def destinations(code, height, width):
    """(4, L): the step at which each route visits each pixel."""
    pixels = itertools.product(range(height), range(width))
    steps = [[route_destination(code, k, h, w, height, width) for k in range(4)] for h, w in pixels]
    return np.array(steps).T


def scan_by_definition(x, in_first, out_first, one_by_one, code):
    x = x.numpy()
    if one_by_one:
        images = x if in_first else x.transpose(0, 3, 4, 1, 2)                    # (B, 4, C, H, W)
    else:
        image = x if in_first else x.transpose(0, 3, 1, 2)                        # (B, C, H, W)
        images = np.stack([image] * 4, axis=1)
    batch, _, channels, height, width = images.shape
    out = np.full((batch, 4, channels, height * width), np.nan, dtype=x.dtype)
    for k, steps in enumerate(destinations(code, height, width)):
        out[:, k][..., steps] = images[:, k].reshape(batch, channels, -1)
    return torch.from_numpy(out if out_first else np.ascontiguousarray(out.transpose(0, 3, 1, 2)))


def merge_by_definition(y, in_first, out_first, one_by_one, code):
    y = y.numpy()
    y = y if out_first else y.transpose(0, 3, 4, 1, 2)                            # (B, 4, C, H, W)
    batch, _, channels, height, width = y.shape
    flat = y.reshape(batch, 4, channels, height * width)
    images = np.full((batch, 4, channels, height * width), np.nan, dtype=y.dtype)
    for k, steps in enumerate(destinations(code, height, width)):
        images[:, k] = flat[:, k][..., steps]
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


# Channels that fill whole vectors or not; several tiles of an image, of its channels and of pixels; planes that begin
# anywhere within 16 bytes.
@pytest.mark.parametrize(("in_first", "out_first"), LAYOUTS)
@pytest.mark.parametrize("sizes", [(1, 20, 31, 33), (2, 16, 8, 24), (2, 17, 7, 7), (1, 5, 38, 34)])
def test_larger_images(backend, sizes, in_first, out_first):
    """One image for all routes or one each; memory without gaps, and with gaps between channels, images or pixels."""
    cases = [
        (torch.float32, False, 0, lambda t, _: t),
        (torch.bfloat16, True, 3, lambda t, _: t),
        (torch.float16, False, 2, lambda t, first: window(t, pixels=(-2, -1) if first else (1, 2))),
        (torch.float64, False, 0, lambda t, _: torch.stack([t, torch.full_like(t, torch.nan)], dim=-1)[..., 0]),
    ]
    for dtype, one_by_one, scans, arranged in cases if sizes[0] == 2 else cases[:2]:
        layout = (in_first, out_first, one_by_one, scans)
        x, y = image(*sizes, in_first, one_by_one), image(*sizes, out_first, True)
        for function, tensor, first, expected in (
            (vk.cross_scan, x, in_first, scan_by_definition(x, *layout)),
            (vk.cross_merge, y, out_first, merge_by_definition(y, *layout)),
        ):
            got = function(arranged(tensor.to(dtype), first), *layout, backend=backend)
            assert torch.equal(got, expected.to(dtype))


def window(t, pixels):
    """The same values inside a larger tensor, with gaps on every axis except the pixels'."""
    whole = [axis % t.dim() for axis in pixels]
    larger = torch.full([n if i in whole else n + 3 for i, n in enumerate(t.shape)], torch.nan, dtype=t.dtype)
    inner = larger[tuple(slice(None) if i in whole else slice(1, n + 1) for i, n in enumerate(t.shape))]
    return inner.copy_(t)


@pytest.mark.parametrize(("in_first", "out_first"), LAYOUTS)
def test_memory_between_vectors(backend, in_first, out_first):
    """Contiguous tensors that begin at an address that is no multiple of 16 bytes or of a sector."""
    layout = (in_first, out_first, False, 0)
    for sizes, dtype in (((1, 16, 8, 24), torch.float32), ((1, 16, 31, 33), torch.bfloat16)):
        x, y = image(*sizes, in_first, False), image(*sizes, out_first, True)
        expected_y, expected_x = scan_by_definition(x, *layout), merge_by_definition(y, *layout)
        x, y = (torch.empty(t.numel() + 3, dtype=dtype)[3:].view(t.shape).copy_(t) for t in (x, y))
        assert torch.equal(vk.cross_scan(x, *layout, backend=backend), expected_y.to(dtype))
        assert torch.equal(vk.cross_merge(y, *layout, backend=backend), expected_x.to(dtype))


@pytest.mark.parametrize(("in_first", "out_first"), LAYOUTS)
@pytest.mark.parametrize("one_by_one", [False, True])
def test_adjoint_and_gradients(backend, in_first, out_first, one_by_one):
    """Exact adjoints: gradcheck and gradgradcheck, and the inner-product identity with a permutation."""
    layout = (in_first, out_first, one_by_one, 3)
    x = image(1, 2, 3, 2, in_first, one_by_one).requires_grad_()
    y = image(1, 2, 3, 2, out_first, True).requires_grad_()
    options = {"permutation": vk.patch_permutation(3, 2, seed=1), "backend": backend}
    fast = {"fast_mode": backend == "triton"}  # interpreted, so one random direction instead of every element
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


def test_special_values_are_put_back(backend):
    """NaN payloads, which conversions would change, and subnormal numbers."""
    if backend == "reference":
        pytest.skip("torch.gather has one NaN in half precision")
    bits = torch.tensor([0x7C01, -0x03FE, 0x7FC1, 0x7C00, 1, -0x8000], dtype=torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        y = bits.view(dtype).repeat(4).view(1, 4, 1, 2, 3)
        images = vk.cross_merge(y, one_by_one=True, scans="unidi", backend=backend)
        assert torch.equal(images.view(torch.int16), y.flatten(3).view(torch.int16))


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
