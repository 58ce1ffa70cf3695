"""The sizes of a scan, its inputs, and the interface of an implementation."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import vmddpm_kernels as vk

ROUTES, VOLUME_ROUTES = 4, 6
FORWARD, BOTH = "forward", "forward_backward"


@dataclass(frozen=True)
class Case:
    """An image (height > 0) along four routes, a volume (depth > 0) along six, or a sequence (height 0, its length in
    `width`)."""

    batch: int
    height: int
    width: int
    channels: int
    states: int
    dtype: torch.dtype = torch.float32
    depth: int = 0

    @property
    def name(self) -> str:
        kind = f"scan {self.width}" if not self.height else f"image {self.height}x{self.width}"
        kind = f"volume {self.depth}x{self.height}x{self.width}" if self.depth else kind
        return f"{kind} B{self.batch} D{self.channels} N{self.states} {str(self.dtype).removeprefix('torch.')}"

    @property
    def length(self) -> int:
        return max(1, self.depth) * max(1, self.height) * self.width

    @property
    def size(self) -> tuple[int, ...]:
        """The size of the image or volume, as `routes` takes it."""
        return (self.depth, self.height, self.width) if self.depth else (self.height, self.width)

    @property
    def routes(self) -> int:
        return VOLUME_ROUTES if self.depth else ROUTES if self.height else 1

    @property
    def elements(self) -> int:
        """The number of (batch, route, channel, step); each costs `states` steps of the recurrence."""
        return self.batch * self.routes * self.length * self.channels

    @property
    def exponentials(self) -> int:
        """Exponentials of a forward scan: one for each step and state, and one for the softplus."""
        return self.elements * (self.states + 1)

    @property
    def least_bytes(self) -> int:
        """Bytes of a forward scan that reads each input once and writes y once."""
        a_pixel = self.channels * (2 + self.routes) + 2 * self.routes * self.states
        return self.batch * self.length * a_pixel * self.dtype.itemsize

    @property
    def least_backward_bytes(self) -> int:
        """Bytes of a backward scan that reads each input and dy once and writes each gradient once."""
        a_pixel = self.channels * (3 + 2 * self.routes) + 4 * self.routes * self.states
        return self.batch * self.length * a_pixel * self.dtype.itemsize

    def tiny(self) -> "Case":
        """A case small enough for a quick check; odd sizes stay odd."""
        sides = [name for name in ("depth", "height", "width") if getattr(self, name)]
        small = {name: min(getattr(self, name), 6 + getattr(self, name) % 2) for name in sides}
        return replace(self, batch=2, channels=64, **small)


@dataclass(frozen=True)
class Problem:
    """Random inputs of `cross_selective_scan` for a case, and a gradient of its result."""

    case: Case
    x: Tensor                                                                   # (B, L, D)
    delta: Tensor                                                               # (B, K, L, D)
    A: Tensor                                                                   # (K, D, N)
    B: Tensor                                                                   # (B, K, L, N)
    C: Tensor                                                                   # (B, K, L, N)
    D: Tensor                                                                   # (K, D)
    bias: Tensor                                                                # (K, D)
    dy: Tensor                                                                  # (B, L, D)

    @classmethod
    def draw(cls, case: Case, device: str, seed: int) -> "Problem":
        g = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g, device=device).to(case.dtype)

        batch, K, length, dim, states = case.batch, case.routes, case.length, case.channels, case.states
        return cls(
            case,
            x=normal(batch, length, dim),
            delta=normal(batch, K, length, dim) - 3,  # steps of about 0.05 after softplus
            A=-torch.arange(1.0, states + 1, device=device).expand(K, dim, states).contiguous(),
            B=normal(batch, K, length, states),
            C=normal(batch, K, length, states),
            D=torch.rand(K, dim, generator=g, device=device) + 0.5,
            bias=torch.rand(K, dim, generator=g, device=device) / 10,
            dy=normal(batch, length, dim),
        )

    @cached_property
    def tensors(self) -> list[Tensor]:
        return [self.x, self.delta, self.A, self.B, self.C, self.D, self.bias]

    @cached_property
    def table(self) -> Tensor:
        return vk.routes(*self.case.size, device=self.x.device)

    @cached_property
    def shuffled_table(self) -> Tensor:
        order = vk.patch_permutation(*self.case.size, seed=0).to(self.x.device)
        return vk.routes(*self.case.size, permutation=order, device=self.x.device)


@dataclass(frozen=True)
class Implementation:
    """Inputs in the layout of an implementation, and the function to run on them. `standard` converts its (B, L, D)
    results to our layout; None if the implementation computes something else."""

    leaves: list[Tensor]
    run: Callable[..., Tensor]
    dy: Tensor
    standard: Callable[[Tensor], Tensor] | None

    def call(self, direction: str) -> Any:
        if direction == FORWARD:
            with torch.no_grad():
                return self.run(*self.leaves)
        y = self.run(*self.leaves)
        # In a scan of a single step the result may not depend on A.
        return y, *torch.autograd.grad(y, self.leaves, self.dy, allow_unused=True, materialize_grads=True)


def relative_difference(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return ((a - b).abs().sum() / b.abs().sum().clamp_min(1e-300)).item()


def difference(baseline: Implementation, ours: Implementation) -> dict[str, float]:
    """How far the baseline's y, dx and dA are from ours, which shows whether both compute the same."""
    y, dx, _, dA, *_ = ours.call(BOTH)
    their_y, their_dx, _, their_dA, *_ = baseline.call(BOTH)
    return {
        "y": relative_difference(baseline.standard(their_y), ours.standard(y)),
        "dx": relative_difference(baseline.standard(their_dx), ours.standard(dx)),
        "dA": relative_difference(their_dA.flatten(), dA.flatten()),
    }
