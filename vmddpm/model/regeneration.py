"""Sequence Regeneration (paper section III-D): a new visit order before every S6, without parameters.

A counter-based generator computes the orders on the device of the features from (seed, step) and the index of the S6,
without copies from the host or synchronization. If the step is a tensor, a CUDA graph has new orders at each replay.
"""

import torch
from torch import Tensor

from vmddpm.errors import InputError
from vmddpm.model.config import ModelConfig
from vmddpm.model.philox import random_keys
from vmddpm.seeding import signed_64
from vmddpm_kernels import patch_permutation, routes
from vmddpm_kernels.curves import pixel_count

OrderKey = tuple[int | Tensor, int | Tensor]


def order_key_tensor(key: OrderKey | None, device: torch.device) -> Tensor:
    """(seed, step) as int64 (2,) on the device. Each may be an integer or an integer tensor of one element on that
    device. None draws both from the device's global generator, so `torch.manual_seed` makes them reproducible.

    Raises:
        InputError: if a tensor is on another device, is not of integers or has several elements.
    """
    if key is None:
        return torch.randint(2**63 - 1, (2,), device=device)
    return torch.stack([_key_tensor(name, word, device) for name, word in zip(("seed", "step"), key)])


def _key_tensor(name: str, word: int | Tensor, device: torch.device) -> Tensor:
    if not isinstance(word, Tensor):  # torch.full fills on the device, torch.tensor would copy to it
        return torch.full((), word if -(2**63) <= word < 2**63 else signed_64(word), dtype=torch.int64, device=device)
    if word.numel() != 1 or word.is_floating_point() or word.is_complex() or word.dtype == torch.bool:
        raise InputError(
            f"the {name} of order_key must be an integer or an integer tensor of one element, "
            f"got {word.dtype} of shape {tuple(word.shape)}"
        )
    if word.device != device:
        raise InputError(f"the {name} of order_key is on {word.device}, but x is on {device}; move it there")
    return word.reshape(()).to(torch.int64)


# A single operator: a graph gains nothing from its hundred small ones.
@torch.library.custom_op("vmddpm::order_keys", mutates_args=())
def _order_keys(key: Tensor, layers: int, patches: int) -> Tensor:
    return random_keys(key[0], key[1], layers, patches)


@_order_keys.register_fake
def _(key: Tensor, layers: int, patches: int) -> Tensor:
    return key.new_empty((layers, patches))


class VisitOrders:
    """The visit order of each S6 of one forward pass.

    The n-th call of `next` returns the table of the n-th CSM. It depends only on the key, on n and on the size of the
    feature map, not on the batch, the device or the weights.

    Args:
        config: gives `scans`, `regeneration_patch_size` and the number of S6.
        key: (seed, step) of the shuffles from `order_key_tensor`; None means ordered scans.
        device: device of the tables and the key.
        recompute: see `VMDDPM`; read by every stage.
    """

    def __init__(
        self, config: ModelConfig, key: Tensor | None, device: torch.device, recompute: bool = False
    ) -> None:
        self.recompute = recompute
        self.config = config
        self.key = key
        self.device = device
        self.calls = 0
        self.ordered: dict[tuple[int, ...], Tensor] = {}
        self.sort_keys: Tensor | None = None  # (S6, patches of the first feature map, which is the largest)

    def next(self, *size: int) -> Tensor:
        """The table of the next S6, int32 (K, L), for `cross_selective_scan`; size is (H, W) or (D, H, W)."""
        layer = self.calls
        self.calls += 1
        scans, patch_size = self.config.scans, self.config.regeneration_patch_size
        if self.key is None:
            if size not in self.ordered:
                self.ordered[size] = routes(*size, scans=scans, device=self.device)
            return self.ordered[size]
        patches = pixel_count([extent // patch_size for extent in size])
        if self.sort_keys is None:
            self.sort_keys = _order_keys(self.key, self.config.s6_count, patches)
        permutation = patch_permutation(*size, patch_size=patch_size, keys=self.sort_keys[layer, :patches])
        return routes(*size, scans=scans, permutation=permutation)
