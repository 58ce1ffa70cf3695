"""The Cross-Scan Module: S6 along routes over the feature map, four by default (paper III-D; SS2D of VMamba)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vmddpm.model.config import ModelConfig
from vmddpm.model.dimensions import convolution
from vmddpm.model.gated_projection import gated_projection
from vmddpm_kernels import cross_selective_scan
from vmddpm_kernels.linear import linear
from vmddpm_kernels.modules import Linear

DT_MIN, DT_MAX = 1e-3, 1e-1  # Mamba's range of initial step sizes


class CSM(nn.Module):
    """Norm, expand to a value and a gate, depthwise convolution of side 3, scan, S6 and merge, norm, gate, project.

    Each route has its own S6 weights: x_proj (K, R + 2N, D), dt_proj (K, D, R), dt_bias, D (K, D), A_log
    (K, D, N), with K routes of `config.scans`, D = expand * channels, N = d_state and R = dt_rank.
    """

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        inner, routes = config.expand * channels, config.route_count
        self.rank, self.states = config.rank(channels), config.d_state
        self.discretization = config.discretization
        self.norm = nn.LayerNorm(channels)
        # Two projections instead of one that is split in half, so that the convolution reads dense memory.
        self.value = Linear(channels, inner, bias=False)
        self.gate = Linear(channels, inner, bias=False)
        self.conv = convolution(config.spatial_dims, inner, inner, 3, padding=1, groups=inner)
        self.x_proj = nn.Parameter(torch.empty(routes, self.rank + 2 * self.states, inner))
        self.dt_proj = nn.Parameter(torch.empty(routes, inner, self.rank))
        self.dt_bias = nn.Parameter(torch.empty(routes, inner))
        self.A_log = nn.Parameter(torch.empty(routes, inner, self.states))
        self.D = nn.Parameter(torch.ones(routes, inner))
        self.norm_out = nn.LayerNorm(inner)
        self.out = Linear(inner, channels, bias=False)
        self._init_s6()

    @torch.no_grad()
    def _init_s6(self) -> None:
        """The initial values of Mamba (arXiv 2312.00752, section 3.6): A = -(1 .. N), softplus(dt_bias)
        log-uniform."""
        nn.init.uniform_(self.x_proj, -(self.x_proj.shape[2] ** -0.5), self.x_proj.shape[2] ** -0.5)
        nn.init.uniform_(self.dt_proj, -(self.rank**-0.5), self.rank**-0.5)
        dt = torch.empty_like(self.dt_bias).uniform_(math.log(DT_MIN), math.log(DT_MAX)).exp()
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
        self.A_log.copy_(torch.arange(1, self.states + 1).log().expand_as(self.A_log))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """x (B, C, H, W) in channels_last memory, table (K, H * W) of visit orders -> (B, C, H, W); for volumes
        (B, C, D, H, W) and (K, D * H * W)."""
        tokens = self.norm(x.movedim(1, -1))                                      # (B, H, W, C)
        value = self.conv(self.value(tokens).movedim(-1, 1))                      # (B, D, H, W)
        value = F.silu(value).movedim(1, -1).flatten(1, -2)                       # (B, L, D)
        gate = self.gate(tokens).flatten(1, -2)                                   # (B, L, D)
        y = gated_projection(self.s6(value, table), gate, self.norm_out, self.out)    # (B, L, C)
        return torch.unflatten(y, 1, x.shape[2:]).movedim(-1, 1)                  # (B, C, H, W)

    # Paper Eq. 5-6 with input-dependent delta, B and C (S6), on the sequences of section III-D
    def s6(self, x: Tensor, table: Tensor) -> Tensor:
        """Scan expansion, S6 and scan merge: x (B, L, D) -> (B, L, D).

        The projections act on single pixels, so they commute with every visit order: they run once, in
        pixel order.
        """
        projected = linear(x, self.x_proj.flatten(0, 1)).unflatten(2, (len(self.x_proj), -1))  # (B, L, K, R + 2N)
        # Split before the transpose, so that the gradients are concatenated in the memory order of the projection.
        parts = projected.split([self.rank, self.states, self.states], dim=3)
        low_rank, B, C = (part.transpose(1, 2) for part in parts)                        # (B, K, L, .)
        return cross_selective_scan(
            x, low_rank, -self.A_log.exp(), B, C, self.D, self.dt_bias, table, dt_proj=self.dt_proj,
            delta_softplus=True, discretization=self.discretization,
        )
