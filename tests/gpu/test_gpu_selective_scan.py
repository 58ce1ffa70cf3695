"""selective_scan in both layouts, with groups and a gate: error at most twice that of PyTorch's own arithmetic."""

import pytest
import torch
from gpu_cases import BACKEND, DIMS, LENGTHS, batch_and_repeats, check_accuracy, problem

import vmddpm_kernels as vk

pytestmark = pytest.mark.gpu

FLOAT32, FLOAT64, FLOAT16, BFLOAT16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
DTYPES_AND_LENGTHS = [
    *((FLOAT32, length) for length in LENGTHS),
    *((dtype, length) for dtype in (BFLOAT16, FLOAT16, FLOAT64) for length in (7, 64, 196) if length in LENGTHS),
]
NAMES = ("out", "last_state", "du", "ddelta", "dA", "dB", "dC", "dD", "dz", "ddelta_bias", "dinitial_state")


def sequences(batch, groups, length, dim, states, dtype, channel_last, seed=0):
    """u, delta, A, B, C, D, z, delta_bias, initial_state of `selective_scan`."""
    x, delta, A, B, C, D, bias, h0 = problem(batch, groups, length, dim, states, dtype, seed)

    def layout(t):  # (B, G, L, C) -> (B, L, G, C) or (B, G, C, L), contiguous
        return (t.transpose(1, 2) if channel_last else t.transpose(2, 3)).contiguous()

    def wide(t):
        t = layout(t)
        return t.flatten(2, 3) if channel_last else t.flatten(1, 2)

    u = wide(x[:, None] + delta.flip(2))
    return [u, wide(delta), A.flatten(0, 1), layout(B), layout(C), D.flatten(), u.flip(0), bias.flatten(),
            h0.flatten(1, 2)]  # fmt: skip


@pytest.mark.parametrize(("dtype", "length"), DTYPES_AND_LENGTHS)
@pytest.mark.parametrize("channel_last", [False, True])
@pytest.mark.parametrize(("groups", "states", "discretization"), [(1, 16, "mamba"), (4, 4, "mamba"), (3, 1, "zoh")])
def test_selective_scan(length, groups, states, discretization, channel_last, dtype):
    dim = DIMS[length]
    batch, repeats = batch_and_repeats(length, groups, dim)
    problems = [sequences(batch, groups, length, dim, states, dtype, channel_last, seed) for seed in range(repeats)]
    options = {"delta_softplus": True, "return_last_state": True, "channel_last": channel_last}

    def function(backend, *t):
        return vk.selective_scan(*t[:8], initial_state=t[8], discretization=discretization, backend=backend, **options)

    check_accuracy(problems, function, dtype, names=NAMES)


@pytest.mark.parametrize("channel_last", [False, True])
def test_one_group_without_its_axis(channel_last):
    u, delta, A, B, C, *_ = sequences(2, 1, 21, 18, 5, FLOAT32, channel_last)
    axis = 2 if channel_last else 1
    options = {"channel_last": channel_last, "backend": BACKEND}
    with_axis = vk.selective_scan(u, delta, A, B, C, **options)
    assert torch.equal(vk.selective_scan(u, delta, A, B.squeeze(axis), C.squeeze(axis), **options), with_axis)


@pytest.mark.parametrize("channel_last", [False, True])
def test_gradcheck_selective_scan(channel_last):
    tensors = [t.requires_grad_() for t in sequences(2, 2, 5, 2, 3, FLOAT64, channel_last)]
    options = {"delta_softplus": True, "return_last_state": True, "channel_last": channel_last, "backend": BACKEND}
    assert torch.autograd.gradcheck(lambda *t: vk.selective_scan(*t[:8], initial_state=t[8], **options), tensors)
