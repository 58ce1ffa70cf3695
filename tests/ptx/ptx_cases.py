"""Random problems for kernels that run from their PTX, with their computation and reference."""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from oracle import relative_error, route_destination, scan_loop
from test_scan_accuracy import image_problem, run

import vmddpm_kernels as vk
from vmddpm_kernels.ops.cross_scan import cross_merge, cross_scan
from vmddpm_kernels.ops.selective_scan import scan
from vmddpm_kernels.routes import RouteOrder
from vmddpm_kernels.scan_inputs import ScanInputs, scan_options

STATES = (1, 2, 3, 4, 5, 8, 16, 17, 33, 64)
LENGTHS = (1, 2, 15, 16, 17, 31, 32, 33, 48, 65, 77, 100, 150, 200, 300)
OFFSETS = (0, 1, 2, 4, 8)
CHANNELS = (1, 5, 8, 31, 32, 33, 40, 64, 65, 96)
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
OTHER_TYPE = {
    torch.float32: torch.bfloat16, torch.bfloat16: torch.float32, torch.float16: torch.float32,
    torch.float64: torch.float32,
}  # fmt: skip
# Random cases of the nightly tests per dtype (scans: with and without zoh) and architecture.
SCANS = {"cuda": 100, "triton": 20}
CROSS_SCANS = {"cuda": 480, "triton": 40}
RESULTS = ("y", "last_state", "dx", "ddelta", "dA", "dB", "dC", "dD", "ddelta_bias", "dinitial_state")


def far_off(
    case: object, names: list[str], ours: list[torch.Tensor], reference: list[torch.Tensor], exact: list[torch.Tensor]
) -> str:
    """Whether an error is far beyond the accuracy rule, which a case of few values may miss by one cancelling sum."""
    for name, *values in zip(names, ours, reference, exact, strict=True):
        unit = torch.finfo(values[0].dtype).eps * (16 if values[0].dtype == torch.float64 else 1)
        error, other = (relative_error(value, values[2]) for value in values[:2])
        if not error <= (4 if values[0].numel() >= 64 else 32) * max(other, unit):
            return f"{name}: error {error:.2e}, of the reference {other:.2e}: {case}"
    return ""


