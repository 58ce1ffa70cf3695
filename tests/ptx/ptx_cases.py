"""Random problems for kernels that run from their PTX: what is computed, and what it is compared with."""

import random
from dataclasses import dataclass

import torch
from oracle import scan_loop
from test_scan_accuracy import image_problem

import vmddpm_kernels as vk

STATES = (1, 2, 3, 4, 5, 8, 16, 17, 33, 64)
LENGTHS = (1, 2, 15, 16, 17, 31, 32, 33, 48, 64, 65, 77, 100)
CHANNELS = (1, 5, 8, 31, 32, 33, 40, 64, 65, 96)
RESULTS = ("y", "last_state", "dx", "ddelta", "dA", "dB", "dC", "dD", "ddelta_bias", "dinitial_state")


@dataclass(frozen=True)
class Case:
    """A scan of images along summed routes or of sequences in groups, and how it is launched."""

    sizes: tuple[int, int, int, int, int]  # B, K, L, D, N
    dtype: torch.dtype
    zoh: bool
    softplus: bool
    summed: bool
    table: bool
    channel_last: bool
    offset: bool  # tensors begin and have rows where no 16 bytes do
    multiprocessors: int
    order: str
    seed: int

    @classmethod
    def random(cls, seed: int, dtype: torch.dtype, zoh: bool, states: tuple[int, ...] = STATES) -> "Case":
        r = random.Random(f"{seed} {dtype} {zoh}")
        N = r.choice(states)
        L = r.choice(LENGTHS) if N <= 16 else r.choice(LENGTHS[:9])
        sizes = r.choice((1, 1, 2, 3)), r.choice((1, 2, 4)), L, r.choice(CHANNELS), N
        order = r.choice(("forward", "reverse", f"random:{seed}"))
        flags = [*(r.random() < 0.5 for _ in range(3)), r.random() < 0.25]
        return cls(sizes, dtype, zoh, r.random() < 0.75, *flags, r.choice((0, 132)), order, seed)

    def tensors(self) -> list[torch.Tensor]:
        x, delta, *rest = image_problem(*self.sizes, self.dtype, self.seed)
        if not self.summed:
            generator = torch.Generator().manual_seed(self.seed)
            x = torch.randn(delta.shape, generator=generator, dtype=torch.float64).to(self.dtype)
        if not self.softplus:  # a step size is positive
            delta, rest[4] = delta.abs() * 0.3, rest[4].abs() * 0.3
        return [x, delta, *rest]

    def _table(self) -> torch.Tensor | None:
        _, K, L, _, _ = self.sizes
        generator = torch.Generator().manual_seed(self.seed)
        rows = [torch.randperm(L, generator=generator) for _ in range(K)]
        return torch.stack(rows).int() if self.table else None

    def operator(self, backend: str, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        options = {
            "delta_softplus": self.softplus, "discretization": "zoh" if self.zoh else "mamba",
            "return_last_state": True, "backend": backend,
        }  # fmt: skip
        x, delta, A, B, C, D, bias, h0 = tensors
        K = self.sizes[1]
        x, delta, B, C = (_offset(t) if self.offset else t for t in (x, delta, B, C))
        if self.summed:
            if not self.channel_last:
                x, delta = (t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in (x, delta))
            return vk.cross_selective_scan(x, delta, A, B, C, D, bias, self._table(), initial_state=h0, **options)

        def sequences(t: torch.Tensor) -> torch.Tensor:  # (B, K, L, C) -> (B, L, K C) or (B, K C, L)
            t = t.transpose(1, 2).flatten(2)
            return t if self.channel_last else t.transpose(1, 2).contiguous()

        B, C = ((t.transpose(1, 2) if self.channel_last else t.transpose(2, 3).contiguous()) for t in (B, C))
        out, last = vk.selective_scan(
            sequences(x), sequences(delta), A.flatten(0, 1), B, C, D.flatten(), delta_bias=bias.flatten(),
            initial_state=h0.flatten(1, 2), channel_last=self.channel_last, **options,
        )  # fmt: skip
        out = out if self.channel_last else out.transpose(1, 2)
        return out.unflatten(2, (K, -1)).transpose(1, 2), last.unflatten(1, (K, -1))

    def loop(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        table = self._table() if self.summed else None
        return scan_loop(*tensors, table=table, softplus=self.softplus, zoh=self.zoh, merge=self.summed)


def _offset(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, where each row of the last axis has an element before it."""
    return torch.cat([tensor[..., :1], tensor], -1)[..., 1:]
