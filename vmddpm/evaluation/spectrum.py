"""Power spectra by spatial frequency, which measure the amount and coarseness of texture."""

import torch
from torch import Tensor

from vmddpm.errors import InputError

CHUNK = 256  # images transformed at a time
# Noise power per pixel of images in [-1, 1] rounded to 256 levels; an 8-bit file cannot hold weaker texture.
QUANTISATION_NOISE = (2 / 255) ** 2 / 12


def radial_power_spectrum(images: Tensor) -> Tensor:
    """The power of a set of images at each spatial frequency, averaged over all directions and images.

    Frequencies are in periods across the shorter side n of an image; each point of the discrete Fourier transform is
    assigned to the nearest integer frequency. The mean of an image (frequency 0) and the corners of the transform
    beyond the Nyquist frequency, n / 2, are left out. Powers are per pixel: white noise of variance s has power s at
    every frequency.

    Args:
        images: (n, C, H, W); the mean of the channels is taken.

    Returns:
        float64 (min(H, W) // 2,): the powers of frequencies 1, 2 ...

    Raises:
        InputError: if there is no image, an image has fewer than 2 x 2 pixels, or a value is not finite.

    Source:
        The azimuthal average of Durall, Keuper and Keuper (CVPR 2020, section 2.1).

    Example:
        >>> x = torch.arange(8.0)
        >>> wave = torch.cos(2 * torch.pi * 3 * x / 8).expand(1, 1, 8, 8)  # three periods across the image
        >>> radial_power_spectrum(wave).argmax().item() + 1
        3
    """
    if images.dim() != 4 or len(images) == 0 or min(images.shape[2:]) < 2:
        raise InputError(f"images have shape {tuple(images.shape)}; a spectrum needs (n, C, H, W), n at least 1, of at "
                         "least 2 x 2 pixels")  # fmt: skip
    if not images.isfinite().all():
        raise InputError("an image has a value that is NaN or infinite; look at the weights that it was drawn from")
    height, width = images.shape[2:]
    side = min(height, width)
    across, down = torch.fft.rfftfreq(width, dtype=torch.float64), torch.fft.fftfreq(height, dtype=torch.float64)
    ring = (side * torch.hypot(down[:, None], across[None])).round().long().flatten()  # (H * (W // 2 + 1),)
    # The transform of a real image is symmetric, so only half is computed; its inner columns count twice.
    weight = torch.full((width // 2 + 1,), 2.0, dtype=torch.float64)
    weight[0] = 1
    if width % 2 == 0:
        weight[-1] = 1
    weight = weight.expand(height, -1).flatten()
    power = torch.zeros(height * (width // 2 + 1), dtype=torch.float64)
    for chunk in images.split(CHUNK):
        transform = torch.fft.rfft2(chunk.detach().cpu().double().mean(1), norm="ortho")
        power += transform.abs().square().flatten(1).sum(0)
    sums, points = (
        torch.zeros(int(ring.max()) + 1, dtype=torch.float64).index_add(0, ring, values)
        for values in (weight * power, weight)
    )
    return (sums / points)[1 : side // 2 + 1] / len(images)


def log_spectral_distance(a: Tensor, b: Tensor) -> float:
    """The distance of the radial power spectra of two sets of images in decibels: the root mean square difference of
    10 log10 of the power, with equal weight for all frequencies.

    It is 0 for equal spectra, and 3 if one set has twice the power of the other at every frequency. Power below the
    noise of 8-bit rounding is raised to it. It measures the amount and coarseness of texture, not its location.

    Args:
        a, b: sets of images (n, C, H, W) in [-1, 1], of one size; their numbers may differ.

    Raises:
        InputError: if they differ in size, or as in `radial_power_spectrum`.

    Source:
        The log-spectral distance of Gray and Markel (IEEE Transactions on Acoustics, Speech, and Signal Processing,
        1976), for spectra averaged over directions and images.

    Example:
        >>> noise = torch.randn(64, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> round(log_spectral_distance(noise, 2 * noise), 2)
        6.02
    """
    if a.shape[2:] != b.shape[2:]:
        raise InputError(f"images of {tuple(a.shape[2:])} and {tuple(b.shape[2:])} pixels have no frequencies in "
                         "common; give images of one size")  # fmt: skip
    decibels = [10 * radial_power_spectrum(images).clamp(min=QUANTISATION_NOISE).log10() for images in (a, b)]
    return float((decibels[0] - decibels[1]).square().mean().sqrt())