@dataclass(frozen=True)
class Case:
    """A scan of images along summed routes or of sequences in groups, and its launch options."""

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
    mixed: tuple[bool, bool, bool, bool] = (False, False, False, False)  # whether x, delta, B and C have another type
    bare: bool = False  # no D, bias or initial state, and the last state is unused
    gradients: bool = True
    extreme: bool = False  # some step sizes very large, some very small before softplus

    @classmethod
    def random(cls, seed: int, dtype: torch.dtype, zoh: bool, states: tuple[int, ...] = STATES) -> "Case":
        r = random.Random(f"{seed} {dtype} {zoh}")
        N = r.choice(states)
        L = r.choice(LENGTHS if N <= 4 else LENGTHS[:-2] if N <= 16 else LENGTHS[:9])
        sizes = r.choice((1, 1, 2, 3)), r.choice((1, 2, 4)), L, r.choice(CHANNELS), N
        order = r.choice(("forward", "reverse", f"random:{seed}"))
        flags = [r.random() < 0.5 for _ in range(3)]
        offsets = tuple(r.choice(OFFSETS) for _ in range(4)) if r.random() < 0.4 else (0, 0, 0, 0)
        multiprocessors, softplus = r.choice((0, 1, 4, 16, 132)), r.random() < 0.75
        bare, gradients = r.random() < 0.2, r.random() < 0.85
        mixed = tuple(r.random() < 0.5 for _ in range(4)) if r.random() < 0.3 else (False, False, False, False)
        return cls(sizes, dtype, zoh, softplus, *flags, offsets, multiprocessors, order, seed, mixed=mixed, bare=bare,
                   gradients=gradients)  # fmt: skip

    @classmethod
    def chosen(cls, dtype: torch.dtype, zoh: bool) -> "list[Case]":
        """Cases that random draws seldom give: sequences in segments; steps in whole vectors, with channels in pairs or
        not and states that fill no vector; tensors of two types; a table with segments; step sizes at the limits of
        decay or softplus; and images along four routes, each in blocks of its own or all in one."""
        found = [
            cls((1, 1, length, channels, states), dtype, zoh, True, False, False, channel_last, (0, 0, 0, 0),
                multiprocessors, "forward", states)
            for states, channels in ((1, 33), (4, 33), (16, 33), (1, 40), (3, 40), (5, 40), (13, 40), (20, 40))
            for channel_last in (False, True)
            for length, multiprocessors in ((64, 0), (256, 132))
        ]  # fmt: skip
        in_pairs = [case for case in found if case.sizes[3] == 40]
        mixed = ((True, False, True, False), (False, True, False, True))
        routes = [
            cls((2, 4, 77, channels, states), dtype, zoh, True, True, table, channel_last, (0, 0, 0, 0),
                multiprocessors, order, states)
            for states, channels in ((1, 33), (1, 40), (4, 33), (16, 40), (20, 33))
            for table in (False, True)
            for channel_last in (False, True)
            for multiprocessors, order in ((0, "forward"), (132, "reverse"))
        ]  # fmt: skip
        return [
            *found,
            *(replace(case, extreme=True) for case in in_pairs),
            *(replace(case, summed=True, table=True) for case in in_pairs if case.multiprocessors),
            *(replace(case, mixed=some) for case in found if case.sizes[4] in (1, 16) for some in mixed),
            *routes,
        ]

    def compute(self, backend: str) -> list[torch.Tensor]:
        """The outputs and the gradients of all inputs, by the kernels."""
        return self._run(self.tensors(), lambda *t: self.operator(backend, *t))

    def exact(self) -> list[torch.Tensor]:
        """The same by the float64 loop."""
        return self._run([t.double() for t in self.tensors()], self.loop)

    def _run(
        self, tensors: list[torch.Tensor], function: Callable[..., tuple[torch.Tensor, ...]]
    ) -> list[torch.Tensor]:
        if self.gradients:
            return run(tensors, function)
        with torch.no_grad():
            return list(function(*tensors))

    def wrong(self, ours: list[torch.Tensor], reference: list[torch.Tensor], exact: list[torch.Tensor]) -> str:
        return far_off(self, self.names(), ours, reference, exact)

    def names(self) -> list[str]:
        """Names of the results of `compute` and `exact`."""
        outputs = RESULTS[:1] if self.bare else RESULTS[:2]
        return [*outputs, *(RESULTS[2:] if self.gradients else ())]

    def tensors(self) -> list[torch.Tensor]:
        x, delta, *rest = image_problem(*self.sizes, self.dtype, self.seed)
        if not self.summed:
            generator = torch.Generator().manual_seed(self.seed)
            x = torch.randn(delta.shape, generator=generator, dtype=torch.float64).to(self.dtype)
        if not self.softplus:  # step sizes must be positive
            delta, rest[4] = delta.abs() * 0.3, rest[4].abs() * 0.3
        if self.extreme:
            large = 150.0 if self.dtype == torch.float16 else 900.0  # float16 holds dA up to 65504
            # At each place in a group of four steps, because the compiler repeats the code of a step.
            for step in (4, 9, 14, 19):
                delta[:, :, step::32], delta[:, :, step + 2 :: 32] = large, -large
        A, B, C, *others = rest
        x, delta, B, C = (
            t.to(OTHER_TYPE[self.dtype]) if other else t for t, other in zip((x, delta, B, C), self.mixed)
        )
        return [x, delta, A, B, C, *others]

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
            inputs = ScanInputs(x, delta, A, B, C, D, bias, h0, table=self._table())  # the function needs a table
            y, last = scan(inputs, scan_options(self.softplus, self.zoh, False), backend, last_state=not self.bare)
            return (y,) if self.bare else (y, last)

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
    """The same values, with `by` unused elements before each row of the last axis."""
    return torch.cat([tensor[..., :1].expand(*tensor.shape[:-1], by), tensor], -1)[..., by:] if by else tensor


IMAGES = ((1, 1), (1, 5), (5, 9), (8, 8), (7, 7), (16, 24), (8, 33), (31, 33), (38, 34), (40, 16), (64, 4), (130, 140))
PLANES = (8, 16, 32, 40, 64), (1, 3, 5, 17, 20, 31, 65)  # channels that fill whole half-precision vectors, and others


