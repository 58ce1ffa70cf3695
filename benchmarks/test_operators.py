"""The operators of each backend side by side: one group a shape, so that one run gives the ratios."""

import pytest
import torch

import vmddpm_kernels as vk

# batch, channels, height, width, states: the stages of VM-DDPM at 128 x 128 (expand 2, batch 4) and a longer sequence
SHAPES = {
    "4x192x32x32-N16": (4, 192, 32, 32, 16),
    "4x384x16x16-N16": (4, 384, 16, 16, 16),
    "4x96x64x64-N16": (4, 96, 64, 64, 16),
    "4x96x64x64-N1": (4, 96, 64, 64, 1),
}


def problem(batch, channels, height, width, states, shuffled=False):
    K, length = 4, height * width
    x, delta = torch.randn(batch, length, channels), torch.randn(batch, K, length, channels) - 3
    A = -torch.arange(1.0, states + 1).expand(K, channels, states).contiguous()
    B, C = torch.randn(batch, K, length, states), torch.randn(batch, K, length, states)
    D, bias = torch.ones(K, channels), torch.zeros(K, channels)
    table = vk.routes(height, width, permutation=vk.patch_permutation(height, width, seed=0) if shuffled else None)
    return [x, delta, A, B, C, D, bias], table


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", ["cpu", "cpu-shuffled", "reference"])
@pytest.mark.parametrize("direction", ["forward", "forward_backward"])
def test_cross_selective_scan(benchmark, shape, case, direction):
    benchmark.group = f"cross_selective_scan {direction} {shape}"
    backend, _, order = case.partition("-")
    tensors, table = problem(*SHAPES[shape], shuffled=order == "shuffled")

    if direction == "forward":

        def run():
            with torch.no_grad():
                return vk.cross_selective_scan(*tensors, table, backend=backend)
    else:
        leaves = [t.requires_grad_() for t in tensors]

        def run():
            y = vk.cross_selective_scan(*leaves, table, backend=backend)
            return torch.autograd.grad(y, leaves, torch.ones_like(y))[0]

    rounds = 3 if backend == "reference" else 30
    result = benchmark.pedantic(run, rounds=rounds, warmup_rounds=1)
    assert torch.isfinite(result).all()


@pytest.mark.parametrize("operation", ["cross_scan", "cross_merge"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_cross_scan(benchmark, operation, backend):
    benchmark.group = f"{operation} 4x96x64x64"
    shape = (4, 96, 64, 64) if operation == "cross_scan" else (4, 4, 96, 64, 64)
    x = torch.randn(shape)
    result = benchmark.pedantic(getattr(vk, operation), (x,), {"backend": backend}, rounds=30, warmup_rounds=1)
    assert torch.isfinite(result).all()
