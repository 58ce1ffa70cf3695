"""A Fréchet distance of textures, from the responses of random filters at every pixel, at full resolution."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from vmddpm.errors import InputError
from vmddpm.evaluation.frechet import Gaussian, frechet_distance

SIZES, FILTERS_PER_SIZE = (3, 7, 11), 16  # sides of the filters in pixels, and number of filters of each size
CHUNK = 16  # images filtered at a time
_SEED = 20240505


@lru_cache(maxsize=1)
def _filters() -> list[tuple[Tensor, Tensor]]:
    """Weights (16, 1, k, k) with zero sum, so that uniform brightness has no response, and biases (16,)."""
    generator = torch.Generator().manual_seed(_SEED)
    filters = []
    with torch.inference_mode(False):
        for size in SIZES:
            weights = torch.randn(FILTERS_PER_SIZE, 1, size, size, generator=generator) / size
            biases = 0.1 * torch.randn(FILTERS_PER_SIZE, generator=generator)
            filters.append((weights - weights.mean((2, 3), keepdim=True), biases))
    return filters


def local_features(images: Tensor) -> Tensor:
    """The responses, after a ReLU, of 48 fixed random filters of 3, 7 and 11 pixels at every pixel where the largest
    fits: (n, C, H, W) -> float32 (n, (H - 10) * (W - 10), 48)."""
    grey, widest = images.detach().cpu().float().mean(1, keepdim=True), max(SIZES)
    responses = []
    for weights, biases in _filters():
        cut = (widest - weights.shape[-1]) // 2
        inner = grey[..., cut : grey.shape[2] - cut, cut : grey.shape[3] - cut]
        responses.append(F.conv2d(inner, weights, biases).relu())
    return torch.cat(responses, 1).flatten(2).transpose(1, 2)


def texture_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of two sets of images in `local_features`, with each pixel of each image as one sample.

    It distinguishes textures, edges and contrasts anywhere in the image, with as few as ten images, but not shapes
    larger than a filter.

    Args:
        a, b: sets of images (n, C, H, W) in [-1, 1]; their numbers may differ.

    Raises:
        InputError: if there is no image, or an image has fewer than 12 x 12 pixels.

    Source:
        Random filters of several sizes capture textures: Ustyuzhaninov, Brendel, Gatys and Bethge (What does it take to
        generate natural textures?, ICLR 2017). The distance is that of Dowson and Landau (1982).

    Example:
        >>> noise = torch.rand(16, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
        >>> texture_distance(noise, noise) < 1e-9
        True
    """
    return frechet_distance(_fit(a), _fit(b))


def _fit(images: Tensor) -> Gaussian:
    """Mean and covariance of all pixels' features. One pass is accurate, because means are as small as deviations."""
    least = max(SIZES) + 1
    if images.dim() != 4 or len(images) == 0 or min(images.shape[2:]) < least:
        raise InputError(f"images have shape {tuple(images.shape)}; a texture needs (n, C, H, W), n at least 1, of at "
                         f"least {least} x {least} pixels")  # fmt: skip
    count, dimensions = 0, FILTERS_PER_SIZE * len(SIZES)
    total = torch.zeros(dimensions, dtype=torch.float64)
    squares = torch.zeros(dimensions, dimensions, dtype=torch.float64)
    for chunk in images.split(CHUNK):
        features = local_features(chunk).flatten(0, 1).double()  # (pixels, 48)
        count += len(features)
        total += features.sum(0)
        squares += features.T @ features
    mean = total / count
    return Gaussian(mean, (squares - count * torch.outer(mean, mean)) / (count - 1), count)
