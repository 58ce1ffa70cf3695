"""Random problems for kernels that run from their PTX: what is computed, and what it is compared with."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from oracle import route_destination, scan_loop
from test_scan_accuracy import image_problem, run

import vmddpm_kernels as vk

STATES = (1, 2, 3, 4, 5, 8, 16, 17, 33, 64)
LENGTHS = (1, 2, 15, 16, 17, 31, 32, 33, 48, 64, 65, 77, 100)
OFFSETS = (0, 1, 2, 4, 8)
CHANNELS = (1, 5, 8, 31, 32, 33, 40, 64, 65, 96)
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# How many random cases the nightly tests run, of each dtype (scans: with and without zoh) and architecture.
SCANS = {"cuda": 50, "triton": 20}
CROSS_SCANS = {"cuda": 120, "triton": 20}
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
    offsets: tuple[int, int, int, int]  # elements before each row of x, delta, B and C
    multiprocessors: int
    order: str
    seed: int
    shared_bytes: int = 227 * 1024
    bare: bool = False  # no D, no bias, no initial state, nobody reads the last state
    gradients: bool = True

    @classmethod
    def random(cls, seed: int, dtype: torch.dtype, zoh: bool, states: tuple[int, ...] = STATES) -> "Case":
        r = random.Random(f"{seed} {dtype} {zoh}")
        N = r.choice(states)
        L = r.choice(LENGTHS) if N <= 16 else r.choice(LENGTHS[:9])
        sizes = r.choice((1, 1, 2, 3)), r.choice((1, 2, 4)), L, r.choice(CHANNELS), N
        order = r.choice(("forward", "reverse", f"random:{seed}"))
        flags = [r.random() < 0.5 for _ in range(3)]
        offsets = tuple(r.choice(OFFSETS) for _ in range(4)) if r.random() < 0.4 else (0, 0, 0, 0)
        multiprocessors, softplus = r.choice((0, 132)), r.random() < 0.75
        bare, gradients = r.random() < 0.2, r.random() < 0.85
        return cls(sizes, dtype, zoh, softplus, *flags, offsets, multiprocessors, order, seed, bare=bare, gradients=gradients)

    def compute(self, backend: str) -> list[torch.Tensor]:
        """By the kernels: the outputs, and the gradients of all inputs."""
        return self._run(self.tensors(), lambda *t: self.operator(backend, *t))

    def exact(self) -> list[torch.Tensor]:
        """The same in float64, by the loop."""
        return self._run([t.double() for t in self.tensors()], self.loop)

    def _run(self, tensors: list[torch.Tensor], function: Callable[..., tuple[torch.Tensor, ...]]) -> list[torch.Tensor]:
        if self.gradients:
            return run(tensors, function)
        with torch.no_grad():
            return list(function(*tensors))

    def names(self) -> list[str]:
        """Of what `compute` and `exact` return."""
        outputs = RESULTS[:1] if self.bare else RESULTS[:2]
        return [*outputs, *(RESULTS[2:] if self.gradients else ())]

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

    def operator(self, backend: str, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        options = {
            "delta_softplus": self.softplus, "discretization": "zoh" if self.zoh else "mamba",
            "return_last_state": not self.bare, "backend": backend,
        }  # fmt: skip
        x, delta, A, B, C, *rest = tensors
        D, bias, h0 = [None] * 3 if self.bare else rest
        K = self.sizes[1]
        if self.summed:
            if not self.channel_last:
                x, delta = (t.transpose(-1, -2).contiguous() for t in (x, delta))
            x, delta, B, C = (_offset(t, by) for t, by in zip((x, delta, B, C), self.offsets))
            if not self.channel_last:
                x, delta = (t.transpose(-1, -2) for t in (x, delta))
            result = vk.cross_selective_scan(x, delta, A, B, C, D, bias, self._table(), initial_state=h0, **options)
            return (result,) if self.bare else result

        def sequences(t: torch.Tensor) -> torch.Tensor:  # (B, K, L, C) -> (B, L, K C) or (B, K C, L)
            t = t.transpose(1, 2).flatten(2)
            return t if self.channel_last else t.transpose(1, 2).contiguous()

        B, C = ((t.transpose(1, 2) if self.channel_last else t.transpose(2, 3).contiguous()) for t in (B, C))
        u, delta = sequences(x), sequences(delta)
        u, delta, B, C = (_offset(t, by) for t, by in zip((u, delta, B, C), self.offsets))
        if not self.bare:
            options["initial_state"] = h0.flatten(1, 2)
        result = vk.selective_scan(
            u, delta, A.flatten(0, 1), B, C, None if self.bare else D.flatten(),
            delta_bias=None if self.bare else bias.flatten(), channel_last=self.channel_last, **options,
        )  # fmt: skip
        out, *last = (result,) if self.bare else result
        out = out if self.channel_last else out.transpose(1, 2)
        return out.unflatten(2, (K, -1)).transpose(1, 2), *(h.unflatten(1, (K, -1)) for h in last)

    def loop(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        table = self._table() if self.summed else None
        given = tensors[:5] if self.bare else tensors
        y, last = scan_loop(*given, table=table, softplus=self.softplus, zoh=self.zoh, merge=self.summed)
        return (y,) if self.bare else (y, last)


def _offset(tensor: torch.Tensor, by: int) -> torch.Tensor:
    """The same values, where each row of the last axis has so many elements before it."""
    return torch.cat([tensor[..., :1].expand(*tensor.shape[:-1], by), tensor], -1)[..., by:] if by else tensor


IMAGES = ((1, 1), (1, 5), (5, 9), (8, 8), (7, 7), (16, 24), (8, 33), (31, 33), (38, 34), (40, 16), (64, 4), (130, 140))
PLANES = (1, 3, 5, 8, 16, 17, 20, 32, 40, 64, 65)


@dataclass(frozen=True)
class CrossCase:
    """A cross scan of images and a cross merge of sequences. Small integers: every sum is exact in every dtype."""

    sizes: tuple[int, int, int, int]  # B, C, H, W
    dtype: torch.dtype
    in_first: bool
    out_first: bool
    one_by_one: bool
    scans: int
    shuffled: bool
    memory: str  # dense, offset (begins at no 16 bytes), gaps (between channels and images) or apart (between elements)
    multiprocessors: int
    shared_bytes: int
    order: str
    seed: int

    @classmethod
    def random(cls, seed: int, dtype: torch.dtype) -> "CrossCase":
        r = random.Random(f"cross {seed} {dtype}")
        height, width = r.choice(IMAGES)
        most = 3 if height * width > 10_000 else 20 if height * width > 500 else 65
        channels = r.choice([c for c in PLANES if c <= most])
        sizes = r.choice((1, 2)), channels, height, width
        flags = [r.random() < 0.5 for _ in range(3)]
        order = r.choice(("forward", "reverse", f"random:{seed}"))
        memory = r.choice(("dense", "dense", "dense", "offset", "gaps", "apart"))
        gpu = r.choice((0, 132)), r.choice((99, 227)) * 1024
        return cls(sizes, dtype, *flags, r.randrange(4), r.random() < 0.4, memory, *gpu, order, seed)

    def compute(self, backend: str) -> list[torch.Tensor]:
        layout = (self.in_first, self.out_first, self.one_by_one, self.scans)
        options = {"permutation": self._permutation(), "backend": backend}
        x, y = self.tensors()
        return [vk.cross_scan(self._arranged(x), *layout, **options), vk.cross_merge(self._arranged(y), *layout, **options)]

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """An image, or one for each route, and four sequences."""
        batch, channels, height, width = self.sizes
        generator = torch.Generator().manual_seed(self.seed)

        def integers(routes: bool, first: bool) -> torch.Tensor:
            shape = (batch, 4, channels, height, width) if routes else (batch, channels, height, width)
            t = torch.randint(-50, 50, shape, generator=generator).to(self.dtype)
            return t if first else t.permute(0, *(range(t.dim() - 2, t.dim())), *range(1, t.dim() - 2)).contiguous()

        return integers(self.one_by_one, self.in_first), integers(True, self.out_first)

    def exact(self) -> list[torch.Tensor]:
        """By the definition of the routes."""
        batch, channels, height, width = self.sizes
        x, y = (t if first else t.movedim((1, 2), (-2, -1)) for t, first in zip(self.tensors(), (self.in_first, self.out_first)))
        x = x if self.one_by_one else x[:, None].expand(-1, 4, -1, -1, -1)
        x, y = x.flatten(3), y.flatten(3)
        places = [
            [route_destination(self.scans, k, h, w, height, width) for h in range(height) for w in range(width)]
            for k in range(4)
        ]
        seen = self._permutation() if self.shuffled else torch.arange(height * width)
        scanned, merged = torch.empty_like(y), torch.empty_like(y)
        for k, places_of in enumerate(torch.tensor(places)):
            scanned[:, k][..., places_of] = x[:, k][..., seen]
            merged[:, k][..., seen] = y[:, k][..., places_of]
        scanned = scanned if self.out_first else scanned.movedim(-1, 1)
        if not self.one_by_one:
            merged = merged.double().sum(1).to(self.dtype)
        return [scanned, merged if self.in_first else merged.movedim(-1, 1)]

    def _permutation(self) -> torch.Tensor | None:
        _, _, height, width = self.sizes
        return vk.patch_permutation(height, width, seed=self.seed) if self.shuffled else None

    def _arranged(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same values elsewhere in memory."""
        if self.memory == "offset":
            return torch.cat([tensor.flatten()[:1], tensor.flatten()])[1:].view(tensor.shape)
        if self.memory == "apart":
            return torch.stack([tensor, torch.full_like(tensor, torch.nan)], -1)[..., 0]
        if self.memory == "gaps":
            first = self.in_first if tensor.dim() == 4 else self.out_first
            pixels = (tensor.dim() - 2, tensor.dim() - 1) if first else (1, 2)
            larger = [size if axis in pixels else size + 3 for axis, size in enumerate(tensor.shape)]
            whole = torch.full(larger, torch.nan, dtype=tensor.dtype)
            inner = whole[tuple(slice(0, n) if a in pixels else slice(1, n + 1) for a, n in enumerate(tensor.shape))]
            return inner.copy_(tensor)
        return tensor
