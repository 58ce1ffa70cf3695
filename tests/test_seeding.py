from itertools import product

from vmddpm.seeding import mix_seed, splitmix64


def test_splitmix64_published_sequence():
    # The first outputs of the reference generator (Vigna, splitmix64.c) from seed 1234567.
    golden, state, outputs = 0x9E3779B97F4A7C15, 1234567, []
    for _ in range(3):
        outputs.append(splitmix64(state))
        state = (state + golden) % 2**64
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_mix_seed_separates_neighbours():
    words = product(range(-5, 5), range(100), range(17))
    seeds = {mix_seed(*triple) for triple in words}
    assert len(seeds) == 10 * 100 * 17
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert mix_seed(1, 2) != mix_seed(2, 1)


def test_mix_seed_flips_half_the_bits():
    flips = [
        bin(mix_seed(3, 1000, layer) ^ mix_seed(3, 1000 ^ (1 << bit), layer)).count("1")
        for layer in range(17)
        for bit in range(64)
    ]
    assert abs(sum(flips) / len(flips) - 32) < 0.5  # four deviations of the mean of 1088 binomial(64, 1/2)
