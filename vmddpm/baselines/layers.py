"""Residual blocks with spectral normalisation, and self-attention, shared by SAGAN and U-Net GAN."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize


def normalised(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """The layer with its weight divided by its largest singular value (Miyato et al., 2018), with one power iteration
    per forward pass in train mode. Weights start orthogonal, so the iteration starts close to convergence."""
    nn.init.orthogonal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return parametrizations.spectral_norm(layer)


def convolution(inputs: int, outputs: int, kernel: int = 3, bias: bool = True) -> nn.Module:
    return normalised(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias))


def double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


class UpBlock(nn.Module):
    """Twice the size: norm, ReLU, upsampling, 3 x 3, norm, ReLU, 3 x 3, and a 1 x 1 shortcut.

    Args:
        norm: makes a normalisation layer of a given width, which is called with the features and the latent.
    """

    def __init__(self, inputs: int, outputs: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(inputs), norm(outputs)
        self.conv1, self.conv2 = convolution(inputs, outputs), convolution(outputs, outputs)
        self.shortcut = convolution(inputs, outputs, 1)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        h = self.conv1(double(F.relu(self.norm1(x, z))))
        h = self.conv2(F.relu(self.norm2(h, z)))
        y: Tensor = h + self.shortcut(double(x))
        return y


class DownBlock(nn.Module):
    """Half the size: ReLU, 3 x 3, ReLU, 3 x 3, average, and a 1 x 1 shortcut.

    Args:
        first: the input is the image: there is no ReLU before it, and its shortcut is averaged before the 1 x 1.
        downsample: False keeps the size; if the width is kept too, there is no shortcut convolution.
    """

    def __init__(self, inputs: int, outputs: int, *, first: bool = False, downsample: bool = True) -> None:
        super().__init__()
        self.first, self.downsample = first, downsample
        self.conv1, self.conv2 = convolution(inputs, outputs), convolution(outputs, outputs)
        self.shortcut = convolution(inputs, outputs, 1) if downsample or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if not self.downsample:
            x = self.shortcut(x)
            return h + x
        x = self.shortcut(F.avg_pool2d(x, 2)) if self.first else F.avg_pool2d(self.shortcut(x), 2)
        return F.avg_pool2d(h, 2) + x


class SelfAttention(nn.Module):
    """x + gamma * attention of every pixel to all pixels (SAGAN, Eq. 1 to 3); gamma starts at 0.

    Keys and values are halved in size, as in the released code.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow, half = max(width // 8, 1), max(width // 2, 1)
        self.query, self.key = (convolution(width, narrow, 1, bias=False) for _ in range(2))
        self.value, self.out = convolution(width, half, 1, bias=False), convolution(half, width, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query = rearrange(self.query(x), "b c h w -> b c (h w)")  # (B, C / 8, L)
        key = rearrange(F.max_pool2d(self.key(x), 2), "b c h w -> b c (h w)")  # (B, C / 8, L / 4)
        value = rearrange(F.max_pool2d(self.value(x), 2), "b c h w -> b c (h w)")  # (B, C / 2, L / 4)
        weights = (query.transpose(1, 2) @ key).softmax(-1)  # (B, L, L / 4)
        gathered = value @ weights.transpose(1, 2)  # (B, C / 2, L)
        y: Tensor = x + self.gamma * self.out(rearrange(gathered, "b c (h w) -> b c h w", h=x.shape[2]))
        return y


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation by the statistics of the images of all processes; torch's SyncBatchNorm runs only on GPUs. In
    one process it is torch's own."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        h = x.double()  # as torch sums on a CPU
        total = _sum_over_processes(torch.cat([h.sum((0, 2, 3)), h.new_tensor([h.numel() // h.shape[1]])]))
        mean, count = total[:-1] / total[-1], total[-1].detach()
        centred = h - mean[:, None, None]
        variance = _sum_over_processes(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            for running, value in ((self.running_mean, mean), (self.running_var, variance * (count / (count - 1)))):
                running.copy_(running.double().lerp(value, self.momentum))
        y = centred * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            y = y * self.weight[:, None, None] + self.bias[:, None, None]
        return y.to(x.dtype)


def _sum_over_processes(x: Tensor) -> Tensor:
    total: Tensor = _SumOverProcesses.apply(x)  # type: ignore[no-untyped-call]
    return total


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes, each of which differentiates its part of one loss."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class PlainNorm(BatchNorm):
    """Batch normalisation that ignores the latent."""

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        return super().forward(x)


class ModulatedNorm(nn.Module):
    """Batch normalisation whose scale and shift are functions of the latent (Chen et al., 2019, self-modulation)."""

    def __init__(self, width: int, latent_dim: int) -> None:
        super().__init__()
        self.norm = BatchNorm(width, affine=False)
        self.scale, self.shift = (
            nn.Sequential(nn.Linear(latent_dim, latent_dim), nn.ReLU(), nn.Linear(latent_dim, width, bias=False))
            for _ in range(2)
        )

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        scale, shift = self.scale(z)[:, :, None, None], self.shift(z)[:, :, None, None]
        y: Tensor = self.norm(x) * (1 + scale) + shift
        return y


class NoNorm(nn.Module):
    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        return x


@torch.no_grad()
def follow_spectral_norms(network: nn.Module) -> None:
    """One power iteration for weights that change without forward passes in train mode, such as averaged weights."""
    for module in network.modules():
        if parametrize.is_parametrized(module, "weight"):
            norms = module.get_submodule("parametrizations")
            norms.train()
            module.weight  # noqa: B018 - reading it runs an iteration
            norms.eval()
