"""SAGAN (Zhang et al., 2019) without classes: residual blocks, spectral normalisation in both networks, self-attention.

The widths, and attention at 32 x 32 in both networks, are those of the authors' released code at 128 x 128.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmddpm.baselines.config import GANConfig, multipliers
from vmddpm.baselines.layers import DownBlock, PlainNorm, SelfAttention, UpBlock, convolution, normalised


class SAGANGenerator(nn.Module):
    """z (B, latent_dim) in [-1, 1] -> images (B, channels, size, size) in [-1, 1]."""

    def __init__(self, config: GANConfig, channels: int, size: int) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in multipliers(size)]
        self.linear = normalised(nn.Linear(config.latent_dim, 16 * widths[0]))
        blocks: list[nn.Module] = []
        side = 4
        for inputs, outputs in zip([widths[0], *widths], widths):
            blocks.append(UpBlock(inputs, outputs, PlainNorm))
            side *= 2
            if side == config.attention_size:
                blocks.append(SelfAttention(outputs))
        self.blocks = nn.Sequential(*blocks)
        self.out = nn.Sequential(PlainNorm(widths[-1]), nn.ReLU(), convolution(widths[-1], channels), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.out(self.blocks(self.linear(z).view(len(z), -1, 4, 4)))
        return images


class SAGANDiscriminator(nn.Module):
    """Images (B, channels, size, size) -> one logit for each, (B,)."""

    def __init__(self, config: GANConfig, channels: int, size: int) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in reversed(multipliers(size))]
        blocks: list[nn.Module] = []
        side = size
        for inputs, outputs in zip([channels, *widths], widths):
            blocks.append(DownBlock(inputs, outputs, first=not blocks))
            side //= 2
            if side == config.attention_size:
                blocks.append(SelfAttention(outputs))
        self.blocks = nn.Sequential(*blocks, DownBlock(widths[-1], widths[-1], downsample=False))
        self.linear = normalised(nn.Linear(widths[-1], 1))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        pooled = F.relu(self.blocks(images)).sum((2, 3))  # (B, width)
        return (torch.flatten(self.linear(pooled)),)
