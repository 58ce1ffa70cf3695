"""The noise predictor of the rows DDPM and DDIM of Table I: the UNet of Ho et al. (2020)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vmddpm.errors import InputError
from vmddpm.model.config import MAX_CHANNELS
from vmddpm.model.pretrained import Pretrained
from vmddpm.model.regeneration import OrderKey
from vmddpm.numbers import check_numbers


@dataclass(frozen=True)
class UNetConfig:
    """The widths of Ho et al. (2020) at 256 x 256 without their first stage: 128 x 128 down to 8 x 8.

    Raises:
        InputError: if a field is invalid; the message has its name, its value and what it must be.
    """

    image_channels: int = 1
    """Channels of the image, 1 (grey) or 3 (colour)."""

    widths: tuple[int, ...] = (128, 256, 256, 512, 512)
    """Channels of each stage; each but the first halves the size."""

    attention: tuple[bool, ...] = (False, False, False, True, False)
    """Stages with self-attention: by default the one at 16 x 16, as in Ho et al. (2020). The middle always has it."""

    layers_per_stage: int = 2
    """Residual blocks of each stage on the way down; one more on the way up."""

    norm_groups: int = 32
    """Groups of every GroupNorm, a divisor of every width."""

    dropout: float = 0.0
    """Dropout in the residual blocks."""

    def __post_init__(self) -> None:
        for name in ("widths", "attention"):  # JSON and YAML have only lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_numbers(self, "unet.", {"widths": MAX_CHANNELS, "layers_per_stage": 256, "norm_groups": MAX_CHANNELS})
        self._require(self.image_channels in (1, 3), "image_channels", "1 or 3")
        self._require(self.norm_groups >= 1, "norm_groups", "at least 1")
        self._require(
            len(self.widths) >= 1 and all(w >= 1 and w % self.norm_groups == 0 for w in self.widths),
            "widths", f"one or more multiples of norm_groups, {self.norm_groups}",
        )  # fmt: skip
        self._require(len(self.attention) == len(self.widths), "attention", f"{len(self.widths)} values, one per stage")
        self._require(self.layers_per_stage >= 1, "layers_per_stage", "at least 1")
        self._require(0 <= self.dropout < 1, "dropout", "at least 0 and below 1")

    def _require(self, fits: bool, name: str, needed: str) -> None:
        if not fits:
            raise InputError(f"unet.{name} is {getattr(self, name)!r}; it must be {needed}")

    @property
    def size_multiple(self) -> int:
        """An image's height and width must be multiples of this."""
        return 1 << (len(self.widths) - 1)


class UNet(nn.Module, Pretrained):
    """diffusers' UNet2DModel, with the options of its conversion of Ho et al.'s weights, called like `VMDDPM`.

    Args:
        config: the architecture.
    """

    def __init__(self, config: UNetConfig) -> None:
        with torch.device("cpu"):  # tables in diffusers' modules stay on the CPU wherever this network is built
            from diffusers.models.unets.unet_2d import UNet2DModel  # imported late: it takes seconds

        super().__init__()
        self.config = config
        self.network = UNet2DModel(
            in_channels=config.image_channels, out_channels=config.image_channels,
            block_out_channels=config.widths, layers_per_block=config.layers_per_stage,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in config.attention),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.attention)),
            attention_head_dim=None, norm_num_groups=config.norm_groups, norm_eps=1e-6, dropout=config.dropout,
            downsample_padding=0, flip_sin_to_cos=False, freq_shift=1,
        )  # fmt: skip

    def forward(self, x: Tensor, t: Tensor, order_key: OrderKey | None = None) -> Tensor:
        """The noise (or velocity) in x (B, image_channels, H, W) at steps t (B,); `order_key` is ignored."""
        noise: Tensor = self.network(x, t, return_dict=False)[0]
        return noise
