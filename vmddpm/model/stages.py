"""The stages of encoder and decoder: SSLayers and one sampling step (paper section III-B)."""

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vmddpm.model.config import ModelConfig
from vmddpm.model.dimensions import convolution, convolve_parts, convolve_up
from vmddpm.model.regeneration import VisitOrders
from vmddpm.model.resnet_block import ResNetBlock
from vmddpm.model.ss_layer import SSLayer


class SSLayers(nn.ModuleList):
    """SSLayers in series, each with the next visit order."""

    def __init__(self, count: int, channels: int, config: ModelConfig) -> None:
        super().__init__(SSLayer(channels, config) for _ in range(count))

    def forward(self, x: Tensor, time: Tensor, orders: VisitOrders) -> Tensor:
        """x (B, C, H, W), time (B, time_dim) -> (B, C, H, W)."""
        for layer in self:
            table = orders.next(*x.shape[2:])
            x = checkpoint(layer, x, time, table, use_reentrant=False) if orders.recompute else layer(x, time, table)
        return x


class EncoderStage(nn.Module):
    """Sample down, then SSLayers: (B, C_in, H, W) -> (B, C_out, H / factor, W / factor).

    Every factor x factor patch is projected to one token, without overlap, as the patch embedding and patch
    merging of VMamba do. The norm before it undoes the growth of the residual sums, which double in every
    SSLayer at the start of training; the image itself has unit scale and needs none.
    """

    def __init__(
        self, channels_in: int, channels_out: int, factor: int, config: ModelConfig, *, normalise: bool
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_groups, channels_in) if normalise else nn.Identity()
        self.down = convolution(config.spatial_dims, channels_in, channels_out, factor, stride=factor)
        self.layers = SSLayers(config.layers_per_stage, channels_out, config)

    def forward(self, x: Tensor, time: Tensor, orders: VisitOrders) -> Tensor:
        features: Tensor = self.layers(self.down(self.norm(x)), time, orders)
        return features


class DecoderStage(nn.Module):
    """Fuse with the skip, SSLayers, then sample up: (B, C_in, H, W) -> (B, C_out, H * factor, W * factor).

    "Before each stage of upsampling it is spliced and fused with the encoded feature map in the skip
    connection": concatenated, then a 1 x 1 convolution back to C_in. Up is the mirror of down: every token
    is projected to a factor x factor patch.
    """

    def __init__(self, channels_in: int, channels_out: int, factor: int, config: ModelConfig) -> None:
        super().__init__()
        self.factor = factor
        self.fuse = convolution(config.spatial_dims, 2 * channels_in, channels_in, 1)
        self.layers = SSLayers(config.layers_per_stage, channels_in, config)
        self.norm = nn.GroupNorm(config.norm_groups, channels_in)
        self.up = convolution(config.spatial_dims, channels_in, channels_out * factor**config.spatial_dims, 1)

    def forward(self, x: Tensor, skip: Tensor, time: Tensor, orders: VisitOrders) -> Tensor:
        x = self.layers(convolve_parts(self.fuse, x, skip), time, orders)
        return convolve_up(self.up, self.norm(x), self.factor)


class ImageFusion(nn.Module):
    """The skip at full resolution (`image_skip`): features and the network's input are concatenated, a 3 x 3
    convolution reduces them to C, and a ResNet block with time embedding follows: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        self.fuse = convolution(config.spatial_dims, channels + config.input_channels, channels, 3, padding=1)
        self.block = ResNetBlock(channels, config.time_dim, config.norm_groups, config.spatial_dims)

    def forward(self, features: Tensor, image: Tensor, time: Tensor) -> Tensor:
        fused: Tensor = self.block(convolve_parts(self.fuse, features, image), time)
        return fused
