"""Cross scan, cross merge and the selective scan over volumes, and over images along other routes than VMamba's,
against loops over voxels."""

import itertools

import pytest
import torch
from oracle import scan_loop

import vmddpm_kernels as vk

LAYOUTS = list(itertools.product([True, False], [True, False]))
CASES = [
    ((3, 5, 2), "tri-orientated"), ((2, 3, 4), 0), ((3, 5), "omnidirectional"), ((1, 2, 3, 2), "tdhw,wHdt-reversed"),
]  # fmt: skip


def arranged(t, first, per_route):
    """(B, K, C, ...) or (B, C, ...) unchanged, or channel last."""
    if first:
        return t
    return (t.movedim((1, 2), (-2, -1)) if per_route else t.movedim(1, -1)).contiguous()


def by_loop(images, table):
    """(B, K, C, D, H, W) -> (B, K, C, L), a voxel at a time."""
    size, flat = images.shape[3:], torch.full((*images.shape[:3], table.shape[1]), float("nan"))
    for k, order in enumerate(table.tolist()):
        for step, pixel in enumerate(order):
            place = []
            for extent in size[::-1]:
                pixel, coordinate = divmod(pixel, extent)
                place.insert(0, coordinate)
            flat[:, k, :, step] = images[(slice(None), k, slice(None), *place)]
    return flat


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize(("in_first", "out_first"), LAYOUTS)
@pytest.mark.parametrize(("size", "scans"), CASES)
def test_against_a_loop(backend, size, scans, in_first, out_first, one_by_one):
    """Small integers, so sums are exact. The merge, as the adjoint, makes the table's inverse of one-hot sequences."""
    order = vk.patch_permutation(*size, seed=3)
    for permutation in (None, order):
        table = vk.routes(*size, scans=scans, permutation=permutation)
        routes, length = table.shape
        options = {"scans": scans, "permutation": permutation, "backend": backend}
        layout = (in_first, out_first, one_by_one)
        x = torch.randint(-9, 9, (2, routes, 3, *size) if one_by_one else (2, 3, *size)).float()
        images = x if one_by_one else x[:, None].expand(-1, routes, *x.shape[1:])
        expected = by_loop(images, table)                                         # (B, K, C, L)
        y = vk.cross_scan(arranged(x, in_first, one_by_one), *layout, **options)
        assert torch.equal(y, expected if out_first else expected.permute(0, 3, 1, 2))

        sequences = torch.randint(-9, 9, (2, routes, 3, *size)).float()
        apart = torch.full((2, routes, 3, length), float("nan"))
        for k, pixels in enumerate(table.tolist()):
            for step, pixel in enumerate(pixels):
                apart[:, k, :, pixel] = sequences.flatten(3)[:, k, :, step]
        merged = vk.cross_merge(arranged(sequences, out_first, True), *layout, **options)
        wanted = apart if one_by_one else apart.sum(1)
        if not in_first:
            wanted = wanted.permute(0, 3, 1, 2) if one_by_one else wanted.permute(0, 2, 1)
        assert torch.equal(merged, wanted)


@pytest.mark.parametrize(("size", "scans"), [((2, 3, 2), "cross3d"), ((3, 2), "hilbert")])
def test_gradients(size, scans):
    x = torch.randn(1, 2, *size, dtype=torch.float64, requires_grad=True)
    y = vk.cross_scan(x, scans=scans)
    sequences = torch.randn(1, y.shape[1], 2, *size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: vk.cross_scan(t, scans=scans), (x,))
    assert torch.autograd.gradcheck(lambda t: vk.cross_merge(t, scans=scans), (sequences,))
    (gradient,) = torch.autograd.grad(y, x, sequences.detach().view(y.shape))
    assert torch.allclose(gradient.flatten(), vk.cross_merge(sequences, scans=scans).flatten())


@pytest.mark.parametrize("scans", ["tri-orientated", "ss3d", "hilbert"])
def test_selective_scan_of_a_volume(scans):
    size, generator = (3, 2, 5), torch.Generator().manual_seed(0)
    table = vk.routes(*size, scans=scans)
    routes, length = table.shape

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, delta, A = normal(2, length, 4), normal(2, routes, length, 4), -normal(routes, 4, 3).exp()
    B, C, D, bias = normal(2, routes, length, 3), normal(2, routes, length, 3), normal(routes, 4), normal(routes, 4)
    y, last = vk.cross_selective_scan(x, delta, A, B, C, D, bias, table, return_last_state=True)
    expected, state = scan_loop(x, delta, A, B, C, D, bias, table=table)
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(last, state, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_blocks_of_a_volume_move_whole(patch_size):
    size = (4, 2, 6)
    order = vk.patch_permutation(*size, patch_size=patch_size, seed=2)
    assert order.sort().values.tolist() == list(range(48))
    volume, homes = order.view(size), set()
    step = range(patch_size)
    for corner in itertools.product(*(range(0, extent, patch_size) for extent in size)):
        first = int(volume[corner])
        home = (first // 12, first // 6 % 2, first % 6)
        assert all(place % patch_size == 0 for place in home)
        for d, h, w in itertools.product(step, step, step):
            pixel = ((home[0] + d) * 2 + home[1] + h) * 6 + home[2] + w
            assert volume[corner[0] + d, corner[1] + h, corner[2] + w] == pixel
        homes.add(home)
    assert len(homes) == 48 // patch_size**3
    assert not torch.equal(order, vk.patch_permutation(*size, patch_size=patch_size, seed=3))


def test_bad_shapes():
    for function, shape, options, words in [
        (vk.cross_scan, (1, 2, 3, 4, 5, 6, 7), {}, r"x must have shape \(B, C, H, W\) or \(B, C, D, H, W\)"),
        (vk.cross_merge, (1, 4, 2, 3, 4, 5), {}, r"y must have shape \(B, 6, C, D, H, W\)"),
        (vk.cross_merge, (1, 3, 4, 5, 4, 2), {"out_channel_first": False}, r"\(B, D, H, W, 6, C\)"),
        (vk.cross_merge, (1, 4, 2, 3, 4), {"scans": "omnidirectional"}, r"y must have shape \(B, 8, C, H, W\)"),
        (vk.cross_scan, (1, 2, 3, 4, 5), {"scans": "cross2d"}, "'cross2d' is for images with 2 axes, not 3"),
        (vk.cross_scan, (1, 2, 3, 0, 5), {}, r"\(B, C, D, H, W\) must have at least one pixel"),
        (vk.patch_permutation, None, {"patch_size": 2}, "depth and height and width must be positive multiples"),
        (vk.patch_permutation, None, {"keys": torch.zeros(8)}, r"keys must have shape \(patches,\) = \(60,\)"),
        (vk.patch_permutation, None, {"keys": torch.zeros(60), "seed": 1}, "one of seed, generator and keys"),
    ]:
        arguments = (3, 4, 5) if shape is None else (torch.zeros(shape),)
        with pytest.raises(ValueError, match=words):
            function(*arguments, **options)
    with pytest.raises(TypeError, match=r"keys must be real numbers, got torch\.bool"):
        vk.patch_permutation(2, keys=torch.ones(2).bool())
