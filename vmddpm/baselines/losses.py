"""The losses of the two networks of a GAN."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vmddpm.baselines.config import GANConfig


def real_loss(logits: Tensor, config: GANConfig) -> Tensor:
    """The loss of logits for real images: binary cross-entropy, log(1 + e^-x), as in the paper, or the hinge loss."""
    return F.softplus(-logits) if config.loss == "bce" else F.relu(1 - logits)


def fake_loss(logits: Tensor, config: GANConfig) -> Tensor:
    """The loss of logits for fake images."""
    return F.softplus(logits) if config.loss == "bce" else F.relu(1 + logits)


def discriminator_loss(real: tuple[Tensor, ...], fake: tuple[Tensor, ...], config: GANConfig) -> Tensor:
    """The mean over all logits of the discriminator: of whole images, in U-Net GAN also of pixels."""
    heads = [real_loss(r, config).mean() + fake_loss(f, config).mean() for r, f in zip(real, fake)]
    return torch.stack(heads).mean()


def generator_loss(fake: tuple[Tensor, ...], config: GANConfig) -> Tensor:
    """The non-saturating loss: -log of the probability that the fakes are real; -logit with the hinge."""
    heads = [(real_loss(f, config) if config.loss == "bce" else -f).mean() for f in fake]
    return torch.stack(heads).mean()


def cutmix_mask(count: int, size: int, source: torch.Generator) -> Tensor:
    """float32 (count, 1, size, size): 1 for pixels of the real image, 0 for pixels of the fake one.

    A box of uniformly distributed area, centred anywhere and cut off at the border, as in CutMix (Yun et al., 2019);
    which of the two is inside is drawn as well.
    """
    share, inside = torch.rand(count, generator=source), torch.rand(count, generator=source) < 0.5
    half = (size * share.sqrt() / 2)[:, None]
    centre = torch.rand(count, 2, generator=source) * size
    pixel_centres = torch.arange(size) + 0.5
    columns, rows = ((pixel_centres - centre[:, axis, None]).abs() < half for axis in (0, 1))  # (count, size) each
    box = rows[:, :, None] & columns[:, None, :]
    return (box == inside[:, None, None]).float()[:, None]


def cutmix_loss(
    mixed: tuple[Tensor, ...], real: tuple[Tensor, ...], fake: tuple[Tensor, ...], mask: Tensor, config: GANConfig
) -> Tensor:
    """U-Net GAN's augmentation and consistency (Schönfeld et al., 2020, section 3.2 and Eq. 8).

    A mixed image counts as fake as a whole, and each of its pixels as real or fake by the mask. Consistency requires
    the same logits for its pixels as for those of the two images it is made of.

    Args:
        mixed, real, fake: the discriminator's logits, (of pixels, of whole images).
        mask: as `cutmix_mask` makes it.
    """
    pixels, whole = mixed
    augmentation = (mask * real_loss(pixels, config) + (1 - mask) * fake_loss(pixels, config)).mean()
    consistency = (pixels - mask * real[0] - (1 - mask) * fake[0]).square().mean()
    return augmentation + fake_loss(whole, config).mean() + consistency
