"""The Fréchet distance of two sets of features; with Inception features it is the FID of section IV-A of the paper."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vmddpm.errors import InputError

CHUNK = 4096  # rows of features converted to float64 at a time


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian fitted to a set of features."""

    mean: Tensor  # float64 (d,)
    covariance: Tensor  # float64 (d, d), unbiased
    count: int


def fit_gaussian(features: Tensor, name: str = "features") -> Gaussian:
    """Mean and unbiased covariance in float64, in two passes over `features` (n, d), which may be memory-mapped.

    The second pass subtracts the mean before squaring, so that large means do not cost precision.

    Raises:
        InputError: if there are fewer than two rows, or one is not finite; the message names the set by `name`.
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

    With C_a = W W^T, C_a C_b has the same nonzero eigenvalues as the symmetric W^T C_b W. This takes two symmetric
    eigenvalue problems in float64 and avoids square roots of negative numbers. W omits directions in which `a` does not
    vary, which would only add square roots of rounding errors.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(torch.float64).eps
    w = vectors[:, kept] * values[kept].sqrt()  # (d, rank)
    cross = torch.linalg.eigvalsh(w.T @ b.covariance @ w).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(float(distance), 0.0)


def frechet_floor(real: Gaussian, count: int, seed: int = 0) -> float:
    """The Fréchet distance of a perfect generator: of two sets drawn once from the Gaussian fitted to `real`, one with
    `real.count` images and one with `count`.

    It is the contribution of the set sizes alone. With fewer images than dimensions, the fitted Gaussian lacks part of
    the variance, and the floor is too low.

    Raises:
        InputError: if a set has fewer than two images.
    """
    if min(real.count, count) < 2:
        raise InputError(f"the floor needs at least 2 images in each set, got {real.count} and {count}")
    scales = torch.linalg.eigvalsh(real.covariance).clamp(min=0).sqrt()  # the distance is invariant to rotation
    random = np.random.default_rng(seed)
    return frechet_distance(*(_draw_fit(scales.numpy(), n, random) for n in (real.count, count)))


def _draw_fit(scales: np.ndarray, count: int, random: np.random.Generator) -> Gaussian:
    """The Gaussian fitted to `count` random draws of N(0, diag(scales^2))."""
    dimensions = len(scales)
    mean = random.standard_normal(dimensions) * scales / count**0.5
    if count <= dimensions:
        factor = random.standard_normal((count - 1, dimensions))
    else:  # Bartlett's decomposition of a Wishart matrix, without drawing each image
        factor = np.triu(random.standard_normal((dimensions, dimensions)), 1)
        factor += np.diag(np.sqrt(random.chisquare(np.arange(count - 1, count - 1 - dimensions, -1))))
    root = torch.from_numpy(factor * scales)
    return Gaussian(torch.from_numpy(mean), root.T @ root / (count - 1), count)
