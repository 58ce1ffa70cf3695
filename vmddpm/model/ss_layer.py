"""The layer every stage is built from: a ResNet block and a multi-level state-space block."""

from torch import Tensor, nn

from vmddpm.model.config import ModelConfig
from vmddpm.model.csm import CSM
from vmddpm.model.resnet_block import ResNetBlock, TimeCNN


# Paper section III-C
class MSSBlock(nn.Module):
    """u = x + CSM(x), y = u + CNN(u, t).

    "We inserted multiple external skip connections around the CSM module and CNN module": unrolled, the two
    skips are the paper's four paths, (a) x, (b) the CNN alone, (c) the CSM alone, (d) the CNN after the
    CSM.
    """

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        self.csm = CSM(channels, config)
        self.cnn = TimeCNN(channels, config.time_dim, config.norm_groups, config.spatial_dims)

    def forward(self, x: Tensor, time: Tensor, table: Tensor) -> Tensor:
        """x (B, C, H, W), time (B, time_dim), table (K, H * W) -> (B, C, H, W)."""
        u: Tensor = self.csm(x, table).add_(x)
        y: Tensor = self.cnn(u, time).add_(u)
        return y


# Paper section III-B
class SSLayer(nn.Module):
    """x + MSSBlock(ResNetBlock(x, t), t).

    "Each SSLayer consists of a ResNet block that supports time embedding and a MSSBlock. At the same time,
    residual connections and feature fusion within the layer are performed in the output connection": read
    as a sum.
    """

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        self.resnet = ResNetBlock(channels, config.time_dim, config.norm_groups, config.spatial_dims)
        self.mss = MSSBlock(channels, config)

    def forward(self, x: Tensor, time: Tensor, table: Tensor) -> Tensor:
        """x (B, C, H, W), time (B, time_dim), table (K, H * W) -> (B, C, H, W)."""
        y: Tensor = self.mss(self.resnet(x, time), time, table).add_(x)
        return y
