"""The implementations to compare. Each maker, a function of (problem, backend, baselines), copies the problem to the
layout of its implementation, and raises `Missing` if that cannot run."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import vmddpm_kernels as vk
from benchmarks import plain_routes
from benchmarks.baselines import Baselines, Missing
from benchmarks.parallel_scan import cross_selective_scan as scan_in_pytorch
from benchmarks.problem import ROUTES, Implementation, Problem

HEAD = 64  # channels of an attention head
Maker = Callable[[Problem, str, Baselines], Implementation]


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().contiguous().requires_grad_() for t in tensors]


def unchanged(t: Tensor) -> Tensor:
    return t


def turned(t: Tensor) -> Tensor:
    return t.transpose(1, 2)


# Images and sequences: attention over the same steps and channels.


def attention(problem: Problem, backend: str, baselines: Baselines) -> Implementation:
    if problem.case.channels % HEAD:
        raise Missing(f"heads of {HEAD} do not divide {problem.case.channels} channels")

    def heads(t: Tensor) -> Tensor:  # (B, L, D) -> (B, D / 64, L, 64)
        return t.unflatten(2, (-1, HEAD)).transpose(1, 2)

    query, key = heads(problem.x), heads(problem.delta[:, 0])
    return Implementation(leaves(query, key, query.flip(2)), F.scaled_dot_product_attention, heads(problem.dy), None)


def in_triton(maker: Maker) -> Maker:
    """Our Triton kernels, on a GPU only: times of Triton's interpreter mean nothing."""

    def made(problem: Problem, backend: str, baselines: Baselines) -> Implementation:
        status = vk.backends()["triton"]
        if problem.x.device.type == "cpu" or not status.active:
            raise Missing("Triton needs a GPU" if status.active else status.detail)
        return maker(problem, "triton", baselines)

    return made


# Images


def fused(problem: Problem, backend: str, baselines: Baselines) -> Implementation:
    return _fused(problem, backend, problem.table)


def shuffled(problem: Problem, backend: str, baselines: Baselines) -> Implementation:
    return replace(_fused(problem, backend, problem.shuffled_table), standard=None)


def reference(problem: Problem, backend: str, baselines: Baselines) -> Implementation:
    return _fused(problem, "reference", problem.table)


def compiled_reference(problem: Problem, backend: str, baselines: Baselines) -> Implementation:
    eager = reference(problem, backend, baselines)
    return Implementation(eager.leaves, torch.compile(eager.run, dynamic=False), eager.dy, eager.standard)


def _fused(problem: Problem, backend: str, table: Tensor) -> Implementation:
    def run(*tensors: Tensor) -> Tensor:
        return vk.cross_selective_scan(*tensors, table, delta_softplus=True, backend=backend)

    return Implementation(leaves(*problem.tensors), run, problem.dy, unchanged)


def unfused(problem: Problem, backend: str, baselines: Baselines) -> Implementation:
    """The same result from `cross_scan`, `selective_scan` and `cross_merge`, with four sequences in memory."""
    return _pipeline(problem, vk.cross_scan, _scan_by(backend), vk.cross_merge)


def plain_around_our_scan(problem: Problem, backend: str, baselines: Baselines) -> Implementation:
    """VMamba's formula in plain PyTorch around our `selective_scan`."""
    scan, merge = (lambda t, *_, run=run: run(t) for run in (plain_routes.cross_scan, plain_routes.cross_merge))
    return _pipeline(problem, scan, _scan_by(backend), merge)


def _scan_by(backend: str) -> Callable[..., Tensor]:
    return lambda *arguments: _selective_scan(*arguments[:-1], backend=backend)  # without the flag of softplus


def vmamba(problem: Problem, backend: str, baselines: Baselines) -> Implementation:
    float_dy = problem.dy.float()  # the dtype of their y
    return _pipeline(problem, *baselines["VMamba"], dy=float_dy)


def parallel_scan(problem: Problem, backend: str, baselines: Baselines) -> Implementation:
    def run(*tensors: Tensor) -> Tensor:
        return scan_in_pytorch(*tensors, problem.table)

    return Implementation(leaves(*problem.tensors), run, problem.dy, unchanged)


def mambapy(problem: Problem, backend: str, baselines: Baselines) -> Implementation:
    return _pipeline(problem, vk.cross_scan, mambapy_scan(baselines), vk.cross_merge)


def _pipeline(
    problem: Problem,
    scan: Callable[..., Tensor],
    selective_scan: Callable[..., Tensor],
    merge: Callable[..., Tensor],
    dy: Tensor | None = None,
) -> Implementation:
    case, table = problem.case, problem.table

    def in_scan_order(t: Tensor) -> Tensor:  # (B, K, L, C) in pixel order -> (B, K, C, L) along the routes
        return t.gather(2, table.long()[None, :, :, None].expand_as(t)).transpose(2, 3)

    def core(x: Tensor, delta: Tensor, *rest: Tensor) -> Tensor:
        sequences = scan(x, True, True, False, 0).flatten(1, 2)                 # (B, 4 D, L)
        y = selective_scan(sequences, delta, *rest, True)                       # (B, 4 D, L)
        return merge(y.unflatten(1, (ROUTES, -1)).unflatten(3, (case.height, case.width)), True, True, False, 0)

    x, delta, A, B, C, D, bias = problem.tensors
    image = turned(x).unflatten(2, (case.height, case.width))                   # (B, D, H, W)
    inputs = leaves(image, in_scan_order(delta).flatten(1, 2), A.flatten(0, 1), in_scan_order(B), in_scan_order(C),
                    D.flatten(), bias.flatten())  # fmt: skip
    dy = turned(problem.dy if dy is None else dy).contiguous()
    return Implementation(inputs, core, dy, lambda t: turned(t.flatten(2)))


