"""The kernel inception distance (Bińkowski et al., 2018): unbiased for any number of images, with a standard
deviation."""

from typing import NamedTuple

import torch
from torch import Tensor

from vmddpm.errors import InputError

MIN_IMAGES = 4  # images in a set; a subset of half of them then has two


class KID(NamedTuple):
    """The squared maximum mean discrepancy under the kernel (x.y / d + 1)^3; it can be slightly negative."""

    mean: float
    deviation: float  # over the subsets
    subsets: int
    subset_size: int


def kernel_distance(a: Tensor, b: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> KID:
    """The mean over random subsets of both sets, and their standard deviation.

    Args:
        a, b: features (n, d).
        subsets: number of subsets.
        subset_size: images in a subset, drawn without replacement; at most half of the smaller set, because subsets
            that share most of their images would underestimate the deviation.
        seed: seed of the subsets.

    Raises:
        InputError: if a set has fewer than four images.
    """
    smaller = min(len(a), len(b))
    if smaller < MIN_IMAGES:
        raise InputError(
            f"the kernel distance needs at least {MIN_IMAGES} images in each set, got {len(a)} and {len(b)}"
        )
    size = min(subset_size, smaller // 2)
    generator = torch.Generator().manual_seed(seed)

    def subset(features: Tensor) -> Tensor:
        return features[torch.randperm(len(features), generator=generator)[:size]].double()

    values = torch.tensor([squared_mmd(subset(a), subset(b)) for _ in range(subsets)], dtype=torch.float64)
    return KID(values.mean().item(), values.std().item() if subsets > 1 else 0.0, subsets, size)


def squared_mmd(a: Tensor, b: Tensor) -> float:
    """The unbiased estimate (Gretton et al., 2012, Eq. 3) from float64 features (n, d) and (m, d)."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def mean_off_diagonal(k: Tensor) -> Tensor:
        return (k.sum() - k.trace()) / (len(k) * (len(k) - 1))

    return (mean_off_diagonal(kernel(a, a)) + mean_off_diagonal(kernel(b, b)) - 2 * kernel(a, b).mean()).item()
