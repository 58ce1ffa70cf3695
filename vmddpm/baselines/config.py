"""The options of the three GAN baselines."""

from dataclasses import dataclass
from math import log2
from typing import Literal

from vmddpm.errors import InputError
from vmddpm.numbers import check_numbers

GANS = ("dcgan", "sagan", "unetgan")


@dataclass(frozen=True)
class GANConfig:
    """The generator, the discriminator and their training (paper section IV-A).

    Raises:
        InputError: if a field is invalid; the message has its name, its value and what it must be.
    """

    latent_dim: int = 1000
    """Length of the noise vectors: "uniformly distributed noise vectors z in [-1, 1]^1000 are used as input in model
    training and testing"."""

    base_channels: int = 64
    """Channels at full resolution; 64 in the released code of all three."""

    loss: Literal["bce", "hinge"] = "bce"
    """Loss of both networks, "bce" or "hinge", which SAGAN's authors use. "the GAN-related model loss function uses
    Binary Cross Entropy Loss"."""

    beta1: float = 0.5
    """Adam's beta1 for both networks; not stated in the paper, the value of DCGAN."""

    beta2: float = 0.999
    """Adam's beta2 for both networks; not stated in the paper, the usual value."""

    discriminator_learning_rate: float | None = None
    """Learning rate of the discriminator. Null is training.learning_rate, as the paper states one rate for all models;
    SAGAN's authors use four times the generator's."""

    attention_size: int = 32
    """Side of the feature maps with self-attention in both networks of SAGAN; 32 in its released code."""

    cutmix: float = 1.0
    """Weight of U-Net GAN's CutMix augmentation and consistency losses; 0 for none."""

    cutmix_warmup_steps: int = 2000
    """Steps of linear warm-up of the CutMix weight, as the discriminator must first separate real from fake."""

    def __post_init__(self) -> None:
        check_numbers(self, "gan.", {"latent_dim": 2**20, "base_channels": 2**10, "attention_size": 2**13})
        for name in ("latent_dim", "base_channels", "attention_size"):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("beta1", "beta2"):
            self._require(0 <= getattr(self, name) < 1, name, "at least 0 and below 1")
        rate = self.discriminator_learning_rate
        self._require(rate is None or rate > 0, "discriminator_learning_rate", "above 0, or null")
        self._require(self.loss in ("bce", "hinge"), "loss", '"bce" or "hinge"')
        for name in ("cutmix", "cutmix_warmup_steps"):
            self._require(getattr(self, name) >= 0, name, "at least 0")

    def _require(self, fits: bool, name: str, needed: str) -> None:
        if not fits:
            raise InputError(f"gan.{name} is {getattr(self, name)!r}; it must be {needed}")


def multipliers(size: int) -> tuple[int, ...]:
    """Widths over base_channels after each doubling from 4 x 4 to `size`: (16, 8, 4, 2, 1) at 128, (8, 4, 2, 1) at 64.

    Raises:
        InputError: if the size cannot be reached.
    """
    stages = round(log2(max(size, 1))) - 2
    if stages < 2 or 4 << stages != size:
        raise InputError(f"data.size is {size}; a GAN's must be a power of 2 of at least 16")
    return tuple(2**i for i in reversed(range(stages)))
