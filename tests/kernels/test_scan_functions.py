"""The elementary functions of the CPU scans in float64, one value at a time against decimal arithmetic of 60 digits. A
single step of a single state equals each of them or has it as its gradient."""

import math
import os
import subprocess
import sys
from decimal import Context, Decimal, setcontext

import pytest
import torch

import vmddpm_kernels as vk

setcontext(Context(prec=60))
INF, NAN = float("inf"), float("nan")
LEAST, LARGEST = math.ulp(0.0), math.nextafter(INF, 0.0)


def one_step(A, delta, u, h, **options):
    """last_state = e^(delta A) h + phi delta u, one channel per element."""
    sequences = [t[None, :, None].contiguous() for t in (u, delta)]
    one = torch.ones(1, 1, 1, dtype=A.dtype)
    options |= {"initial_state": h[None, :, None], "return_last_state": True, "backend": "cpu"}
    return vk.selective_scan(*sequences, A[:, None], one, one, **options)[1][0, :, 0]


def exponential(v):
    return one_step(v, torch.ones_like(v), torch.zeros_like(v), torch.ones_like(v))


def softplus(v):
    return one_step(torch.zeros_like(v), v, torch.ones_like(v), torch.zeros_like(v), delta_softplus=True)


def hold(v):
    return one_step(v, torch.ones_like(v), torch.ones_like(v), torch.zeros_like(v), discretization="zoh")


def slope(function):
    def of(v):
        leaf = v.clone().requires_grad_()
        return torch.autograd.grad(function(leaf).sum(), leaf)[0]

    return of


def exact_softplus(v):
    if v < -50:  # 1 + e^v in 60 digits would keep few digits of e^v, whose square is 20 digits smaller
        return v.exp()
    return v if v > 20 else (1 + v.exp()).ln()


def exact_softplus_slope(v):
    return Decimal(1) if v > 20 else v.exp() / (1 + v.exp())


def exact_hold(v):
    return (v.exp() - 1) / v if v else Decimal(1)


def exact_hold_slope(v):
    return (v.exp() - exact_hold(v)) / v if v else Decimal("0.5")


def samples(low, high):
    """Values over the range, around zero, and of every magnitude down to 2^-60, with both signs if within the range."""
    g = torch.Generator().manual_seed(0)
    uniform = torch.rand(400, generator=g, dtype=torch.float64)
    sizes = 2.0 ** (-60 * uniform)
    values = torch.cat([low + (high - low) * uniform, 6 * uniform - 3, sizes, -sizes, torch.tensor([0.0])])
    return values[(values >= low) & (values <= high)]


CASES = {
    "exp": (exponential, Decimal.exp, (-745.0, 709.7), 2),
    "softplus": (softplus, exact_softplus, (-745.0, 40.0), 3),
    "slope of softplus": (slope(softplus), exact_softplus_slope, (-745.0, 40.0), 4),
    "zero-order hold": (hold, exact_hold, (-700.0, 700.0), 4),
    "slope of the hold": (slope(hold), exact_hold_slope, (-700.0, 700.0), 7),
}


@pytest.mark.parametrize("name", CASES)
def test_units_in_the_last_place(name):
    function, exact, (low, high), units = CASES[name]
    values = samples(low, high)
    for v, got in zip(values.tolist(), function(values).tolist()):
        want = exact(Decimal(v))
        error = abs(Decimal(got) - want) / Decimal(math.ulp(float(want)))
        assert error <= units, f"{name} of {v!r} is {got!r}, {float(error):.1f} units from {float(want)!r}"


def test_exponential_at_its_ends():
    """Infinity on overflow, zero on underflow, and subnormal numbers just before."""
    ends = {
        INF: INF, 1e300: INF, 710.0: INF, 709.7827128933841: INF, 709.782712893384: 1.797693134862273e308,
        -708.4: math.exp(-708.4), -740.0: math.exp(-740.0), -745.13: LEAST, -745.14: 0.0, -747.0: 0.0,
        -1e300: 0.0, -INF: 0.0, LEAST: 1.0, -LEAST: 1.0, -0.0: 1.0,
    }  # fmt: skip
    got = exponential(torch.tensor(list(ends), dtype=torch.float64))
    for v, value, want in zip(ends, got.tolist(), ends.values()):
        assert value == pytest.approx(want, rel=1e-15, abs=LEAST if 0 < want < 1e-300 else 0.0), f"e^{v}"
    assert exponential(torch.tensor([NAN, 1.0], dtype=torch.float64)).isnan().tolist() == [True, False]


def test_softplus_at_its_ends():
    ends = {-INF: 0.0, -1e300: 0.0, -745.14: 0.0, -745.13: LEAST, 20.5: 20.5, 1e300: 1e300, LARGEST: LARGEST}
    got = softplus(torch.tensor(list(ends), dtype=torch.float64)).tolist()
    assert got == pytest.approx(list(ends.values()), rel=1e-15, abs=0.0)
    assert softplus(torch.tensor([NAN, 1.0], dtype=torch.float64)).isnan().tolist() == [True, False]


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa):
    environment = dict(os.environ, VMDDPM_CPU_ISA=isa, PYTHONPATH=os.pathsep.join(sys.path))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not instruction_set", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if "is not available here" in done.stdout:
        pytest.skip(f"this processor has no {isa}")
    assert done.returncode == 0, done.stdout + done.stderr