@dataclass(frozen=True)
class CrossCase:
    """A cross scan of images and a cross merge of sequences. Small integers: every sum is exact in every dtype."""

    sizes: tuple[int, int, int, int, int]  # B, K, C, H, W
    dtype: torch.dtype
    in_first: bool    # images are channel first
    out_first: bool   # sequences are channel first
    one_by_one: bool  # an image for each route
    scans: int
    table: bool       # a table of any routes instead of the regular four of `scans`
    # Memory of the image and the sequences: dense, offset (not 16-byte aligned), gaps (between channels and images), or
    # apart (each element).
    memory: tuple[str, str]
    multiprocessors: int
    shared_bytes: int
    order: str
    seed: int

    @classmethod
    def random(cls, seed: int, dtype: torch.dtype) -> "CrossCase":
        """A case with random sizes; layouts, routes and kinds of memory take turns."""
        r = random.Random(f"cross {seed} {dtype}")
        in_first, out_first, one_by_one = (bool(seed >> bit & 1) for bit in range(3))
        scans, table = seed // 8 % 5 % 4, seed // 8 % 5 == 4
        kinds, whole = ("offset", "gaps", "apart"), seed // 40 % 2 == 0
        memory = [("dense", "dense"), (r.choice(kinds), "dense"), ("dense", r.choice(kinds))][seed // 80 % 3]
        height, width = r.choice(IMAGES)
        most = 3 if height * width > 10_000 else 20 if height * width > 500 else 65
        channels = r.choice([c for c in PLANES[not whole] if c <= most] or [8])
        sizes = r.choice((1, 2)), r.choice((1, 2, 3, 4, 4, 5, 6)) if table else 4, channels, height, width
        gpu = r.choice((0, 132)), r.choice((99, 227)) * 1024
        order = r.choice(("forward", "reverse", f"random:{seed}"))
        return cls(sizes, dtype, in_first, out_first, one_by_one, scans, table, memory, *gpu, order, seed)

    @classmethod
    def chosen(cls, dtype: torch.dtype) -> "list[CrossCase]":
        """Every layout with channels and pixels that fill tiles and vectors and with some that do not, along four
        regular routes or six of a table: the compiler repeats the code of a route four times."""
        return [
            cls((1, 6 if table else 4, *image), dtype, *layout, 0, table, (kind, kind), 132, 227 * 1024, "forward",
                seed)
            for seed, (layout, table, image, kind) in enumerate(itertools.product(
                itertools.product((False, True), repeat=3), (False, True), ((40, 8, 33), (17, 7, 7), (8, 31, 33)),
                ("dense", "gaps"),
            ))
        ]  # fmt: skip

    def compute(self, backend: str) -> list[torch.Tensor]:
        """The sequences of the images and the images of the sequences, by the kernels."""
        image, sequences = self.tensors()
        _, _, _, height, width = self.sizes
        order = RouteOrder(self._table().int() if self.table else None, height, width, self.scans)
        return [
            cross_scan(_arranged(image, self.in_first, self.memory[0]), order, self.out_first, backend),
            cross_merge(
                _arranged(sequences, self.out_first, self.memory[1]), order, not self.one_by_one, self.in_first, backend
            ),
        ]

    def wrong(self, ours: list[torch.Tensor], reference: list[torch.Tensor], exact: list[torch.Tensor]) -> str:
        """The names of results that differ from the exact ones."""
        differ = [name for name, a, b in zip(("scan", "merge"), ours, exact, strict=True) if not torch.equal(a, b)]
        return f"{', '.join(differ)}: {self}" if differ else ""

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (B, K or 1, L, C) and sequences (B, K, L, C)."""
        batch, routes, channels, height, width = self.sizes
        generator = torch.Generator().manual_seed(self.seed)
        images = routes if self.one_by_one else 1
        image, sequences = (
            torch.randint(-40, 40, (batch, n, height * width, channels), generator=generator).to(self.dtype)
            for n in (images, routes)
        )
        return image, sequences

    def exact(self) -> list[torch.Tensor]:
        """The results by the definition of the routes."""
        image, sequences = self.tensors()
        table = self._table()
        scanned, merged = torch.empty_like(sequences), torch.empty_like(sequences)
        for k, pixels in enumerate(table):
            scanned[:, k] = image[:, k if self.one_by_one else 0, pixels]
            merged[:, k, pixels] = sequences[:, k]
        return [scanned, merged if self.one_by_one else merged.double().sum(1, keepdim=True).to(self.dtype)]

    def _table(self) -> torch.Tensor:
        """The pixel that each route visits at each step, (K, L)."""
        _, routes, _, height, width = self.sizes
        if self.table:
            generator = torch.Generator().manual_seed(self.seed)
            return torch.stack([torch.randperm(height * width, generator=generator) for _ in range(routes)])
        pixels = list(itertools.product(range(height), range(width)))
        steps = [[route_destination(self.scans, k, h, w, height, width) for h, w in pixels] for k in range(routes)]
        return torch.tensor(steps).argsort(1)


def _arranged(tensor: torch.Tensor, first: bool, kind: str) -> torch.Tensor:
    """The same values (B, K, L, C), in memory as (B, K, C, L) if channel first, otherwise as (B, L, K, C)."""
    axes = (0, 1, 3, 2) if first else (0, 2, 1, 3)
    shape = [tensor.shape[axis] for axis in axes]
    if kind == "offset":
        memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(shape)
    elif kind == "apart":
        memory = torch.full((*shape, 2), torch.nan, dtype=tensor.dtype)[..., 0]
    elif kind == "gaps":
        pixels = 3 if first else 1
        larger = [size if axis == pixels else size + 3 for axis, size in enumerate(shape)]
        inside = [slice(0, n) if axis == pixels else slice(1, n + 1) for axis, n in enumerate(shape)]
        memory = torch.full(larger, torch.nan, dtype=tensor.dtype)[tuple(inside)]
    else:
        memory = torch.empty(shape, dtype=tensor.dtype)
    memory.copy_(tensor.permute(axes))
    return memory.permute([axes.index(axis) for axis in range(4)])
