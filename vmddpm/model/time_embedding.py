"""The diffusion step as a vector (paper III-B: "vectorized embedding of time information")."""

import math

import torch
from torch import Tensor, nn


def sinusoids(t: Tensor, dim: int) -> Tensor:
    """sin and cos of t at dim / 2 geometrically spaced frequencies from 1 down to almost 1e-4 (Vaswani et
    al., 2017).

    Args:
        t: (B,) integer or real steps.
        dim: even.

    Returns:
        float32 (B, dim), sines first.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.float()[:, None] * torch.exp(-math.log(10_000) * exponents)  # (B, dim / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class TimeEmbedding(nn.Module):
    """Sinusoids through a two-layer perceptron. The last SiLU is applied here once instead of in every layer that uses
    the embedding."""

    def __init__(self, sinusoid_dim: int, dim: int) -> None:
        super().__init__()
        self.sinusoid_dim = sinusoid_dim
        self.mlp = nn.Sequential(nn.Linear(sinusoid_dim, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())

    def forward(self, t: Tensor, class_embedding: Tensor | None = None) -> Tensor:
        """t (B,) -> (B, dim) in the weights' dtype; `class_embedding` (B, dim) is added before the last SiLU."""
        dtype = next(self.mlp.parameters()).dtype
        time = sinusoids(t, self.sinusoid_dim).to(dtype)
        *before, last = self.mlp
        for layer in before:
            time = layer(time)
        embedded: Tensor = last(time if class_embedding is None else time + class_embedding)
        return embedded
