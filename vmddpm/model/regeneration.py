"""Sequence Regeneration (paper section III-D): a new visit order before every S6, without a parameter."""

from functools import lru_cache

import torch
from torch import Tensor

from vmddpm.model.config import ModelConfig
from vmddpm.seeding import mix_seed, signed_64
from vmddpm_kernels import patch_permutation, routes


def order_key_tensor(key: tuple[int, int] | None) -> Tensor:
    """(seed, step) as int64 (2,) on the CPU; None draws them from torch's global CPU generator, so that
    `torch.manual_seed` repeats them."""
    if key is None:
        return torch.randint(2**63 - 1, (2,))
    return torch.tensor([word if -(2**63) <= word < 2**63 else signed_64(word) for word in key])


@lru_cache(maxsize=64)
def _ordered_table(height: int, width: int, scans: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a cached inference tensor could not serve a later training step
        return routes(height, width, scans, device=device)


# An operator, as random numbers and tables already made are no part of a graph.
@torch.library.custom_op("vmddpm::visit_order", mutates_args=())
def _visit_order(
    key: Tensor, layer: int, height: int, width: int, patch_size: int, scans: int, device: torch.device
) -> Tensor:
    permutation = patch_permutation(height, width, patch_size, seed=mix_seed(*key.tolist(), layer))
    return routes(height, width, scans, permutation, device)


@_visit_order.register_fake
def _(key: Tensor, layer: int, height: int, width: int, patch_size: int, scans: int, device: torch.device) -> Tensor:
    return torch.empty((4, height * width), dtype=torch.int32, device=device)


class VisitOrders:
    """The visit order of each S6 of one forward pass, handed out in the order of the calls.

    The n-th call of `next` returns the table of the n-th CSM. It depends on the key, on n and on the size
    of the feature map alone: not on the batch, the device or the weights.

    Args:
        config: `scans` and `regeneration_patch_size` are read.
        key: (seed, step) of the shuffles as `order_key_tensor` makes it; None means ordered scans.
        device: where the tables are put.
    """

    def __init__(self, config: ModelConfig, key: Tensor | None, device: torch.device) -> None:
        self.config = config
        self.key = key
        self.device = device
        self.calls = 0

    def next(self, height: int, width: int) -> Tensor:
        """The table of the next S6, int32 (4, height * width), as `cross_selective_scan` takes it."""
        layer = self.calls
        self.calls += 1
        scans, patch_size = self.config.scans, self.config.regeneration_patch_size
        if self.key is not None:
            table: Tensor = _visit_order(self.key, layer, height, width, patch_size, scans, self.device)
            return table
        if torch.compiler.is_compiling():  # a graph makes its own table: a cache would be a constant of it
            return routes(height, width, scans, device=self.device)
        return _ordered_table(height, width, scans, self.device)
