"""Nearest neighbours among features, computed by blocks, and improved precision and recall."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vmddpm.errors import InputError

BLOCK = 32 * 2**20  # distances in memory at a time, 256 MiB
CHUNK = 4096  # rows of features converted to float64 at a time


@dataclass(frozen=True)
class Nearest:
    """The nearest references of each query."""

    distance: Tensor  # float64 (n,) or (n, count), exact: 0 for a copy
    index: Tensor  # int64, of the same shape


def _blocks(count: int, references: int) -> list[slice]:
    rows = max(1, BLOCK // max(references, 1))
    return [slice(first, min(first + rows, count)) for first in range(0, count, rows)]


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """float64 (n, m), with an error of about 1e-15 of the squared lengths."""
    a = a.double()
    squared = torch.empty(len(a), len(b), dtype=torch.float64)
    for first in range(0, len(b), CHUNK):
        chunk = b[first : first + CHUNK].double()
        torch.addmm(chunk.square().sum(1), a, chunk.T, alpha=-2, out=squared[:, first : first + CHUNK])
    return squared.add_(a.square().sum(1)[:, None]).clamp_(min=0)


def nearest(queries: Tensor, references: Tensor, *, exclude_self: bool = False) -> Nearest:
    """The nearest of `references` (m, d) to each of `queries` (n, d).

    Args:
        exclude_self: query i shows the same image as reference i, which does not count as its neighbour.

    Raises:
        InputError: if there is no reference to choose from.
    """
    if len(references) < 1 + exclude_self:
        raise InputError(f"the nearest of {len(references)} images does not exist; give more real images")
    distances, indices = [], []
    for rows in _blocks(len(queries), len(references)):
        squared = _squared_distances(queries[rows], references)
        if exclude_self:
            squared[torch.arange(len(squared)), torch.arange(rows.start, rows.stop)] = torch.inf
        index = squared.argmin(1)
        indices.append(index)
        distances.append((queries[rows].double() - references[index].double()).norm(dim=1))
    return Nearest(torch.cat(distances), torch.cat(indices))


def nearest_k(queries: Tensor, references: Tensor, count: int) -> Nearest:
    """The `count` nearest references, or all if there are fewer: distances and indices (n, count), nearest first."""
    distances, indices = [], []
    for rows in _blocks(len(queries), len(references)):
        squared = _squared_distances(queries[rows], references)
        index = squared.topk(min(count, len(references)), dim=1, largest=False).indices
        indices.append(index)
        distances.append((queries[rows, None].double() - references[index].double()).norm(dim=2))
    return Nearest(torch.cat(distances), torch.cat(indices))


class PrecisionRecall(NamedTuple):
    precision: float  # share of the synthetic images that lie among the real ones
    recall: float  # share of the real images that lie among the synthetic ones


def precision_and_recall(real: Tensor, synthetic: Tensor, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al., 2019, Eq. 1 and 2) of features (n, d) and (m, d).

    An image lies among a set if it is within the k-th-nearest-neighbour distance of at least one image of the set.

    Raises:
        InputError: if a set has no more than k images.
    """
    if min(len(real), len(synthetic)) <= k:
        raise InputError(
            f"precision and recall with {k} neighbours need more than {k} images in each set, got {len(real)} and "
            f"{len(synthetic)}"
        )
    return PrecisionRecall(share_among(synthetic, real, k), share_among(real, synthetic, k))


def share_among(images: Tensor, members: Tensor, k: int) -> float:
    """The share of `images` (n, d) that lie among `members` (m, d), as in `precision_and_recall`."""
    # k + 1, because the nearest is the image itself. topk takes a quarter of the time of kthvalue.
    radii = torch.cat(
        [_squared_distances(members[rows], members).topk(k + 1, dim=1, largest=False).values[:, -1]
         for rows in _blocks(len(members), len(members))]
    )  # fmt: skip
    inside = [
        (_squared_distances(images[rows], members) <= radii).any(1) for rows in _blocks(len(images), len(members))
    ]
    return torch.cat(inside).double().mean().item()
