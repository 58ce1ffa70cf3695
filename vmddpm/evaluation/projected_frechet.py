"""A Fréchet distance of randomly projected pixels, for monitoring a run without a pretrained network."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vmddpm.evaluation.frechet import fit_gaussian, frechet_distance

_FEATURES, _SIDE, _SEED = 64, 32, 20240505


def projected_features(images: Tensor) -> Tensor:
    """(B, C, H, W) -> float64 (B, 64): images resized to 32 x 32 and projected by a Gaussian matrix of fixed seed."""
    small = F.interpolate(images.double().mean(1, keepdim=True), (_SIDE, _SIDE), mode="bilinear", antialias=True)
    generator = torch.Generator().manual_seed(_SEED)
    matrix = torch.randn(_SIDE**2, _FEATURES, generator=generator, dtype=torch.float64) / _SIDE
    return small.flatten(1) @ matrix.to(images.device)


def projected_frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of two sets of images (n, C, H, W) in the space of `projected_features`.

    It is not a FID, and is comparable only for the same real images. It measures coarse structure and contrast, not
    fine texture.

    Raises:
        InputError: if a set has fewer than two images.
    """
    return frechet_distance(fit_gaussian(projected_features(a)), fit_gaussian(projected_features(b)))
