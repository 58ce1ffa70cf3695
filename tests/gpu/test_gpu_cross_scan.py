"""Cross scan and merge only copy and add four values, so they must equal the `reference` backend bit for bit."""

import pytest
import torch
from gpu_cases import BACKEND, DEVICE, REHEARSAL, assert_equal_bits, need_memory, strided

import vmddpm_kernels as vk

pytestmark = pytest.mark.gpu

LAYOUTS = [(True, True), (True, False), (False, True), (False, False)]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
MORE_THAN_32_BITS = 2**16 if REHEARSAL else 2**31


def image(batch, channels, height, width, first, one_by_one, dtype=torch.float64):
    """Small integers: sums of four are exact in every dtype."""
    apart = (4,) if one_by_one else ()
    shape = (batch, *apart, channels, height, width) if first else (batch, height, width, *apart, channels)
    return torch.randint(-50, 50, shape, device=DEVICE).to(dtype)


def check(x, y, layout, **options):
    for function, tensor in ((vk.cross_scan, x), (vk.cross_merge, y)):
        got = function(tensor, *layout, backend=BACKEND, **options)
        want = function(tensor, *layout, backend="reference", **options)
        assert got.is_contiguous()
        assert got.dtype == want.dtype
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("scans", [0, 1, 2, 3])
@pytest.mark.parametrize(("in_first", "out_first"), LAYOUTS)
def test_equals_reference(in_first, out_first, scans, one_by_one, dtype):
    for batch, channels, height, width in ((2, 3, 4, 7), (1, 65, 1, 5), (2, 33, 35, 40), (2, 128, 16, 16)):
        x = image(batch, channels, height, width, in_first, one_by_one, dtype)
        y = image(batch, channels, height, width, out_first, True, dtype)
        layout = (in_first, out_first, one_by_one, scans)
        check(x, y, layout)
        check(strided(x), strided(y), layout)
        check(x, y, layout, permutation=vk.patch_permutation(height, width, seed=1).to(DEVICE))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_merge_rounds_once(dtype):
    y = torch.randn(2, 4, 5, 6, 7, device=DEVICE).to(dtype)
    exact = vk.cross_merge(y.double(), backend="reference")
    assert torch.equal(vk.cross_merge(y, backend=BACKEND), exact.float().to(dtype))


def test_special_values_are_copied():
    bits = torch.tensor([0x7FC00001, -0x7FFFFF, 0x7F800000, 1, -0x80000000, 0x00400000], dtype=torch.int32)
    x = bits.to(DEVICE).view(torch.float32).view(1, 1, 2, 3)
    assert torch.equal(vk.cross_scan(x, backend=BACKEND)[0, 0, 0].view(torch.int32), bits.to(DEVICE))


@pytest.mark.parametrize(("in_first", "out_first"), LAYOUTS)
@pytest.mark.parametrize("one_by_one", [False, True])
def test_gradients(in_first, out_first, one_by_one):
    layout = (in_first, out_first, one_by_one, 3)
    options = {"permutation": vk.patch_permutation(3, 2, seed=1).to(DEVICE), "backend": BACKEND}
    x = image(1, 2, 3, 2, in_first, one_by_one).requires_grad_()
    y = image(1, 2, 3, 2, out_first, True).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: vk.cross_scan(t, *layout, **options), (x,))
    assert torch.autograd.gradcheck(lambda t: vk.cross_merge(t, *layout, **options), (y,))
    scanned, merged = vk.cross_scan(x, *layout, **options), vk.cross_merge(y, *layout, **options)
    (gradient,) = torch.autograd.grad(scanned, x, y.detach().reshape(scanned.shape))
    assert torch.equal(gradient.flatten(), merged.detach().flatten())


def test_same_bits_every_time():
    y = torch.randn(2, 4, 65, 31, 33, device=DEVICE)
    first = vk.cross_merge(y, backend=BACKEND)
    assert_equal_bits([vk.cross_merge(y, backend=BACKEND) for _ in range(2)], [first, first])


@pytest.mark.parametrize("first", [True, False])
def test_beyond_32_bit_offsets(first):
    need_memory(45)
    height, width = (16, 15) if REHEARSAL else (512, 511)
    channels = MORE_THAN_32_BITS // (4 * height * width) + 9
    shape = (1, channels, height, width) if first else (1, height, width, channels)
    x = torch.randint(-50, 50, shape, device=DEVICE, dtype=torch.int8).to(torch.bfloat16)
    assert 4 * x.numel() > MORE_THAN_32_BITS
    sequences = vk.cross_scan(x, first, first, backend=BACKEND)
    assert torch.equal(sequences, vk.cross_scan(x, first, first, backend="reference"))
    axes = (1, 4, channels, height, width) if first else (1, height, width, 4, channels)
    merged = vk.cross_merge(sequences.view(axes), first, first, backend=BACKEND)
    assert torch.equal(merged.flatten(), 4 * x.flatten())  # each pixel is summed over four routes
