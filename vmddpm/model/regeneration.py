"""Sequence Regeneration (paper section III-D): a new visit order before every S6, without a parameter."""

from functools import lru_cache

import torch
from torch import Tensor

from vmddpm.model.config import ModelConfig
from vmddpm.seeding import mix_seed
from vmddpm_kernels import patch_permutation, routes


def fresh_order_key() -> tuple[int, int]:
    """An order key from torch's global CPU generator, so that `torch.manual_seed` repeats it."""
    seed, step = torch.randint(2**63 - 1, (2,)).tolist()
    return seed, step


@lru_cache(maxsize=64)
def _ordered_table(height: int, width: int, scans: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a cached inference tensor could not serve a later training step
        return routes(height, width, scans, device=device)


class VisitOrders:
    """The visit order of each S6 of one forward pass, handed out in the order of the calls.

    The n-th call of `next` returns the table of the n-th CSM. It depends on (seed, step, n) and on the size
    of the feature map alone: not on the batch, the device or the weights.

    Args:
        config: `scans` and `regeneration_patch_size` are read.
        key: (seed, step) of the shuffles; None means ordered scans.
        device: where the tables are put.
    """

    def __init__(self, config: ModelConfig, key: tuple[int, int] | None, device: torch.device) -> None:
        self.config = config
        self.key = key
        self.device = device
        self.calls = 0

    @torch.compiler.disable  # random numbers and table checks are no part of a graph; the table is its input
    def next(self, height: int, width: int) -> Tensor:
        """The table of the next S6, int32 (4, height * width), as `cross_selective_scan` takes it."""
        layer = self.calls
        self.calls += 1
        if self.key is None:
            return _ordered_table(height, width, self.config.scans, self.device)
        seed = mix_seed(*self.key, layer)
        permutation = patch_permutation(height, width, self.config.regeneration_patch_size, seed=seed)
        return routes(height, width, self.config.scans, permutation, self.device)
