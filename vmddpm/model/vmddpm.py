"""VM-DDPM, the noise predictor (paper section III-B and Fig. 1a)."""

import torch
from torch import Tensor, nn

from vmddpm.errors import InputError
from vmddpm.model.config import ModelConfig
from vmddpm.model.dimensions import channels_last, convolution
from vmddpm.model.pretrained import Pretrained
from vmddpm.model.regeneration import OrderKey, VisitOrders, order_key_tensor
from vmddpm.model.resnet_block import GroupNormSiLU
from vmddpm.model.stages import DecoderStage, EncoderStage, ImageFusion, SSLayers
from vmddpm.model.time_embedding import TimeEmbedding


class VMDDPM(
    nn.Module,
    Pretrained,
    pipeline_tag="unconditional-image-generation",
    tags=["diffusion", "mamba", "medical-imaging"],
):
    """Encoder, bottleneck of one SSLayer and decoder, joined by skips at every resolution.

    `save_pretrained` writes model.safetensors and config.json; `from_pretrained` reads them back. Weights and feature
    maps are in channels_last memory, so the tokens of the scan are views of them. With `spatial_dims` 3 the model
    processes volumes (D, H, W) instead of images.

    Args:
        config: the architecture.

    Attributes:
        recompute: activation checkpointing in training: save only the inputs of each SSLayer and compute the rest again
            in the backward pass, for the same gradients with less memory and one more forward pass.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        widths, factors = config.widths, config.sampling
        inputs = (config.input_channels, *widths[:-1])
        outputs = (widths[0], *widths[:-1])  # the last stage keeps C, which the projection maps to the image
        stages = range(len(widths))
        self.time = TimeEmbedding(config.base_channels, config.time_dim)
        self.encoder = nn.ModuleList(
            EncoderStage(inputs[i], widths[i], factors[i], config, normalise=i > 0) for i in stages
        )
        self.bottleneck = SSLayers(1, widths[-1], config)
        self.decoder = nn.ModuleList(
            DecoderStage(widths[i], outputs[i], factors[i], config) for i in reversed(stages)
        )
        self.image_fusion = ImageFusion(widths[0], config) if config.image_skip else None
        last = convolution(config.spatial_dims, widths[0], config.image_channels, 3, padding=1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.projection = nn.Sequential(GroupNormSiLU(config.norm_groups, widths[0]), nn.Identity(), last)
        self.recompute = False
        # No bias, so that the embedding of no class is 0, as in the model without a condition.
        self.class_embedding = nn.Linear(len(config.classes), config.time_dim, bias=False) if config.classes else None
        self.to(memory_format=channels_last(config.spatial_dims))  # type: ignore[call-overload]  # not in torch's older types

    def forward(
        self, x: Tensor, t: Tensor, order_key: OrderKey | None = None, *, labels: Tensor | None = None,
        condition_image: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The noise in x (or the velocity, as trained).

        Args:
            x: (B, image_channels, H, W) noisy images, or (B, image_channels, D, H, W) noisy volumes with `spatial_dims`
                3; every side a multiple of `config.size_multiple`.
            t: (B,) integer or real diffusion steps.
            order_key: (seed, step) of Sequence Regeneration: equal keys give equal visit orders. Each is an integer, or
                an integer tensor of one element on x's device, which a CUDA graph reads again at each replay. None
                draws a key from torch's global generator of that device.
            labels: (B, number of `config.classes`), 1 for each requested class and 0 for the others. A row of zeros
                requests no class, as does None.
            condition_image: (B, condition_channels, H, W) in [-1, 1], the image that x is to match. Zeros mean no
                condition, as does None.

        Returns:
            A tensor of x's shape.

        Raises:
            InputError: if the shape of an argument does not fit, or order_key is on another device.

        Example:
            >>> model = VMDDPM(ModelConfig(base_channels=32, classes=("healthy", "ill")))
            >>> noise = model(torch.randn(1, 1, 32, 32), torch.tensor([9]), labels=torch.tensor([[0.0, 1.0]]))
        """
        x, time, orders = self._prepare(x, t, order_key, labels, condition_image)
        h, skips = self._encode(x, time, orders)
        h = self.bottleneck(h, time, orders)
        for stage in self.decoder:
            h = stage(h, skips.pop(), time, orders)
        if self.image_fusion is not None:
            h = self.image_fusion(h, x, time)
        noise: Tensor = self.projection(h)
        return noise

    def encode(self, x: Tensor, t: Tensor, order_key: OrderKey | None = None) -> Tensor:
        """The encoder's output, (B, 8C, H / 32, W / 32) in the paper's configuration, without a condition. Arguments as
        in `forward`."""
        return self._encode(*self._prepare(x, t, order_key, None, None))[0]

    def _encode(self, x: Tensor, time: Tensor, orders: VisitOrders) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for stage in self.encoder:
            x = stage(x, time, orders)
            skips.append(x)
        return x, skips

    def _prepare(
        self, x: Tensor, t: Tensor, order_key: OrderKey | None, labels: Tensor | None, image: Tensor | None
    ) -> tuple[Tensor, Tensor, VisitOrders]:
        """The input of the first stage, the embedding of time and classes, and the visit orders."""
        channels, multiple, axes = self.config.image_channels, self.config.size_multiple, self.config.spatial_dims
        kind, names = ("images", "H, W") if axes == 2 else ("volumes", "D, H, W")
        if x.dim() != 2 + axes or x.shape[1] != channels:
            raise InputError(f"x must have shape (B, {channels}, {names}), got {tuple(x.shape)}")
        if min(x.shape[2:]) < 1 or any(extent % multiple for extent in x.shape[2:]):
            sides = "height and width" if axes == 2 else "depth, height and width"
            raise InputError(
                f"{sides} must be multiples of {multiple} for sampling {self.config.sampling}, got "
                f"{' x '.join(map(str, x.shape[2:]))}; pad or resize the {kind}, or choose a smaller sampling"
            )
        if t.shape != x.shape[:1]:
            raise InputError(f"t must have shape (B,) = ({x.shape[0]},), got {tuple(t.shape)}")
        shuffled = self.config.regeneration and (self.training or self.config.regeneration_at_sampling)
        key = order_key_tensor(order_key, x.device) if shuffled else None
        embedded = None if labels is None else self._embed_classes(labels, len(x))
        if self.config.condition_channels or image is not None:
            x = torch.cat([x, self._condition_channels(x, image)], dim=1)
        return x, self.time(t, embedded), VisitOrders(self.config, key, x.device, self.recompute and self.training)

    def _embed_classes(self, labels: Tensor, batch: int) -> Tensor:
        shape = batch, len(self.config.classes)
        if self.class_embedding is None or labels.shape != shape:
            raise InputError(
                f"labels have shape {tuple(labels.shape)}; they must be (B, classes) = {shape}" if self.class_embedding
                else "labels are given, but this model has no classes; leave them out"
            )  # fmt: skip
        embedded: Tensor = self.class_embedding(labels.to(self.class_embedding.weight.dtype))
        return embedded

    def _condition_channels(self, x: Tensor, image: Tensor | None) -> Tensor:
        shape = len(x), self.config.condition_channels, *x.shape[2:]
        if image is None:
            return x.new_zeros(shape)
        if image.shape != shape:
            raise InputError(
                f"condition_image has shape {tuple(image.shape)}; it must be (B, condition_channels, H, W) = {shape}"
                if shape[1] else "condition_image is given, but this model takes none; leave it out"
            )  # fmt: skip
        return image.to(x.dtype)
