"""VMamba's SS2D block on the fused operator, trained to remove noise: `python ss2d_block.py --steps 100`.

VMamba scans an image along four routes, runs S6 on each and sums the results. Its code writes the four sequences to
memory; `cross_selective_scan` does all of it in one operator and leaves everything in pixel order.
"""

import argparse
import math

import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vmddpm_kernels import cross_selective_scan, routes


class SS2D(nn.Module):
    """(B, H, W, C) -> (B, H, W, C), with the parameters of VMamba's SS2D (arXiv 2401.10166)."""

    def __init__(self, channels: int, d_state: int = 16, expand: int = 2, n_routes: int = 4) -> None:
        super().__init__()
        inner, rank = expand * channels, math.ceil(channels / 16)
        self.split = [rank, d_state, d_state]
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.x_proj = nn.Parameter(inner**-0.5 * (2 * torch.rand(n_routes, sum(self.split), inner) - 1))
        self.dt_proj = nn.Parameter(rank**-0.5 * (2 * torch.rand(n_routes, inner, rank) - 1))
        step = torch.exp(torch.empty(n_routes, inner).uniform_(math.log(1e-3), math.log(1e-1)))
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # softplus of it is `step`
        self.A_log = nn.Parameter(torch.arange(1, d_state + 1).log().repeat(n_routes, inner, 1))
        self.D = nn.Parameter(torch.ones(n_routes, inner))
        self.norm, self.out_proj = nn.LayerNorm(inner), nn.Linear(inner, channels, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:3]
        x, gate = self.in_proj(image).chunk(2, dim=-1)
        x = F.silu(self.conv(rearrange(x, "b h w d -> b d h w")))
        x = rearrange(x, "b d h w -> b (h w) d")
        # These projections act on single pixels, so they need not be in the order of a route.
        projected = einsum(x, self.x_proj, "b l d, k r d -> b k l r")
        low_rank, B, C = projected.split(self.split, dim=-1)
        table = routes(height, width)               # (4, H * W): rows and columns, forwards and backwards
        # With `dt_proj` the step sizes (B, K, L, D) follow from the factor, and are never in memory.
        y = cross_selective_scan(
            x, low_rank, -self.A_log.exp(), B, C, self.D, self.dt_bias, table, dt_proj=self.dt_proj,
            delta_softplus=True,
        )  # fmt: skip
        y = rearrange(self.norm(y), "b (h w) d -> b h w d", h=height)
        return self.out_proj(y * F.silu(gate))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    steps = parser.parse_args().steps

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 32), SS2D(32), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    for step in range(1, steps + 1):
        centre, radius = 8 + 16 * torch.rand(8, 2, 1, 1), 3 + 5 * torch.rand(8, 1, 1)
        discs = ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < radius**2).float()[..., None]  # (8, 32, 32, 1)
        loss = F.mse_loss(network(discs + 0.5 * torch.randn_like(discs)), discs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (1, steps):
            print(f"step {step}: mean squared error {loss.item():.4f} (of the noise: 0.25)")


if __name__ == "__main__":
    main()
