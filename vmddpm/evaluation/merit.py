"""Metrics for monitoring a run without a pretrained network: spectrum, texture and structure."""

from dataclasses import dataclass

from torch import Tensor

from vmddpm.errors import InputError
from vmddpm.evaluation.projected_frechet import projected_frechet_distance
from vmddpm.evaluation.spectrum import log_spectral_distance
from vmddpm.evaluation.texture import texture_distance


@dataclass(frozen=True)
class Merit:
    """Distances of a set of images from real ones; lower is better. None of them is a FID. They are comparable only for
    the same real images and the same number of samples.

    Attributes:
        spectrum: see `log_spectral_distance`, in decibels: the amount and coarseness of texture.
        texture: see `texture_distance`, a Fréchet distance of random features at full resolution.
        structure: see `projected_frechet_distance`, which measures shapes and contrast at 32 x 32.
    """

    spectrum: float
    texture: float
    structure: float

    def __str__(self) -> str:
        return f"spectrum {self.spectrum:.2f} dB, texture {self.texture:.2g}, structure {self.structure:.2g}"


def figures_of_merit(images: Tensor, real: Tensor) -> Merit:
    """The distances of `images` (n, C, H, W) in [-1, 1] from `real` ones (m, C, H, W).

    For reference, compute the figures of as many other real images: a perfect generator gets about the same.

    Raises:
        InputError: if a set has fewer than two images, they differ in size or colour, a value is not finite, or an
            image has fewer than 12 x 12 pixels.

    Example:
        >>> import torch
        >>> noise = torch.rand(16, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
        >>> print(figures_of_merit(noise / 2, noise))
        spectrum 6.02 dB, texture 1.7, structure 5.6
    """
    if images.shape[1:] != real.shape[1:]:
        raise InputError(f"images have channels and pixels {tuple(images.shape[1:])}, the real ones "
                         f"{tuple(real.shape[1:])}; give images of the same size and colour")  # fmt: skip
    return Merit(
        log_spectral_distance(images, real),  # refuses values that are not finite
        texture_distance(images, real),
        projected_frechet_distance(images, real),
    )
