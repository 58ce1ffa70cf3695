"""U-Net GAN (Schönfeld et al., 2020) without classes: BigGAN's generator, and a discriminator that is a U-Net.

The discriminator classifies the whole image at its bottleneck, and every pixel at its output. Widths are those of the
authors' released code for 128 x 128 (CelebA), which has no attention and passes the latent to every block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmddpm.baselines.config import GANConfig, multipliers
from vmddpm.baselines.layers import (
    DownBlock,
    ModulatedNorm,
    NoNorm,
    PlainNorm,
    UpBlock,
    convolution,
    normalised,
)


class UNetGANGenerator(nn.Module):
    """z (B, latent_dim) in [-1, 1] -> images (B, channels, size, size) in [-1, 1]."""

    def __init__(self, config: GANConfig, channels: int, size: int) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in multipliers(size)]
        self.linear = normalised(nn.Linear(config.latent_dim, 16 * widths[0]))
        self.blocks = nn.ModuleList(
            UpBlock(inputs, outputs, lambda width: ModulatedNorm(width, config.latent_dim))
            for inputs, outputs in zip([widths[0], *widths], widths)
        )
        self.out = nn.Sequential(PlainNorm(widths[-1]), nn.ReLU(), convolution(widths[-1], channels), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        h = self.linear(z).view(len(z), -1, 4, 4)
        for block in self.blocks:
            h = block(h, z)
        images: Tensor = self.out(h)
        return images


class UNetGANDiscriminator(nn.Module):
    """Images (B, channels, size, size) -> logits of pixels (B, 1, size, size) and of whole images (B,)."""

    def __init__(self, config: GANConfig, channels: int, size: int) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in reversed(multipliers(size))]
        self.encoder = nn.ModuleList(
            DownBlock(inputs, outputs, first=i == 0)
            for i, (inputs, outputs) in enumerate(zip([channels, *widths], widths))
        )
        # Each block after the first also takes the encoder's map of the same size, as wide as its other input.
        self.decoder = nn.ModuleList(
            UpBlock(width if i == 0 else 2 * width, narrower, lambda _: NoNorm())
            for i, (width, narrower) in enumerate(zip(reversed(widths), [*reversed(widths[:-1]), widths[0]]))
        )
        self.whole = normalised(nn.Linear(widths[-1], 1))
        self.pixels = nn.Conv2d(widths[0], 1, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        h, skips = images, []
        for block in self.encoder:
            h = block(h)
            skips.append(h)
        whole = self.whole(F.relu(h).sum((2, 3)))  # (B, 1)
        skips.pop()
        h = self.decoder[0](h)
        for block in self.decoder[1:]:
            h = block(torch.cat((h, skips.pop()), 1))
        return self.pixels(h), torch.flatten(whole)
