"""A Fréchet distance that needs no pretrained network: a figure to watch a run by, not a FID."""

import torch
import torch.nn.functional as F
from torch import Tensor

_FEATURES, _SIDE, _SEED = 64, 32, 20240505


def projected_features(images: Tensor) -> Tensor:
    """(B, C, H, W) -> float64 (B, 64): images at 32 x 32 through a fixed Gaussian matrix, drawn once from its seed."""
    small = F.interpolate(images.double().mean(1, keepdim=True), (_SIDE, _SIDE), mode="bilinear", antialias=True)
    generator = torch.Generator().manual_seed(_SEED)
    matrix = torch.randn(_SIDE**2, _FEATURES, generator=generator, dtype=torch.float64) / _SIDE
    return small.flatten(1) @ matrix.to(images.device)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^1/2) of two sets of features (n, d), in float64.

    The Fréchet distance of the two fitted Gaussians (Dowson and Landau, 1982), with unbiased covariances.
    """
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # C_a C_b and the symmetric root_a C_b root_a have the same eigenvalues.
    cross = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(distance.item(), 0.0)


def projected_frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of two sets of images (n, C, H, W) in the space of `projected_features`.

    Comparable only with itself, on the same images; it sees coarse structure and contrast, not fine texture.

    Raises:
        ValueError: if a set has fewer than two images.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a covariance needs at least 2 images in each set, got {len(a)} and {len(b)}")
    return frechet_distance(projected_features(a), projected_features(b))
