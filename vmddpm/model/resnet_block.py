"""The convolutions that see the time: the CNN of an MSSBlock, and with a skip around it the ResNet block."""

from torch import Tensor, nn
from torch.nn import functional as F

from vmddpm.model.dimensions import convolution, per_channel


class TimeCNN(nn.Module):
    """Two convolutions of side 3; between them the time scales and shifts each normalised channel (paper III-C:
    "vectorized embedding of time information through the convolution layer").

    The last convolution starts at zero, so a branch joins its sum by learning (Ho et al., 2020).
    """

    def __init__(self, channels: int, time_dim: int, groups: int, axes: int = 2) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(groups, channels)
        self.conv_in = convolution(axes, channels, channels, 3, padding=1)
        self.time = nn.Linear(time_dim, 2 * channels)
        self.norm_out = nn.GroupNorm(groups, channels, affine=False)  # the time is its affine map
        self.conv_out = convolution(axes, channels, channels, 3, padding=1)
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (B, C, H, W), time (B, time_dim) -> (B, C, H, W)."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = per_channel(self.time(time), x.dim() - 2).chunk(2, dim=1)  # (B, C, 1, 1) each
        h = self.norm_out(h) * (1 + scale) + shift
        branch: Tensor = self.conv_out(F.silu(h))
        return branch


class ResNetBlock(TimeCNN):
    """x + CNN(x, t): the "ResNet block that supports time embedding" of paper III-B."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (B, C, H, W), time (B, time_dim) -> (B, C, H, W)."""
        return x + super().forward(x, time)
