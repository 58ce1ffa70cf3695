"""The device, problems and references of the GPU tests.

Exact values come from the `reference` backend in float64, and errors are compared with those of the same backend in the
tested dtype. Both run on the device, as a loop over time of small kernels for any batch and number of channels.
"""

import os

import pytest
import torch
from oracle import assert_as_accurate, relative_error

import vmddpm_kernels as vk

REHEARSAL = os.environ.get("VMDDPM_GPU_TESTS") == "rehearse"
DEVICE = torch.device("cpu" if REHEARSAL else "cuda")
BACKENDS = ["cpu"] if REHEARSAL else ["cuda", "triton"]
BACKEND = None  # the current backend; conftest.py sets each in turn
# Odd and even channel counts: with an odd count a block's last channels are never complete.
DIMS = {1: 65, 7: 33, 49: 51, 63: 37, 64: 35, 65: 33, 196: 49, 784: 41, 1024: 65}
LENGTHS = [1, 7, 49] if REHEARSAL else list(DIMS)
NAMES = ("x", "delta", "A", "B", "C", "D", "delta_bias", "initial_state")
RESULTS = ("y", "last_state", *("d" + name for name in NAMES))


def reason_to_skip(backend):
    if REHEARSAL:
        return None
    if not torch.cuda.is_available():
        return "no CUDA device"
    status = vk.backends()[backend]
    return None if status.active else f"no {backend}: {status.detail}"


def problem(batch, K, length, dim, states, dtype, seed=0):
    """The tensors of `NAMES`, as `cross_selective_scan` takes them, on the device."""
    g = torch.Generator(DEVICE).manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64, device=DEVICE).to(dtype)

    A = -torch.rand(K, dim, states, generator=g, dtype=torch.float64, device=DEVICE).to(dtype) * 4 - 0.05
    x, delta = normal(batch, length, dim), normal(batch, K, length, dim)
    B, C = normal(batch, K, length, states), normal(batch, K, length, states)
    return [x, delta, A, B, C, normal(K, dim), normal(K, dim), normal(batch, K, dim, states)]


def random_table(K, length, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(length, generator=g) for _ in range(K)]).int().to(DEVICE)


def rows(K, length, device=DEVICE):
    """A table of K routes in row-major order."""
    return torch.arange(length, dtype=torch.int32, device=device).expand(K, -1)


def operator(*tensors, table=None, **options):
    """cross_selective_scan, along rows if there is no table."""
    _, K, length, _ = tensors[1].shape
    if table is None and K > 1:
        table = rows(K, length, tensors[1].device)
    options = {"backend": BACKEND, "return_last_state": True, **options}
    return vk.cross_selective_scan(*tensors[:7], table, initial_state=tensors[7], **options)


def projection_weights(output, generator):
    """Multiples of 1/16, exact in every dtype, so that runs in two dtypes have the same exact gradient."""
    weights = torch.randn(output.shape, generator=generator, device=DEVICE).mul_(16).round_().clamp_(-100, 100).div_(16)
    return weights.to(output.device, output.dtype)


def run(tensors, function):
    """Outputs, and gradients of a fixed random projection of them."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    outputs = function(*leaves)
    g = torch.Generator(DEVICE).manual_seed(99)
    weights = [projection_weights(o, g) for o in outputs]
    return [*(o.detach() for o in outputs), *torch.autograd.grad(outputs, leaves, weights, materialize_grads=True)]


def batch_and_repeats(length, K, dim):
    """(batch, repeats): long problems have one sequence, so that the kernels divide the steps, not the batch."""
    return (1 if length > 500 else 2), max(1, min(512 // (K * dim), 1024 // length))


def check_accuracy(problems, function, dtype, exact=None, theirs=None, names=RESULTS):
    """Compare `function(backend, *tensors)` with the definition, forward and every gradient. Errors are taken over
    several problems together, because a ratio of two errors is meaningful only over many values."""
    ours = [run(tensors, lambda *t: function(BACKEND, *t)) for tensors in problems]
    if theirs is None:
        theirs = [run(tensors, lambda *t: function("reference", *t)) for tensors in problems]
    if exact is None:
        exact = [run([t.double() for t in tensors], lambda *t: function("reference", *t)) for tensors in problems]
    for name, *results in zip(names, *(zip(*runs, strict=True) for runs in (ours, theirs, exact)), strict=True):
        a, b, e = (torch.cat([value.flatten() for value in values]) for values in results)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        b, e = b.to(a.device), e.to(a.device)
        if dtype == torch.float64:  # the reference is no more exact than the kernel
            assert relative_error(a, e) < 1e-12, name
        else:
            assert_as_accurate(a, b, e, a.dtype if name == "last_state" else dtype, name)


def assert_equal_bits(got, want):
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert torch.equal(a, b), f"result {i} differs"


def strided(t):
    """The same values inside a larger tensor, with every stride changed."""
    padded = torch.full([2 * s + 1 for s in t.shape], float("nan"), dtype=t.dtype, device=t.device)
    window = padded[tuple(slice(1, None, 2) for _ in t.shape)]
    window.copy_(t)
    return window


def need_memory(gigabytes):
    if REHEARSAL:
        return
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / 1e9
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes} GB of device memory, {free:.0f} GB are free")
