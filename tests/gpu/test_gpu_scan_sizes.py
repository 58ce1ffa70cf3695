"""Long sequences, very many channels, and tensors of more than 2^31 elements."""

import pytest
import torch
from gpu_cases import (
    BACKEND,
    DEVICE,
    REHEARSAL,
    check_accuracy,
    need_memory,
    operator,
    problem,
    random_table,
    relative_error,
    run,
)

import vmddpm_kernels as vk

pytestmark = pytest.mark.gpu

MORE_THAN_32_BITS = 2**14 if REHEARSAL else 2**31
BFLOAT16_ROUNDING = 2**-8


def on_cpu_in_float64(tensors, function):
    """Exact values for sequences too long for a Python loop, from the CPU kernels, which have their own tests."""
    return run([t.double().cpu() for t in tensors], lambda *t: function("cpu", *t))


@pytest.mark.parametrize(("K", "dim", "states"), [(1, 96, 16), (4, 33, 4)])
def test_long_sequence(K, dim, states):
    length = 200 if REHEARSAL else 65536
    tensors = problem(1, K, length, dim, states, torch.float32)
    table = random_table(K, length)

    def function(backend, *t):
        return operator(*t, backend=backend, table=table.to(t[0].device))

    check_accuracy([tensors], function, torch.float32, exact=[on_cpu_in_float64(tensors, function)])


def test_a_million_steps():
    """Too many for a Python loop on any device, so the error may be twice that of float32 on the CPU."""
    length = 300 if REHEARSAL else 2**20
    tensors = problem(1, 1, length, 33, 16, torch.float32)

    def function(backend, *t):
        return operator(*t, backend=backend)

    on_cpu = run([t.cpu() for t in tensors], lambda *t: function("cpu", *t))
    check_accuracy([tensors], function, torch.float32, [on_cpu_in_float64(tensors, function)], [on_cpu])


@pytest.mark.parametrize("length", [4096, 65536])
@pytest.mark.parametrize("batch", [1, 64])
def test_decay_of_zero_keeps_the_state_forever(batch, length):
    """exp(0) is exactly 1, so A = 0 sums its inputs over any length, however the sequence is divided."""
    one = torch.ones(batch, length, 1, device=DEVICE)
    y, last = vk.selective_scan(
        one, one, torch.zeros(1, 1, device=DEVICE), one, one, channel_last=True, return_last_state=True, backend=BACKEND
    )
    assert torch.equal(y[..., 0], torch.arange(1.0, length + 1, device=DEVICE).expand(batch, -1))
    assert torch.equal(last, torch.full_like(last, length))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_channels_than_a_grid_axis(dtype):
    tensors = problem(1, 2, 49, 501 if REHEARSAL else 70_001, 2, dtype)
    options = {"table": random_table(2, 49)}
    check_accuracy([tensors], lambda backend, *t: operator(*t, backend=backend, **options), dtype)


def test_more_sequences_than_a_grid_axis():
    """Each parameter's gradient has only two values, too few for a ratio of errors, so a fixed bound is used."""
    tensors = problem(300 if REHEARSAL else 70_001, 1, 3, 2, 1, torch.float32)
    exact = run([t.double() for t in tensors], lambda *t: operator(*t, backend="reference"))
    for got, want in zip(run(tensors, operator), exact):
        assert relative_error(got, want) < 2e-6


def edge_slices(dim):
    return [slice(0, 3), slice(dim // 2, dim // 2 + 3), slice(dim - 3, dim)]


def random_bfloat16(*shape):
    return torch.randn(*shape, dtype=torch.bfloat16, device=DEVICE)


def test_cross_selective_scan_beyond_32_bit_offsets():
    """Channels are independent except in the gradients of B and C, which are sums over them."""
    need_memory(50)
    K, length, states = 4, 16 if REHEARSAL else 4096, 1
    dim = MORE_THAN_32_BITS // (K * length) + 65
    x, delta = random_bfloat16(1, length, dim), random_bfloat16(1, K, length, dim)
    assert delta.numel() > MORE_THAN_32_BITS
    A = -torch.rand(K, dim, states, device=DEVICE) - 0.05
    B, C, dy = random_bfloat16(1, K, length, states), random_bfloat16(1, K, length, states), torch.randn_like(x)
    table = random_table(K, length)

    def outputs(backend, x, delta, A, B, C, dy):
        leaves = [t.detach().requires_grad_() for t in (x, delta, A, B, C)]
        y = vk.cross_selective_scan(*leaves, table=table.to(x.device), backend=backend)
        return [y.detach(), *torch.autograd.grad(y, leaves, dy)]

    y, dx, ddelta, dA, dB, dC = outputs(BACKEND, x, delta, A, B, C, dy)
    for part in edge_slices(dim):
        few = [t.double().cpu() for t in (x[..., part], delta[..., part], A[:, part], B, C, dy[..., part])]
        exact = outputs("cpu", *few)
        assert relative_error(y[..., part].cpu(), exact[0]) < BFLOAT16_ROUNDING
        assert relative_error(dx[..., part].cpu(), exact[1]) < BFLOAT16_ROUNDING
        assert relative_error(ddelta[..., part].cpu(), exact[2]) < BFLOAT16_ROUNDING
        assert relative_error(dA[:, part].cpu(), exact[3]) < 1e-4
    del y, dx, ddelta, dA
    sums = [torch.zeros_like(t, dtype=torch.float32) for t in (dB, dC)]
    for start in range(0, dim, dim // 8 + 1):
        part = slice(start, start + dim // 8 + 1)
        pieces = outputs(BACKEND, x[..., part], delta[..., part], A[:, part], B, C, dy[..., part])[4:]
        sums = [s + t.float() for s, t in zip(sums, pieces)]
    assert relative_error(dB, sums[0]) < 2 * BFLOAT16_ROUNDING
    assert relative_error(dC, sums[1]) < 2 * BFLOAT16_ROUNDING


@pytest.mark.parametrize("channel_last", [False, True])
def test_selective_scan_beyond_32_bit_offsets(channel_last):
    need_memory(50)
    length = 16 if REHEARSAL else 4096
    dim = MORE_THAN_32_BITS // length + 65
    shape = (1, length, dim) if channel_last else (1, dim, length)
    u, delta = random_bfloat16(*shape), random_bfloat16(*shape)
    A = -torch.rand(dim, 1, device=DEVICE) - 0.05
    B = random_bfloat16(*((1, length, 1) if channel_last else (1, 1, length)))
    options = {"channel_last": channel_last, "delta_softplus": True}
    out = vk.selective_scan(u, delta, A, B, B, backend=BACKEND, **options)
    for part in edge_slices(dim):
        index = (slice(None), slice(None), part) if channel_last else (slice(None), part)
        few = [t.double().cpu() for t in (u[index], delta[index], A[part], B, B)]
        exact = vk.selective_scan(*few, backend="cpu", **options)
        assert relative_error(out[index].cpu(), exact) < BFLOAT16_ROUNDING
