"""Every named route and set against an independent construction, at odd sizes: loops over coordinates, or the models'
own reshaping of padded arrays."""

import importlib
import itertools
from math import prod

import numpy as np
import pytest
import torch

import vmddpm_kernels as vk
from vmddpm_kernels.curves import LETTERS, SETS, route_names

FLAT = [(1, 1), (1, 6), (5, 1), (4, 7), (5, 3), (9, 11)]
SOLID = [(1, 1, 1), (3, 5, 7), (4, 1, 6), (2, 2, 9)]


def route(size, name):
    table = vk.routes(*size, scans=name)
    assert table.shape == (1, prod(size))
    return table[0].tolist()


def numbers(coordinates, size):
    return [int(np.ravel_multi_index(c, size)) for c in coordinates]


def loops(size, axes):
    """Nested loops over the axes named by the letters; capitals run downwards."""
    letters = LETTERS[-len(size) :]
    places = [letters.index(axis) for axis in axes.lower()]
    ranges = [range(size[i])[:: -1 if axis.isupper() else 1] for i, axis in zip(places, axes)]
    return [tuple(c[places.index(i)] for i in range(len(size))) for c in itertools.product(*ranges)]


def turned(curve, size, axes):
    """A curve over the grid of the loops, as pixel numbers."""
    letters = LETTERS[-len(size) :]
    grid = [size[letters.index(axis)] for axis in axes.lower()]
    visited = numbers(loops(size, axes), size)
    return [visited[number] for number in numbers(curve(grid), grid)]


def snake(size):
    if not size:
        return [()]
    inner = snake(size[1:])
    return [(i, *c) for i in range(size[0]) for c in (inner[::-1] if i % 2 else inner)]


def cube(size):
    bits = max(extent - 1 for extent in size).bit_length()
    return bits, itertools.product(range(2**bits), repeat=len(size))


def inside(coordinates, size):
    return [c for c in coordinates if all(a < b for a, b in zip(c, size))]


def zorder(size):
    bits, corners = cube(size)

    def interleaved(c):
        return "".join(f"{axis:0{bits}b}"[bit] for bit in range(bits) for axis in c)

    return inside(sorted(corners, key=interleaved), size)


def hilbert(size):
    """The place of a step from its number, by Skilling's inverse algorithm (2004), a step at a time."""
    bits, axes = max(extent - 1 for extent in size).bit_length(), len(size)
    visited = []
    for number in range(2 ** (bits * axes)):
        digits = f"{number:0{max(bits * axes, 1)}b}"
        x = [int(digits[axis::axes] or "0", 2) if bits else 0 for axis in range(axes)]
        t = x[-1] >> 1
        for i in range(axes - 1, 0, -1):
            x[i] ^= x[i - 1]
        x[0] ^= t
        q = 2
        while q < 2**bits:
            for i in range(axes - 1, -1, -1):
                if x[i] & q:
                    x[0] ^= q - 1
                else:
                    t = (x[0] ^ x[i]) & (q - 1)
                    x[0], x[i] = x[0] ^ t, x[i] ^ t
            q *= 2
        visited.append(tuple(x))
    return inside(visited, size)


def zigzag(size):
    order = sorted(itertools.product(*map(range, size)), key=sum)
    planes = [list(plane) for _, plane in itertools.groupby(order, key=sum)]
    return [c for number, plane in enumerate(planes) for c in (plane if number % 2 else plane[::-1])]


def windows(side):
    def curve(size):
        corners = itertools.product(*(range(0, extent, side) for extent in size))
        insides = list(itertools.product(range(side), repeat=len(size)))
        return inside((tuple(a + b for a, b in zip(corner, place)) for corner in corners for place in insides), size)

    return curve


def skips(stride, start=0):
    def curve(size):
        grids = list(itertools.product(range(stride), repeat=len(size)))
        return [
            c
            for grid in grids[start:] + grids[:start]
            for c in itertools.product(*(range(first, extent, stride) for first, extent in zip(grid, size)))
        ]

    return curve


CURVES = {
    "snake": snake, "zorder": zorder, "hilbert": hilbert, "zigzag": zigzag, "window2": windows(2), "window7":
    windows(7), "skip2": skips(2), "skip3": skips(3), "skip2@3": skips(2, 3),
}  # fmt: skip


@pytest.mark.parametrize("size", [(6,), *FLAT, *SOLID, (2, 3, 1, 4)])
def test_loops(size):
    for axes in itertools.permutations(LETTERS[-len(size) :]):
        for name in {"".join(axes), "".join(axes).upper(), "".join(axes).capitalize()}:
            expected = numbers(loops(size, name), size)
            assert route(size, name) == expected
            assert route(size, f"{name}-reversed") == expected[::-1]


