"""The Fréchet distance of two sets of features; with Inception's features it is the FID of paper section IV-A."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vmddpm.errors import InputError

CHUNK = 4096  # rows of features that are float64 at a time


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian fitted to a set of features."""

    mean: Tensor  # float64 (d,)
    covariance: Tensor  # float64 (d, d), unbiased
    count: int


def fit_gaussian(features: Tensor, name: str = "features") -> Gaussian:
    """Mean and unbiased covariance in float64, in two passes over `features` (n, d), which may be a mapped file.

    The second pass subtracts the mean before it squares, so that large means cost no digits.

    Raises:
        InputError: if there are fewer than two rows, or one that is not finite; `name` says of which set.
    """
    count, dimensions = features.shape
    if count < 2:
        raise InputError(f"{name}: a covariance needs at least 2 images, got {count}")
    mean = torch.zeros(dimensions, dtype=torch.float64)
    for chunk in features.split(CHUNK):
        mean += chunk.double().sum(0)
    mean /= count
    if not mean.isfinite().all():
        rows = [not_finite for chunk in features.split(CHUNK) for not_finite in (~chunk.isfinite().all(1)).tolist()]
        raise InputError(
            f"{name}: {sum(rows)} of {count} images have features that are NaN or infinite, the first is number "
            f"{rows.index(True)}; look at the image, or at the extractor's value range"
        )
    covariance = torch.zeros(dimensions, dimensions, dtype=torch.float64)
    for chunk in features.split(CHUNK):
        centred = chunk.double() - mean
        covariance += centred.T @ centred
    return Gaussian(mean, covariance / (count - 1), count)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^1/2) (Dowson and Landau, 1982).

    With C_a = W W^T, C_a C_b has the eigenvalues of the symmetric W^T C_b W, apart from zeros: two symmetric
    eigenvalue problems in float64, and no square root of a negative number. Directions in which `a` does not vary
    are left out of W, as they would add nothing but the square root of rounding errors.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(torch.float64).eps
    w = vectors[:, kept] * values[kept].sqrt()  # (d, rank)
    cross = torch.linalg.eigvalsh(w.T @ b.covariance @ w).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(float(distance), 0.0)


def frechet_floor(real: Gaussian, count: int, seed: int = 0) -> float:
    """The Fréchet distance that a perfect generator would get: both sets drawn from the Gaussian fitted to `real`,
    `real.count` images in one and `count` in the other, one draw.

    It is what the sizes of the sets alone contribute. With fewer images than dimensions the fitted Gaussian knows only
    part of the variance and the floor is itself too low.

    Raises:
        InputError: if a set has fewer than two images.
    """
    if min(real.count, count) < 2:
        raise InputError(f"the floor needs at least 2 images in each set, got {real.count} and {count}")
    scales = torch.linalg.eigvalsh(real.covariance).clamp(min=0).sqrt()  # the distance knows no rotation
    random = np.random.default_rng(seed)
    return frechet_distance(*(_draw_fit(scales.numpy(), n, random) for n in (real.count, count)))


def _draw_fit(scales: np.ndarray, count: int, random: np.random.Generator) -> Gaussian:
    """The Gaussian fitted to `count` random draws of N(0, diag(scales^2))."""
    dimensions = len(scales)
    mean = random.standard_normal(dimensions) * scales / count**0.5
    if count <= dimensions:
        factor = random.standard_normal((count - 1, dimensions))
    else:  # Bartlett's decomposition of a Wishart matrix: no draws are made
        factor = np.triu(random.standard_normal((dimensions, dimensions)), 1)
        factor += np.diag(np.sqrt(random.chisquare(np.arange(count - 1, count - 1 - dimensions, -1))))
    root = torch.from_numpy(factor * scales)
    return Gaussian(torch.from_numpy(mean), root.T @ root / (count - 1), count)
