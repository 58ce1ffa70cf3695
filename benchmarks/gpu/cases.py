"""What is measured: shapes, and for each shape every contender with the same problem in its own layout."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from peers import Peers
from torch import Tensor

import vmddpm_kernels as vk

ROUTES = 4
FORWARD, BOTH = "forward", "forward_backward"


@dataclass(frozen=True)
class Case:
    """An image (height > 0) along four routes, or a sequence (height 0, its length in `width`)."""

    batch: int
    height: int
    width: int
    channels: int
    states: int
    dtype: torch.dtype

    @property
    def name(self) -> str:
        kind = f"scan {self.width}" if not self.height else f"image {self.height}x{self.width}"
        return f"{kind} B{self.batch} D{self.channels} N{self.states} {str(self.dtype).removeprefix('torch.')}"

    @property
    def length(self) -> int:
        return max(1, self.height) * self.width

    @property
    def routes(self) -> int:
        return ROUTES if self.height else 1

    @property
    def exponentials(self) -> int:
        """Of a forward scan: one for each step and state, one for the softplus."""
        return self.batch * self.routes * self.length * self.channels * (self.states + 1)

    @property
    def least_bytes(self) -> int:
        """Of a forward scan: each input read once, y written once."""
        a_pixel = self.channels * (2 + self.routes) + 2 * self.routes * self.states
        return self.batch * self.length * a_pixel * self.dtype.itemsize


@dataclass(frozen=True)
class Contender:
    """Inputs in the contender's layout and what to do with them. `standard` turns (B, L, D) results back into ours."""

    leaves: list[Tensor]
    run: Callable[..., Tensor]
    dy: Tensor
    standard: Callable[[Tensor], Tensor]

    def call(self, direction: str) -> Any:
        if direction == FORWARD:
            with torch.no_grad():
                return self.run(*self.leaves)
        y = self.run(*self.leaves)
        return y, *torch.autograd.grad(y, self.leaves, self.dy)


# The stages of VM-DDPM at 128 x 128 with batch 16, those of VMamba-T at 224 x 224, and plain sequences.
IMAGES = [(16, 32, 32, 192), (16, 16, 16, 384), (16, 8, 8, 768), (16, 4, 4, 1536),
          (64, 56, 56, 192), (64, 28, 28, 384), (64, 14, 14, 768), (64, 7, 7, 1536)]  # fmt: skip
SEQUENCES = [(16, 0, 1024, 1536), (16, 0, 2048, 1536), (16, 0, 2047, 1536), (16, 0, 4096, 1536),
             (1, 0, 65536, 96), (64, 0, 16, 3072)]  # fmt: skip
TYPES = [(torch.bfloat16, 16), (torch.float32, 16), (torch.bfloat16, 1), (torch.float32, 1)]


def all_cases(tiny: bool) -> list[Case]:
    """The most telling first, should the time run out."""
    cases = [Case(*sizes, states, dtype) for dtype, states in TYPES for sizes in [*IMAGES, *SEQUENCES]]
    if tiny:
        cases = [replace(c, batch=2, height=min(c.height, 3), width=min(c.width, 7), channels=6) for c in cases]
    return list(dict.fromkeys(cases))


def contenders(case: Case, peers: Peers, device: str, backend: str, seed: int) -> dict[str, Contender]:
    g = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, device=device).to(case.dtype)

    batch, K, length, dim, states = case.batch, case.routes, case.length, case.channels, case.states
    x, dy = normal(batch, length, dim), normal(batch, length, dim)
    delta = normal(batch, K, length, dim) - 3  # steps of about 0.05 after softplus
    B, C = normal(batch, K, length, states), normal(batch, K, length, states)
    A = -torch.arange(1.0, states + 1, device=device).expand(K, dim, states).contiguous()
    D, bias = torch.ones(K, dim, device=device), torch.zeros(K, dim, device=device)
    make = image_contenders if case.height else sequence_contenders
    return make(case, peers, backend, [x, delta, A, B, C, D, bias], dy)


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().contiguous().requires_grad_() for t in tensors]