def mambapy_scan(baselines: Baselines) -> Callable[..., Tensor]:
    """mamba.py's `MambaBlock.selective_scan` for groups."""
    pscan = baselines["mamba.py"]

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, _: bool) -> Tensor:
        batch, groups = B.shape[:2]
        delta = F.softplus(delta + bias[:, None])                               # (B, G D, L)

        def split(t: Tensor) -> Tensor:                                         # (B, G D, L) -> (B G, L, D, 1)
            return t.unflatten(1, (groups, -1)).flatten(0, 1).transpose(1, 2)[..., None]

        A = A.unflatten(0, (groups, -1)).repeat(batch, 1, 1)[:, None]           # (B G, 1, D, N)
        B, C = (t.flatten(0, 1).transpose(1, 2) for t in (B, C))                # (B G, L, N)
        h = pscan(torch.exp(split(delta) * A), split(delta * u) * B[:, :, None])  # (B G, L, D, N)
        y = (h @ C[..., None]).squeeze(3).transpose(1, 2)                       # (B G, D, L)
        return y.unflatten(0, (batch, groups)).flatten(1, 2) + D[:, None] * u

    return scan


# Sequences, channel first as in the baselines


def sequence(problem: Problem, backend: str, baselines: Baselines) -> Implementation:
    return _sequence(problem, lambda *t: _selective_scan(*t, backend=backend))


def sequence_channel_last(problem: Problem, backend: str, baselines: Baselines) -> Implementation:
    x, delta, A, B, C, D, bias = problem.tensors
    inputs = leaves(x, delta[:, 0], A[0], B[:, 0], C[:, 0], D[0], bias[0])
    run = lambda *t: _selective_scan(*t, backend=backend, channel_last=True)  # noqa: E731
    return Implementation(inputs, run, problem.dy, unchanged)


def mamba_ssm(problem: Problem, backend: str, baselines: Baselines) -> Implementation:
    theirs = baselines["mamba"]
    return _sequence(problem, lambda u, delta, A, B, C, D, bias: theirs(u, delta, A, B, C, D, None, bias, True))


def transformers(problem: Problem, backend: str, baselines: Baselines) -> Implementation:
    """transformers' function without kernels, one step at a time."""
    theirs = partial(baselines["transformers"], delta_softplus=True)
    return _sequence(problem, lambda u, *rest: theirs(u, *rest[:-1], delta_bias=rest[-1]).to(u.dtype))


def mambapy_sequence(problem: Problem, backend: str, baselines: Baselines) -> Implementation:
    scan = mambapy_scan(baselines)

    def run(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
        in_float = (t.float() for t in (u, delta, A, B[:, None], C[:, None], D, bias))
        return scan(*in_float, True).to(u.dtype)

    return _sequence(problem, run)


def compiled(states: str, longest: int) -> Callable[[Problem, str, Baselines], Implementation]:
    """One of `plain_scans` through torch.compile, up to the length that compiles in a minute."""

    def make(problem: Problem, backend: str, baselines: Baselines) -> Implementation:
        if problem.case.length > longest:
            raise Missing(f"more than {longest} steps take too long to compile")
        try:
            from benchmarks import plain_scans
        except ImportError as error:
            raise Missing(f"{error}, in torch {torch.__version__}") from None
        run = partial(plain_scans.selective_scan, getattr(plain_scans, states))
        return _sequence(problem, torch.compile(run, dynamic=False))

    return make


def _sequence(problem: Problem, run: Callable[..., Tensor]) -> Implementation:
    x, delta, A, B, C, D, bias = problem.tensors
    inputs = leaves(turned(x), turned(delta[:, 0]), A[0], turned(B[:, 0]), turned(C[:, 0]), D[0], bias[0])
    return Implementation(inputs, run, turned(problem.dy).contiguous(), turned)


def _selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor,
                    **options: Any) -> Tensor:  # fmt: skip
    return vk.selective_scan(u, delta, A, B, C, D, delta_bias=bias, delta_softplus=True, **options)


IMAGES = {
    "ours": fused,
    "ours shuffled": shuffled,
    "ours unfused": unfused,
    "plain PyTorch, our scan": plain_around_our_scan,
    "ours in Triton": in_triton(fused),
    "attention": attention,
    "VMamba": vmamba,
}
WITHOUT_KERNELS = {
    "ours": fused,
    "reference": reference,
    "parallel scan": parallel_scan,
    "mamba.py": mambapy,
}
COMPILED = {
    "compiled loop": compiled("step_loop", 16),
    "associative_scan": compiled("by_associative_scan", 64),
    "scan": compiled("by_scan", 1024),
}
SEQUENCES = {
    "ours": sequence,
    "ours channel last": sequence_channel_last,
    "ours in Triton": in_triton(sequence),
    "attention": attention,
    "mamba_ssm": mamba_ssm,
    "mamba.py": mambapy_sequence,
    "transformers": transformers,
    **COMPILED,
}
