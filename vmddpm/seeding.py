"""Seeds that depend only on the purpose of the random numbers (run, step, layer, image)."""

_MASK = (1 << 64) - 1


def splitmix64(x: int) -> int:
    """One output of SplitMix64 (Steele, Lea and Flood, 2014) from state x: a bijection of 64-bit integers."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def signed_64(x: int) -> int:
    """The low 64 bits of an integer as an int64; `mix_seed` treats both alike."""
    return ((x + (1 << 63)) & _MASK) - (1 << 63)


def mix_seed(*words: int) -> int:
    """A 64-bit seed from the low 64 bits of each integer; their order matters.

    Sums of (run, step, layer) would coincide with those of other steps; mixed seeds coincide only by chance.
    """
    state = 0
    for word in words:
        state = splitmix64(state ^ (word & _MASK))
    return state
