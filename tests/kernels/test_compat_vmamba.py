"""VMamba's functions against float64 loops: output dtypes, grouped delta, kernel names, older classes."""

import inspect

import numpy as np
import pytest
import torch
from oracle import assert_as_accurate, concatenated_results, relative_error, scan_loop

from vmddpm_kernels.compat import selective_scan
from vmddpm_kernels.compat.vmamba import (
    SelectiveScanCore,
    SelectiveScanCuda,
    SelectiveScanMamba,
    SelectiveScanOflex,
    flops_selective_scan_fn,
    flops_selective_scan_ref,
    selective_scan_flop_jit,
    selective_scan_fn,
)

BATCH, GROUPS, CHANNELS, LENGTH, STATES = 2, 4, 3, 13, 5
DIM = GROUPS * CHANNELS


def arguments(dtype=torch.float64, steps=DIM):
    """u, delta, A, B, C, D, delta_bias as VMamba's SS2D passes them: parameters in float32 at least."""
    parameter = torch.promote_types(dtype, torch.float32)

    def normal(*shape, dtype=dtype):
        return torch.randn(*shape, dtype=torch.float64).to(dtype)

    return [
        normal(BATCH, DIM, LENGTH), normal(BATCH, steps, LENGTH), -torch.rand(DIM, STATES).to(parameter),
        normal(BATCH, GROUPS, STATES, LENGTH), normal(BATCH, GROUPS, STATES, LENGTH),
        normal(DIM, dtype=parameter), normal(steps, dtype=parameter),
    ]  # fmt: skip