@pytest.mark.parametrize("size", [(6,), *FLAT, *SOLID])
@pytest.mark.parametrize("curve", CURVES)
def test_curves(curve, size):
    letters = LETTERS[-len(size) :]
    if curve == "skip2@3" and len(size) == 1:
        pytest.skip("two grids")
    for axes in (letters, letters[::-1], letters.capitalize()):
        expected = turned(CURVES[curve], size, axes)
        assert route(size, f"{curve}-{axes}") == expected
        assert route(size, f"{curve}-{axes}-reversed") == expected[::-1]


@pytest.mark.parametrize(
    ("curve", "size"), [("snake", (5, 7)), ("snake", (3, 4, 5)), ("hilbert", (16, 16)), ("hilbert", (8, 8, 8))]
)
def test_every_step_goes_to_a_neighbour(curve, size):
    visited = np.array(np.unravel_index(route(size, f"{curve}-{LETTERS[-len(size) :]}"), size))
    assert (np.abs(np.diff(visited)).sum(0) == 1).all()


def test_hilbert_stays_in_each_part_until_it_is_done():
    visited = np.array(np.unravel_index(route((8, 8, 8), "hilbert-dhw"), (8, 8, 8)))
    for side in (2, 4):
        parts = np.ravel_multi_index(tuple(visited // side), (8 // side,) * 3)
        assert (np.diff(parts) != 0).sum() == (8 // side) ** 3 - 1


def test_zigzag_is_that_of_jpeg():
    assert route((8, 8), "zigzag-hw")[:16] == [0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5]


def sets(name, size):
    table = vk.routes(*size, scans=name)
    assert table.dtype == torch.int32
    assert torch.equal(table.sort(dim=1).values, torch.arange(prod(size), dtype=torch.int32).expand_as(table))
    return table.tolist()


def both_ways(orders):
    return [*(order.tolist() for order in orders), *(order.tolist()[::-1] for order in orders)]


@pytest.mark.parametrize("size", SOLID)
def test_sets_of_volumes(size):
    """As the models make them: by transposing axes, and by stacking the chunks of a sequence."""
    volume = torch.arange(prod(size)).view(size)
    dhw, hdw, whd, dwh = (v.flatten() for v in (volume, volume.transpose(0, 1), volume.transpose(0, 2), volume.mT))
    assert sets("cross3d", size) == sets(0, size) == both_ways([dhw, hdw, whd])
    assert sets("ss3d", size) == both_ways([dhw, hdw, whd, dwh])
    every = [volume.permute(axes).flatten() for axes in itertools.permutations(range(3))]
    assert sets("axes3d", size) == both_ways(every)
    through_slices = torch.stack(dhw.chunk(size[0]), dim=-1).flatten()
    assert sets("tri-orientated", size) == [dhw.tolist(), dhw.tolist()[::-1], through_slices.tolist()]
    for name in ("snake", "hilbert", "zorder"):
        expected = [torch.tensor(turned(CURVES[name], size, axes)) for axes in ("dhw", "hdw", "whd")]
        assert sets(name, size) == both_ways(expected)
    expected = [torch.tensor(turned(zigzag, size, axes)) for axes in ("dhw", "Dhw", "dHw", "dhW")]
    assert sets("zigzag", size) == both_ways(expected)


@pytest.mark.parametrize("size", FLAT)
def test_sets_of_images(size):
    height, width = size
    image = torch.arange(height * width).view(size)
    rows, columns = image.flatten(), image.mT.flatten()
    assert sets("cross2d", size) == both_ways([rows, columns])
    diagonals = [[(h, (h + sign * w) % width) for w in range(width) for h in range(height)] for sign in (1, -1)]
    # RS-Mamba walks w - h backwards along the rows
    diagonals[1] = [(h, (w - h) % width) for w in range(width) for h in range(height)]
    wrapped = [torch.tensor(numbers(diagonal, size)) for diagonal in diagonals]
    assert sets("omnidirectional", size) == both_ways([rows, columns]) + both_ways(wrapped)
    for name in ("snake", "hilbert", "zorder"):
        assert sets(name, size) == both_ways([torch.tensor(turned(CURVES[name], size, axes)) for axes in ("hw", "wh")])
    assert sets("zigzag", size) == both_ways([torch.tensor(turned(zigzag, size, axes)) for axes in ("hw", "Hw")])


def padded(image, side):
    height, width = (-extent % side for extent in image.shape)
    return torch.nn.functional.pad(image, (0, width, 0, height), value=-1)


def kept(pixels):
    return pixels[pixels >= 0]


@pytest.mark.parametrize("size", FLAT)
def test_local_is_localmambas(size):
    """Windows of a padded image, with the padding removed."""
    image = torch.arange(prod(size)).view(size)
    expected = [image.flatten(), image.mT.flatten()]
    for side in (2, 7):
        grid = padded(image, side)
        rows, columns = grid.shape[0] // side, grid.shape[1] // side
        expected.append(kept(grid.view(rows, side, columns, side).permute(0, 2, 1, 3).flatten()))
        by_columns = kept(grid.view(rows, side, columns, side).permute(2, 0, 3, 1).flatten())
        assert route(size, f"window{side}-wh") == by_columns.tolist()
    assert sets("local", size) == both_ways(expected[:2]) + both_ways(expected[2:])


@pytest.mark.parametrize("size", FLAT)
def test_efficient_begins_as_efficientvmamba(size):
    """EfficientVMamba scans a quarter of the padded image along each route."""
    grid = padded(torch.arange(prod(size)).view(size), 2)
    quarters = [grid[::2, ::2], grid.mT[::2, 1::2], grid[::2, 1::2], grid.mT[1::2, 1::2]]
    for order, quarter in zip(sets("efficient", size), quarters):
        pixels = kept(quarter.flatten()).tolist()
        assert order[: len(pixels)] == pixels


def test_any_number_of_axes():
    assert vk.routes(4).tolist() == [[0, 1, 2, 3], [3, 2, 1, 0]]
    assert vk.routes(2, 3, 2, 2).shape == (8, 24)
    names = ("tdhw", "dthw", "hdtw", "wdht")
    assert route_names(0, 4) == (*names, *(f"{name}-reversed" for name in names))


def test_every_set_has_permutations():
    for name, by_axes in SETS.items():
        for axes, names in by_axes.items():
            assert len(sets(name, (5, 3, 2, 4)[:axes])) == len(names)


def test_routes_of_ones_own():
    combined = vk.routes(3, 4, scans="hw, snake-wh-reversed,hw")
    assert torch.equal(combined, torch.cat([vk.routes(3, 4, scans=n) for n in ("hw", "snake-wh-reversed", "hw")]))
    order = vk.patch_permutation(3, 4, seed=1)
    shuffled = vk.routes(3, 4, scans="hilbert", permutation=order)
    assert torch.equal(shuffled, order[vk.routes(3, 4, scans="hilbert").long()])


def test_what_is_remembered_has_a_limit(monkeypatch):
    routes = importlib.import_module("vmddpm_kernels.routes")
    monkeypatch.setattr(routes, "_cache", {})
    monkeypatch.setattr(routes, "_MOST_STEPS", 100)
    for width in (3, 4, 3, 16, 30, 20):  # 9, 12, 48, 90 and 60 steps of one route
        assert vk.routes(3, width, scans="wh").tolist() == [numbers(loops((3, width), "wh"), (3, width))]
    assert [key[0] for key in routes._cache] == [(3, 20)]
    vk.routes(3, 40, scans="wh")  # larger than the limit of the whole cache
    assert [key[0] for key in routes._cache] == [(3, 20)]


def test_what_a_graph_reads_is_kept_and_what_it_makes_is_not(monkeypatch):
    """On a device that captures all work."""
    routes, captures = importlib.import_module("vmddpm_kernels.routes"), [False]
    changes = {"_cache": {}, "_captured": set(), "_MOST_STEPS": 100, "capturing": lambda device: captures[-1]}
    for name, value in changes.items():
        monkeypatch.setattr(routes, name, value)

    def sizes():
        return [key[0] for key in routes._cache]

    vk.routes(3, 4)
    captures.append(True)
    vk.routes(3, 4)
    vk.routes(2, 5)
    captures.append(False)
    assert sizes() == [(3, 4)]
    vk.routes(2, 6)
    vk.routes(3, 3)
    assert sizes() == [(3, 4), (3, 3)]
    vk.routes(4, 4)
    assert sizes() == [(3, 4)]  # the rest of the cache is too small for others


@pytest.mark.parametrize(
    ("size", "scans", "words"),
    [
        ((3, 4), "spiral", "scans must be 0-3, one of"),
        ((3, 4), "spiral-hw", "scans has 'spiral-hw', which is not a route: .* with one of the curves snake, hilbert"),
        ((3, 4), "hw,", "scans has '', which is not a route"),
        ((3, 4), "dhw", "must have each of the axes h, w once"),
        ((3, 4), "hh", "must have each of the axes h, w once"),
        ((3, 4), "cross3d", "scans 'cross3d' is for images with 3 axes, not 2; those with 2 have cross2d"),
        ((3, 4, 5), "cross2d", "is for images with 2 axes, not 3; those with 3 have cross3d"),
        ((3, 4, 5), 1, "scans 1 is for images with 2 axes"),
        ((3, 4), "window-hw", "must have a side of at least 1"),
        ((3, 4), "window0-hw", "must have a side of at least 1"),
        ((3, 4), "snake2-hw", "must have a side of at least 1 with window and skip alone"),
        ((3, 4), "skip2@4-hw", "one of its 4 grids"),
        ((3, 4, 5), "diagonal-dhw", "is for images with two axes"),
        ((1, 1, 2**30), "hilbert-dhw", "shorten the longest side"),
        ((), 0, "as 1 to 4 numbers, got 0"),
        ((1, 2, 3, 4, 5), 0, "as 1 to 4 numbers, got 5"),
        ((3, 4), True, "scans must be 0-3"),
        ((3, 4), ["hw"], "scans must be 0-3"),
    ],
)
def test_bad_names(size, scans, words):
    with pytest.raises(ValueError, match=words):
        vk.routes(*size, scans=scans)
