"""Convolutions conditioned on the time step: the CNN of an MSSBlock, and the ResNet block, which adds a skip."""

from torch import Tensor, nn

from vmddpm.model.dimensions import convolution
from vmddpm_kernels import group_norm_silu


class GroupNormSiLU(nn.GroupNorm):
    """Fused GroupNorm and SiLU; without an affine map of its own, the caller passes one for each image."""

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """x (B, C, H, W) or (B, C, D, H, W), weight and bias (B, C) -> the same shape as x."""
        weight, bias = (self.weight, self.bias) if self.affine else (weight, bias)
        planes = x.flatten(2, -2)  # a volume is a tall image
        return group_norm_silu(planes, self.num_groups, weight, bias, eps=self.eps).view_as(x)


class TimeCNN(nn.Module):
    """Two convolutions of side 3; between them the time embedding scales and shifts each normalised channel (paper
    III-C: "vectorized embedding of time information through the convolution layer").

    The last convolution is initialised to zero, so a residual branch starts at zero (Ho et al., 2020).
    """

    def __init__(self, channels: int, time_dim: int, groups: int, axes: int = 2) -> None:
        super().__init__()
        self.norm_in = GroupNormSiLU(groups, channels)
        self.conv_in = convolution(axes, channels, channels, 3, padding=1)
        self.time = nn.Linear(time_dim, 2 * channels)
        self.norm_out = GroupNormSiLU(groups, channels, affine=False)  # the time embedding is its affine map
        self.conv_out = convolution(axes, channels, channels, 3, padding=1)
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (B, C, H, W), time (B, time_dim) -> (B, C, H, W)."""
        h = self.conv_in(self.norm_in(x))
        scale, shift = self.time(time).chunk(2, dim=1)  # (B, C) each
        branch: Tensor = self.conv_out(self.norm_out(h, 1 + scale, shift))
        return branch


class ResNetBlock(TimeCNN):
    """x + CNN(x, t): the "ResNet block that supports time embedding" of paper III-B."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (B, C, H, W), time (B, time_dim) -> (B, C, H, W)."""
        return super().forward(x, time).add_(x)
