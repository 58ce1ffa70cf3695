"""The generator of visit orders against its published vectors and against Python's integers."""

import pytest
import torch

from vmddpm.model.philox import philox4x32, random_keys

# Random123 1.14, tests/kat_vectors, "philox4x32 10": counter, key, result
VECTORS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return [int(word, 16) for word in text.split()]


def in_python(counter, key):
    """The definition of Salmon et al. (2011), section 3.3, one word at a time."""
    c, k = list(counter), list(key)
    for _ in range(10):
        left, right = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [right >> 32 ^ c[1] ^ k[0], right & 0xFFFFFFFF, left >> 32 ^ c[3] ^ k[1], left & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


@pytest.mark.parametrize(("counter", "key", "result"), VECTORS)
def test_published_vectors(counter, key, result):
    assert philox4x32(torch.tensor(words(counter)), torch.tensor(words(key))).tolist() == words(result)
    assert in_python(words(counter), words(key)) == words(result)


def test_every_word_of_random_counters():
    generator = torch.Generator().manual_seed(0)
    counters = torch.randint(2**32, (4, 5, 40), generator=generator)
    key = torch.randint(2**32, (2,), generator=generator)
    result = philox4x32(counters, key)
    for row in range(5):
        for column in range(40):
            assert result[:, row, column].tolist() == in_python(counters[:, row, column].tolist(), key.tolist())


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (-3, 2**40 + 1), (2**63 - 1, -1)])
def test_keys_are_functions_of_their_place(seed, step):
    """They do not depend on what else is drawn."""
    keys = random_keys(torch.tensor(seed), torch.tensor(step), 3, 7)
    for row in range(3):
        for column in range(7):
            counter = [column // 2, row, step & 0xFFFFFFFF, step >> 32 & 0xFFFFFFFF]
            out = in_python(counter, [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF])
            high, low = out[:2] if column % 2 == 0 else out[2:]
            assert keys[row, column] == (high << 32 | low) - 2**63
    assert torch.equal(random_keys(torch.tensor(seed), torch.tensor(step), 1, 4), keys[:1, :4])


def chi_squared(orders, kinds):
    """The chi-squared statistic of the counts of each order."""
    codes = (orders * (10 ** torch.arange(orders.shape[1]))).sum(1)
    counts = torch.unique(codes, return_counts=True)[1].double()
    assert len(counts) == kinds
    return (((counts - len(orders) / kinds) ** 2).sum() * kinds / len(orders)).item()


def test_orders_are_uniform_over_rows():
    """All 120 orders of 5, 24,000 times: 119 degrees of freedom, below the 99.9 % point."""
    orders = random_keys(torch.tensor(1), torch.tensor(2), 24_000, 5).argsort(dim=1, stable=True)
    assert chi_squared(orders, 120) < 172.5


def test_orders_are_uniform_over_steps():
    """All 24 orders of 4, at 2,400 steps: 23 degrees of freedom, below the 99.9 % point."""
    keys = [random_keys(torch.tensor(1), torch.tensor(step), 1, 4) for step in range(2400)]
    assert chi_squared(torch.cat(keys).argsort(dim=1, stable=True), 24) < 49.8


def test_the_same_bits_on_any_number_of_threads():
    threads = torch.get_num_threads()
    alone = random_keys(torch.tensor(1), torch.tensor(2), 17, 70_000)
    try:
        torch.set_num_threads(3)
        assert torch.equal(random_keys(torch.tensor(1), torch.tensor(2), 17, 70_000), alone)
    finally:
        torch.set_num_threads(threads)
