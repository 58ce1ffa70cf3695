"""Counter-based random numbers with the same bits on all devices: Philox4x32-10 (Salmon, Moraes, Dror and Shaw,
Parallel random numbers: as easy as 1, 2, 3, SC 2011).

32-bit words are stored in int64, because torch has few operators for unsigned integers. Products of two words wrap
around in int64, and the masks keep the needed bits.
"""

import torch
from torch import Tensor

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85  # added to the key in each round
ROUNDS = 10
MASK = (1 << 32) - 1


def _pair(first: int, second: int, device: torch.device) -> Tensor:
    """Two numbers, int64 (2,), made on the device: a CUDA graph cannot capture a copy from the host."""
    return torch.where(torch.arange(2, device=device) == 0, first, second)


def philox4x32(counter: Tensor, key: Tensor) -> Tensor:
    """Four random words of each counter, a bijection of counters for every key.

    Args:
        counter: int64 (4, ...), words below 2^32.
        key: int64 (2,), words below 2^32, on the counter's device.

    Returns:
        int64 (4, ...), words below 2^32.

    Example:
        >>> [hex(word) for word in philox4x32(torch.zeros(4, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    device, ones = counter.device, [1] * (counter.dim() - 1)
    rounds = torch.arange(ROUNDS, device=device)[:, None]
    keys = (key + rounds * _pair(*WEYL, device)) & MASK                     # (10, 2)
    factors = _pair(MULTIPLIERS[1], MULTIPLIERS[0], device).view(2, *ones)
    even, odd = counter[0::2], counter[1::2]                                # (2, ...)
    for words in keys.view(ROUNDS, 2, *ones).unbind():
        product = even.flip(0) * factors
        even = ((product >> 32) ^ odd ^ words) & MASK
        odd = product  # its low words; the high ones are masked at their use
    return torch.stack([even, odd & MASK], dim=1).flatten(0, 1)


def random_keys(seed: Tensor, step: Tensor, rows: int, columns: int) -> Tensor:
    """Random int64 (rows, columns), each a function of only the seed, step, row and column.

    The seed is Philox's key; the step, the row and half the column are its counter. A counter gives two 64-bit numbers
    and is never used twice, so no two steps or rows share numbers.

    Args:
        seed, step: int64 scalars on the device of the result.
        rows, columns: each at least 1, below 2^32.
    """
    device, pairs = seed.device, (columns + 1) // 2
    counter = [torch.arange(pairs, device=device), torch.arange(rows, device=device)[:, None], *_words(step)]
    words = philox4x32(torch.stack([word.expand(rows, pairs) for word in counter]), torch.stack(_words(seed)))
    high, low = words[0::2], words[1::2]
    numbers = (high - (1 << 31)) * (1 << 32) + low                          # (2, rows, pairs)
    return numbers.permute(1, 2, 0).flatten(1)[:, :columns]


def _words(number: Tensor) -> list[Tensor]:
    """The low and the high 32 bits."""
    return [number & MASK, (number >> 32) & MASK]