def loop(u, delta, A, B, C, D, delta_bias, softplus=True):
    """Channel d belongs to group d // CHANNELS, and its step sizes are row d // (DIM / rows of delta)."""
    u, delta, A, B, C, D, delta_bias = (t.double() for t in (u, delta, A, B, C, D, delta_bias))
    each = DIM // delta.shape[1]
    delta = torch.stack([delta[:, d // each] for d in range(DIM)], dim=1)
    delta_bias = torch.stack([delta_bias[d // each] for d in range(DIM)])

    def grouped(t):  # (B, DIM, L) -> (B, GROUPS, L, CHANNELS)
        return t.view(BATCH, GROUPS, CHANNELS, LENGTH).transpose(2, 3)

    y, _ = scan_loop(
        grouped(u), grouped(delta), A.view(GROUPS, CHANNELS, STATES), B.transpose(2, 3), C.transpose(2, 3),
        D.view(GROUPS, CHANNELS), delta_bias.view(GROUPS, CHANNELS), softplus=softplus, merge=False,
    )  # fmt: skip
    return y.transpose(2, 3).reshape(BATCH, DIM, LENGTH)


def gradients(function, tensors):
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out = function(*leaves)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out.dtype)
    return [out, *torch.autograd.grad((out * weight).sum(), leaves)]


@pytest.mark.parametrize("steps", [DIM, GROUPS, 2, 1])
def test_step_sizes_shared_by_channels(steps):
    problems = [arguments(torch.float32, steps) for _ in range(12)]
    ours = concatenated_results(problems, lambda p: gradients(selective_scan_fn, p))
    theirs = concatenated_results(problems, lambda p: gradients(lambda *t: selective_scan_fn(*t, backend="torch"), p))
    exact = concatenated_results(problems, lambda p: gradients(loop, [t.double() for t in p]))
    for name, a, b, e in zip(["out", "du", "ddelta", "dA", "dB", "dC", "dD", "dbias"], ours, theirs, exact):
        assert_as_accurate(a, b, e, torch.float32, name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_of_the_output(dtype):
    tensors = arguments(dtype)
    exact = loop(*tensors)
    for backend in (None, "oflex", "torch", "cpu", "reference"):
        out = selective_scan_fn(*tensors, backend=backend)
        assert out.dtype == torch.float32
        assert relative_error(out, exact) < 4e-7  # for half-precision inputs too: no intermediate is rounded to half
        assert selective_scan_fn(*tensors, oflex=False, backend=backend).dtype == dtype
    for backend in ("core", "mamba"):
        assert selective_scan_fn(*tensors, backend=backend).dtype == dtype
    assert SelectiveScanOflex.apply(*tensors).dtype == torch.float32
    assert SelectiveScanCore.apply(*tensors).dtype == SelectiveScanMamba.apply(*tensors).dtype == dtype
    grads = gradients(selective_scan_fn, tensors)[1:]
    assert [g.dtype for g in grads] == [t.dtype for t in tensors]


def test_defaults_and_positions():
    u, delta, A, B, C, D, bias = arguments()
    expected = {
        selective_scan_fn: "u delta A B C D delta_bias delta_softplus oflex backend",
        SelectiveScanCuda.apply: "u delta A B C D delta_bias delta_softplus oflex backend",
        SelectiveScanOflex.apply: "u delta A B C D delta_bias delta_softplus nrows backnrows oflex",
        SelectiveScanCore.apply: "u delta A B C D delta_bias delta_softplus nrows backnrows oflex",
        selective_scan.selective_scan_fn: "u delta A B C D delta_bias delta_softplus nrows backnrows",
        selective_scan.selective_scan_ref: "u delta A B C D delta_bias delta_softplus",
    }
    for function, names in expected.items():
        assert list(inspect.signature(function).parameters) == names.split()
        softplus = function is selective_scan_fn  # the default in the newest version only
        out = function(u, delta, A, B, C, D, bias)
        torch.testing.assert_close(out.double(), loop(u, delta, A, B, C, D, bias, softplus), rtol=1e-5, atol=1e-5)
        out = function(u, delta, A, B, C, D, bias, True)
        torch.testing.assert_close(out.double(), loop(u, delta, A, B, C, D, bias, True), rtol=1e-5, atol=1e-5)
    zero = torch.zeros(DIM).double()
    torch.testing.assert_close(
        selective_scan_fn(u, delta, A, B, C, oflex=False), loop(u, delta, A, B, C, zero, zero)
    )


def test_any_strides():
    """VMamba's kernels need a last stride of 1; ours do not."""
    u, delta, A, B, C, D, bias = arguments()
    turned = [t.mT.contiguous().mT for t in (u, delta)]
    states = [t.mT.contiguous().mT for t in (B, C)]
    assert torch.equal(selective_scan_fn(*turned, A, *states, D, bias), selective_scan_fn(u, delta, A, B, C, D, bias))


class Traced:
    """A traced tensor with the type().sizes() that fvcore calls."""

    def __init__(self, *shape):
        self.sizes = lambda: list(shape)

    def type(self):
        return self


def test_count_of_operations():
    assert flops_selective_scan_fn(B=2, L=3, D=5, N=7) == 9 * 2 * 3 * 5 * 7 + 2 * 3 * 5
    assert flops_selective_scan_fn(1, 256, 768, 16, with_D=False, with_Z=False) == 9 * 256 * 768 * 16
    inputs = [Traced(2, 5, 3), Traced(2, 5, 3), Traced(5, 7)]
    assert selective_scan_flop_jit(inputs, []) == flops_selective_scan_fn(B=2, L=3, D=5, N=7)
    with pytest.raises(ValueError, match="with_complex"):
        flops_selective_scan_fn(with_complex=True)


def einsum_multiply_adds(equation, *shapes):
    """Counted by numpy, which prints four digits."""
    said = np.einsum_path(equation, *map(np.zeros, shapes), optimize="optimal")[1]
    return next(float(line.split(":")[-1]) / 2 for line in said.splitlines() if "Optimized FLOP" in line)


@pytest.mark.parametrize("z", [False, True])
def test_older_count_of_operations(z):
    B, L, D, N = 2, 30, 24, 16
    step = B * D * N + einsum_multiply_adds("bdn,bdn->bd", (B, D, N), (B, D, N))
    products = einsum_multiply_adds("bdl,dn->bdln", (B, D, L), (D, N))
    products += einsum_multiply_adds("bdl,bnl,bdl->bdln", (B, D, L), (B, N, L), (B, D, L))
    expected = products + L * step + B * D * L * (1 + z)
    assert flops_selective_scan_ref(B, L, D, N, with_Z=z) == pytest.approx(expected, rel=1e-3)
    with pytest.raises(ValueError, match="with_complex"):
        flops_selective_scan_ref(with_complex=True)


def test_errors_name_the_argument():
    u, delta, A, B, C, D, bias = arguments()
    for call, error, words in [
        (lambda: selective_scan_fn(u[0], delta, A, B, C), ValueError, r"u must have shape \(B, K\*C, L\)"),
        (lambda: selective_scan_fn(u, delta[:, :5], A, B, C), ValueError, "delta must have shape"),
        (lambda: selective_scan_fn(u, delta[:, :4], A, B, C, D, bias), ValueError, "delta_bias must have shape"),
        (lambda: selective_scan_fn(u, delta, A, B[:, :, :4], C), ValueError, "B must have shape"),
        (lambda: selective_scan_fn(u, delta, A, B, C, backend="triton2"), ValueError, "backend"),
        (lambda: selective_scan_fn(u, delta, A, B, C, oflex="yes"), TypeError, "oflex must be True or False"),
        (lambda: selective_scan_fn(u, delta, A[:, :1].expand(-1, 257), B, C), ValueError, "1 to 256 states"),
    ]:
        with pytest.raises(error, match=words):
            call()