def unchanged(t: Tensor) -> Tensor:
    return t


def with_triton(device: torch.device) -> bool:
    return device.type != "cpu" and vk.backends()["triton"].active


def image_contenders(case: Case, peers: Peers, backend: str, tensors: list[Tensor], dy: Tensor) -> dict[str, Contender]:
    height, width = case.height, case.width
    device = dy.device
    table = vk.routes(height, width, device=device)
    order = vk.patch_permutation(height, width, seed=0).to(device)
    shuffled = vk.routes(height, width, permutation=order, device=device)

    def along(routes: Tensor, backend: str = backend) -> Callable[..., Tensor]:
        return lambda *t: vk.cross_selective_scan(*t, routes, backend=backend)

    ours = leaves(*tensors)
    found = {
        "ours": Contender(ours, along(table), dy, unchanged),
        "ours shuffled": Contender(ours, along(shuffled), dy, unchanged),
    }
    if with_triton(device):
        found["ours in Triton"] = Contender(ours, along(table, "triton"), dy, unchanged)
    if peers.vmamba:
        scan, selective_scan, merge = peers.vmamba
        x, delta, A, B, C, D, bias = tensors

        def in_scan_order(t: Tensor) -> Tensor:  # (B, K, L, C) in pixel order -> (B, K, C, L) along the routes
            return t.gather(2, table.long()[None, :, :, None].expand_as(t)).transpose(2, 3)

        def channel_first(t: Tensor) -> Tensor:  # (B, L, D) -> (B, D, H, W)
            return t.transpose(1, 2).unflatten(2, (height, width))

        def core(x: Tensor, delta: Tensor, *rest: Tensor) -> Tensor:
            sequences = scan(x, True, True, False, 0).flatten(1, 2)  # (B, 4 D, L)
            y = selective_scan(sequences, delta, *rest, True)  # (B, 4 D, L)
            return merge(y.unflatten(1, (ROUTES, -1)).unflatten(3, (height, width)), True, True, False, 0)

        theirs = leaves(channel_first(x), in_scan_order(delta).flatten(1, 2), A.flatten(0, 1), in_scan_order(B),
                        in_scan_order(C), D.flatten(), bias.flatten())  # fmt: skip
        float_dy = dy.transpose(1, 2).contiguous().float()  # the dtype of their y
        found["VMamba"] = Contender(theirs, core, float_dy, lambda t: t.flatten(2).transpose(1, 2))
    return found


def sequence_contenders(
    case: Case, peers: Peers, backend: str, tensors: list[Tensor], dy: Tensor
) -> dict[str, Contender]:
    x, delta, A, B, C, D, bias = (t.squeeze(1) if i in (1, 3, 4) else t for i, t in enumerate(tensors))
    last = leaves(x, delta, A[0], B, C, D[0], bias[0])
    first = leaves(*(t.transpose(1, 2) for t in (x, delta)), A[0], *(t.transpose(1, 2) for t in (B, C)), D[0], bias[0])
    options: dict[str, Any] = {"delta_softplus": True, "backend": backend}

    def channel_first(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
        return vk.selective_scan(u, delta, A, B, C, D, delta_bias=bias, **options)

    def in_triton(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
        return vk.selective_scan(u, delta, A, B, C, D, delta_bias=bias, **{**options, "backend": "triton"})

    def channel_last(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
        return vk.selective_scan(u, delta, A, B, C, D, delta_bias=bias, channel_last=True, **options)

    def turned(t: Tensor) -> Tensor:
        return t.transpose(1, 2)

    dy_first = turned(dy).contiguous()
    found = {
        "ours": Contender(first, channel_first, dy_first, turned),
        "ours channel last": Contender(last, channel_last, dy, unchanged),
    }
    if with_triton(dy.device):
        found["ours in Triton"] = Contender(first, in_triton, dy_first, turned)
    if peers.mamba:
        scan = peers.mamba

        def theirs(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
            return scan(u, delta, A, B, C, D, None, bias, True)

        found["mamba_ssm"] = Contender(first, theirs, dy_first, turned)
    return found
