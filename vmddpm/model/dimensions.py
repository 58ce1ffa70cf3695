"""Operations that depend on the number of spatial axes: 2 for an image (H, W), 3 for a volume (D, H, W)."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vmddpm_kernels.linear import linear

# The options with which a convolution of side 1 is a matrix product.
PER_TOKEN = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}


class Conv3d(nn.Conv3d):
    """A convolution over volumes, whose gradients with zero padding are right in bfloat16 too, see `_conv3d`."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C_in, D, H, W) -> (B, C_out, D', H', W')."""
        if self.padding_mode != "zeros":
            return super().forward(x)
        options = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        return _conv3d(x, self.weight, self.bias, **options)


class Pointwise3d(nn.Conv3d):
    """A convolution of side 1 over volumes, computed as a matrix product of tokens and weights: on one thread torch's
    own is slow, and its result is channels-first."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C_in, D, H, W) -> (B, C_out, D, H, W)."""
        return _convolve(x, self.weight, self.bias)


def convolution(axes: int, inputs: int, outputs: int, side: int, **options: Any) -> nn.Conv2d | nn.Conv3d:
    """A convolution with a kernel of this side over `axes` axes, with the options of `torch.nn.Conv2d`."""
    if axes == 2:
        return nn.Conv2d(inputs, outputs, side, **options)
    per_token = side == 1 and all(options.get(name, value) == value for name, value in PER_TOKEN.items())
    return (Pointwise3d if per_token else Conv3d)(inputs, outputs, side, **options)


def channels_last(axes: int) -> torch.memory_format:
    """The channels-last memory format for this number of axes."""
    return torch.channels_last_3d if axes == 3 else torch.channels_last


def convolve_parts(convolution: nn.Conv2d | nn.Conv3d, *parts: Tensor) -> Tensor:
    """The convolution of the parts, concatenated along the channels, computed as the sum of their convolutions: the
    concatenation takes more time than it saves."""
    first, *other_weights = convolution.weight.split([part.shape[1] for part in parts], dim=1)
    padding = int(convolution.padding[0])
    total = _convolve(parts[0], first, convolution.bias, padding)
    for part, weight in zip(parts[1:], other_weights):
        total = total.add_(_convolve(part, weight, None, padding))
    return total


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int = 0) -> Tensor:
    if x.dim() == 4:
        return F.conv2d(x, weight, bias, padding=padding)
    if weight[0, 0].numel() == 1:
        return linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)
    return _conv3d(x, weight, bias, padding=padding)


def _conv3d(x: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
    """`F.conv3d`, on a CPU in float32 instead of bfloat16 if the volume has fewer planes than the kernel: there oneDNN,
    as of torch 2.13, computes a random gradient of the weight (findings/shallow_volume_in_bf16.sh)."""
    if not (1 < x.shape[2] < weight.shape[2] and _in_bfloat16(x)):
        return F.conv3d(x, weight, bias, **options)
    with torch.autocast("cpu", enabled=False):
        exact = F.conv3d(x.float(), weight.float(), None if bias is None else bias.float(), **options)
        return exact.to(torch.bfloat16)


def _in_bfloat16(x: Tensor) -> bool:
    """Whether a convolution of x runs in bfloat16 on a CPU, by the dtype of x or by autocast."""
    if not x.is_cpu:
        return False
    if torch.is_autocast_enabled("cpu") and x.dtype is not torch.float64:  # autocast leaves float64 as it is
        return torch.get_autocast_dtype("cpu") is torch.bfloat16
    return x.dtype is torch.bfloat16


def convolve_up(convolution: nn.Conv2d | nn.Conv3d, x: Tensor, factor: int) -> Tensor:
    """A convolution of side 1, whose result at each token becomes a block of factor pixels along each axis:
    (B, C_in, H, W) -> (B, C, H * factor, W * factor), and likewise for volumes.

    The convolution's channels are (C, rows, columns), as in `torch.nn.functional.pixel_shuffle`, or for volumes (C,
    planes, rows, columns). It is computed with the channels of each pixel side by side, so that whole rows are copied.
    """
    axes = x.dim() - 2
    assert convolution.bias is not None
    weight, bias = (
        t.unflatten(0, (-1, factor**axes)).transpose(0, 1).flatten(0, 1) for t in (convolution.weight, convolution.bias)
    )
    tokens = _convolve(x, weight, bias).movedim(1, -1)
    pattern = "b h w (p q c) -> b (h p) (w q) c" if axes == 2 else "b d h w (r p q c) -> b (d r) (h p) (w q) c"
    sides = dict.fromkeys("pq" if axes == 2 else "pqr", factor)
    pixels: Tensor = rearrange(tokens, pattern, **sides)
    return pixels.movedim(-1, 1)
