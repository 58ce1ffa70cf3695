"""The stages of encoder and decoder: SSLayers and one sampling step (paper section III-B)."""

from torch import Tensor, nn
from torch.nn import functional as F

from vmddpm.model.config import ModelConfig
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
            x = layer(x, time, orders.next(*x.shape[2:]))
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
        self.down = nn.Conv2d(channels_in, channels_out, factor, stride=factor)
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
        self.fuse = nn.Conv2d(2 * channels_in, channels_in, 1)
        self.layers = SSLayers(config.layers_per_stage, channels_in, config)
        self.norm = nn.GroupNorm(config.norm_groups, channels_in)
        self.up = nn.Conv2d(channels_in, channels_out * factor**2, 1)

    def forward(self, x: Tensor, skip: Tensor, time: Tensor, orders: VisitOrders) -> Tensor:
        # The sum of two convolutions, which needs no concatenated copy.
        of_x, of_skip = self.fuse.weight.chunk(2, dim=1)
        x = F.conv2d(x, of_x, self.fuse.bias).add_(F.conv2d(skip, of_skip))
        x = self.layers(x, time, orders)
        return F.pixel_shuffle(self.up(self.norm(x)), self.factor)


class ImageFusion(nn.Module):
    """The skip at the image's own resolution (`image_skip`): features and what goes in, concatenated, a 3 x 3
    convolution back to C, and a ResNet block that sees the time: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        self.fuse = nn.Conv2d(channels + config.input_channels, channels, 3, padding=1)
        self.block = ResNetBlock(channels, config.time_dim, config.norm_groups)

    def forward(self, features: Tensor, image: Tensor, time: Tensor) -> Tensor:
        # By the parts of the weight: a copy with one channel more takes three quarters more time to convolve.
        of_features, of_image = self.fuse.weight.split([features.shape[1], image.shape[1]], dim=1)
        fused = F.conv2d(features, of_features, self.fuse.bias, padding=1)
        y: Tensor = self.block(fused.add_(F.conv2d(image, of_image, padding=1)), time)
        return y
