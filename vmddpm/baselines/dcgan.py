"""DCGAN (Radford et al., 2016): strided and transposed convolutions with batch normalisation.

The layers are those of the authors' Torch code (4 x 4 kernels), which ends at 64 x 64; at 128 x 128 there is one more
stage at the wide end, so that the widest map has 16 times the base width, 1024, as in the paper's Figure 1.
"""

import torch
from torch import Tensor, nn

from vmddpm.baselines.config import GANConfig, multipliers
from vmddpm.baselines.layers import BatchNorm


def _initialised(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.02)
    return network


class DCGANGenerator(nn.Module):
    """z (B, latent_dim) in [-1, 1] -> images (B, channels, size, size) in [-1, 1]."""

    def __init__(self, config: GANConfig, channels: int, size: int) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in multipliers(size)]
        layers: list[nn.Module] = [nn.ConvTranspose2d(config.latent_dim, widths[0], 4, bias=False)]
        for width, narrower in zip(widths, [*widths[1:], channels]):
            layers += [BatchNorm(width), nn.ReLU(inplace=True)]
            layers += [nn.ConvTranspose2d(width, narrower, 4, stride=2, padding=1, bias=False)]
        self.layers = nn.Sequential(*layers, nn.Tanh())
        _initialised(self)

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.layers(z[:, :, None, None])
        return images


class DCGANDiscriminator(nn.Module):
    """Images (B, channels, size, size) -> one logit for each, (B,)."""

    def __init__(self, config: GANConfig, channels: int, size: int) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in reversed(multipliers(size))]
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, stride=2, padding=1, bias=False)]
        for width, wider in zip(widths, widths[1:]):  # noqa: RUF007
            layers += [nn.LeakyReLU(0.2, inplace=True)]
            layers += [nn.Conv2d(width, wider, 4, stride=2, padding=1, bias=False), BatchNorm(wider)]
        self.layers = nn.Sequential(*layers, nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(widths[-1], 1, 4, bias=False))
        _initialised(self)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (torch.flatten(self.layers(images)),)
