"""Builds the generator and the discriminator of a system by name."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vmddpm.baselines.config import GANConfig
from vmddpm.baselines.dcgan import DCGANDiscriminator, DCGANGenerator
from vmddpm.baselines.sagan import SAGANDiscriminator, SAGANGenerator
from vmddpm.baselines.unetgan import UNetGANDiscriminator, UNetGANGenerator
from vmddpm.diffusion import image_generator
from vmddpm.model.pretrained import Pretrained

_GENERATORS = {"dcgan": DCGANGenerator, "sagan": SAGANGenerator, "unetgan": UNetGANGenerator}
_DISCRIMINATORS = {"dcgan": DCGANDiscriminator, "sagan": SAGANDiscriminator, "unetgan": UNetGANDiscriminator}


@dataclass(frozen=True)
class GeneratorConfig:
    """The contents of config.json in a generator's weights folder."""

    system: str
    image_channels: int
    size: int
    gan: GANConfig = field(default_factory=GANConfig)

    def __post_init__(self) -> None:
        if isinstance(self.gan, dict):  # read from JSON
            object.__setattr__(self, "gan", GANConfig(**self.gan))


class Generator(nn.Module, Pretrained):
    """The generator of a GAN, z (B, latent_dim) in [-1, 1] -> images (B, C, size, size) in [-1, 1]."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.network = _GENERATORS[config.system](config.gan, config.image_channels, config.size)

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.network(z)
        return images


def build_discriminator(config: GeneratorConfig) -> nn.Module:
    """Images (B, C, size, size) -> a tuple of logits: of whole images (B,), in U-Net GAN also of all pixels."""
    return _DISCRIMINATORS[config.system](config.gan, config.image_channels, config.size)


@torch.no_grad()
def draw(generator: Generator, indices: range, *, seed: int = 0) -> Tensor:
    """Images float32 (len(indices), C, size, size); image i comes from the latent of (seed, i)."""
    latents = torch.stack([latent(image_generator(seed, i), generator.config.gan) for i in indices])
    device = next(generator.parameters()).device
    training = generator.training
    images: Tensor = generator.eval()(latents.to(device))
    generator.train(training)
    return images.float()


def latent(source: torch.Generator, config: GANConfig) -> Tensor:
    """Paper section IV-A, "z in [-1, 1]^1000", uniform: float32 (latent_dim,)."""
    return torch.rand(config.latent_dim, generator=source) * 2 - 1
