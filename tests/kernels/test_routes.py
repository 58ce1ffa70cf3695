"""Routes and patch permutations against their definitions."""

import pytest
import torch
from oracle import route_destination

import vmddpm_kernels as vk


@pytest.mark.parametrize("scans", [0, 1, 2, 3])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 6), (5, 1), (4, 7), (8, 8)])
def test_routes_by_definition(height, width, scans):
    table = vk.routes(height, width, scans=scans)
    assert table.dtype == torch.int32
    assert table.shape == (4, height * width)
    for k in range(4):
        for h in range(height):
            for w in range(width):
                assert table[k, route_destination(scans, k, h, w, height, width)] == h * width + w


def test_names_are_the_codes():
    for name, code in {"cross2d": 0, "unidi": 1, "bidi": 2, "rot90": 3}.items():
        assert torch.equal(vk.routes(3, 4, scans=name), vk.routes(3, 4, scans=code))


def test_permutation_composes_with_routes():
    """The shuffled image is laid out first, then read along the routes."""
    permutation = vk.patch_permutation(4, 6, seed=7)
    shuffled = torch.arange(100, 124)[permutation.long()]
    table = vk.routes(4, 6, permutation=permutation)
    assert torch.equal(torch.arange(100, 124)[table.long()], shuffled[vk.routes(4, 6).long()])


def test_routes_are_not_shared_between_callers():
    vk.routes(2, 2).zero_()
    assert vk.routes(2, 2).max() == 3


@pytest.mark.parametrize("patch", [1, 2, 3])
def test_patches_move_whole(patch):
    height, width = 6, 12
    permutation = vk.patch_permutation(height, width, patch_size=patch, seed=5).long()
    assert torch.equal(permutation.sort().values, torch.arange(height * width))
    grid = permutation.view(height, width)
    homes = set()
    for top in range(0, height, patch):
        for left in range(0, width, patch):
            block = grid[top : top + patch, left : left + patch]
            row, column = int(block[0, 0]) // width, int(block[0, 0]) % width
            assert row % patch == 0
            assert column % patch == 0
            rows, columns = torch.arange(patch)[:, None] + row, torch.arange(patch) + column
            assert torch.equal(block, rows * width + columns)
            homes.add((row, column))
    assert len(homes) == height * width // patch**2


def test_permutation_is_keyed_by_its_seed():
    first = vk.patch_permutation(8, 8, seed=3)
    assert torch.equal(first, vk.patch_permutation(8, 8, seed=3))
    assert not torch.equal(first, vk.patch_permutation(8, 8, seed=4))
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(first, vk.patch_permutation(8, 8, generator=generator))
    torch.manual_seed(3)
    assert torch.equal(first, vk.patch_permutation(8, 8))


def test_permutations_are_uniform():
    """Each of 6 pixels is equally likely at each place: chi-squared, 25 degrees of freedom, below the 99.9 % point."""
    draws = torch.stack([vk.patch_permutation(2, 3, seed=s) for s in range(6000)]).long()
    counts = torch.stack([(draws == pixel).sum(0) for pixel in range(6)]).double()
    assert ((counts - 1000) ** 2 / 1000).sum() < 52.6


def test_errors():
    for size, scans, words in [((0, 3), 0, "at least 1"), ((3, 3), "spiral", "scans"), ((3, 3), 4, "scans")]:
        with pytest.raises(ValueError, match=words):
            vk.routes(*size, scans=scans)
    with pytest.raises(ValueError, match=r"permutation must hold each of 0\.\.5"):
        vk.routes(2, 3, permutation=torch.zeros(6, dtype=torch.int32))
    with pytest.raises(ValueError, match="permutation must be an integer"):
        vk.routes(2, 3, permutation=torch.zeros(6))
    with pytest.raises(ValueError, match="multiples of patch_size"):
        vk.patch_permutation(5, 4, patch_size=2)
    with pytest.raises(ValueError, match="only one of seed"):
        vk.patch_permutation(4, 4, seed=1, generator=torch.Generator())
