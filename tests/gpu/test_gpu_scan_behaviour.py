"""Properties other than accuracy: layouts, tables, determinism, extremes, precision, errors."""

import pytest
import torch
from gpu_cases import (
    BACKEND,
    BACKENDS,
    DEVICE,
    REHEARSAL,
    assert_equal_bits,
    operator,
    problem,
    random_table,
    relative_error,
    rows,
    run,
    strided,
)

import vmddpm_kernels as vk
from vmddpm_kernels.backends import select
from vmddpm_kernels.ops.selective_scan import scan
from vmddpm_kernels.scan_inputs import ScanInputs, scan_options

pytestmark = pytest.mark.gpu

FLOAT32 = torch.float32
# One sequence of many steps, and many short sequences: the two ways of dividing the work.
CUTS = [(1, 700, 50), (2, 90, 37)] if REHEARSAL else [(1, 3000, 70), (700, 150, 50)]


def test_chosen_by_default(monkeypatch):
    monkeypatch.delenv("VMDDPM_BACKEND", raising=False)
    best = next(name for name in BACKENDS if vk.backends()[name].active)
    assert select(None, torch.zeros(1, device=DEVICE)) == best


@pytest.mark.parametrize(("batch", "length", "dim"), CUTS)
@pytest.mark.parametrize("dtype", [FLOAT32, torch.bfloat16])
def test_same_bits_every_time(batch, length, dim, dtype):
    tensors = problem(batch, 4, length, dim, 7, dtype)
    options = {"table": random_table(4, length)}
    first, *others = (run(tensors, lambda *t: operator(*t, **options)) for _ in range(3))
    for other in others:
        assert_equal_bits(other, first)


def test_any_strides():
    tensors, options = problem(2, 3, 37, 19, 5, FLOAT32), {"table": random_table(3, 37)}
    assert_equal_bits(operator(*map(strided, tensors), **options), operator(*tensors, **options))


@pytest.mark.parametrize("dtype", [FLOAT32, torch.bfloat16])
def test_memory_of_another_order(dtype):
    """Channel-first memory under channel-last shapes, views that start at odd addresses, and expanded rows."""
    x, delta, A, B, C, D, bias, h0 = problem(2, 4, 49, 33, 6, dtype)
    expected = operator(x, delta, A, B, C, D, bias, h0)

    def turned(t):
        return t.transpose(-1, -2).contiguous().transpose(-1, -2)

    def shifted(t):
        return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)

    for change in (turned, shifted):
        assert_equal_bits(operator(*map(change, (x, delta, A, B, C)), D, bias, change(h0)), expected)
    shared = B[:, :1].expand_as(B)
    assert_equal_bits(
        operator(x, delta, A, shared, C, D, bias, h0), operator(x, delta, A, shared.contiguous(), C, D, bias, h0)
    )


def test_gradient_of_any_strides():
    x, delta, A, B, C, *_ = (t.requires_grad_() for t in problem(2, 2, 9, 5, 3, FLOAT32))
    leaves = (x, delta, A, B, C)
    y = vk.cross_selective_scan(*leaves, table=rows(2, 9), backend=BACKEND)
    dy = torch.randn(5, 9, 2, device=DEVICE).permute(2, 1, 0)
    got = torch.autograd.grad(y, leaves, dy, retain_graph=True)
    assert_equal_bits(got, torch.autograd.grad(y, leaves, dy.contiguous(), retain_graph=True))
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(y.sum(), leaves))


def test_kinds_of_table():
    tensors = problem(2, 4, 30, 33, 4, FLOAT32)
    table = vk.routes(5, 6, permutation=vk.patch_permutation(5, 6, seed=1), device=DEVICE)
    expected = operator(*tensors, table=table)
    assert_equal_bits(operator(*tensors, table=table.long()), expected)
    assert_equal_bits(operator(*tensors, table=table.t().contiguous().t()), expected)
    without = scan(ScanInputs(*tensors), scan_options(True, False, False), BACKEND, last_state=True)
    assert_equal_bits(operator(*tensors, table=rows(4, 30)), without)


def test_gradients_of_some():
    x, delta, A, B, C, D, bias, h0 = problem(2, 4, 40, 33, 4, FLOAT32)
    full = [t.clone().requires_grad_() for t in (x, delta, A, B, C, D, bias)]
    table = rows(4, 40)
    y = vk.cross_selective_scan(*full, table, backend=BACKEND)
    expected = torch.autograd.grad(y.sum(), full)
    with torch.no_grad():
        assert torch.equal(vk.cross_selective_scan(*full, table, backend=BACKEND), y)
    for i, leaf in enumerate(full):
        some = [leaf if i == j else t.detach() for j, t in enumerate(full)]
        (got,) = torch.autograd.grad(vk.cross_selective_scan(*some, table, backend=BACKEND).sum(), leaf)
        assert torch.equal(got, expected[i])
    h0.requires_grad_()
    _, last = operator(x, delta, A, B, C, D, bias, h0)
    assert torch.isfinite(torch.autograd.grad(last.sum(), h0)[0]).all()  # y is unused


def test_extremes_stay_finite():
    x, delta, A, B, C, D, bias, h0 = problem(1, 2, 70, 5, 4, FLOAT32)
    for scale_delta, scale_A in ((30, 1), (1, 1e4), (1e-6, 1), (-100, 1)):
        tensors = (x * 6e4, delta.abs() * scale_delta, A * scale_A, B, C, D, bias, h0)
        assert all(torch.isfinite(value).all() for value in run(tensors, operator))


@pytest.mark.parametrize(("batch", "length"), [(1, 800), (40, 6)])
def test_nan_comes_through(batch, length):
    x, delta, A, B, C, *_ = problem(batch, 1, length, 33, 2, FLOAT32)
    step = length // 2
    delta[0, 0, step, 0] = float("nan")
    y = vk.cross_selective_scan(x, delta, A, B, C, backend=BACKEND)
    assert torch.isfinite(y[0, :step]).all()
    assert torch.isnan(y[0, step:, 0]).all()
    assert torch.isfinite(y[0, :, 1:]).all()
    assert torch.isfinite(y[1:]).all()


@pytest.mark.parametrize("shape", [(2, 3, 0, 5), (0, 3, 4, 5), (2, 3, 4, 0)])
def test_empty_inputs(shape):
    batch, K, length, dim = shape
    tensors = problem(batch, K, length, dim, 3, FLOAT32)
    y, last, *grads = run(tensors, operator)
    assert y.shape == (batch, length, dim)
    torch.testing.assert_close(last, tensors[7])
    assert [g.shape for g in grads] == [t.shape for t in tensors]
    assert all(torch.isfinite(g).all() for g in grads)


def test_half_precision_activations_with_float32_parameters():
    x, delta, A, B, C, D, bias, h0 = problem(2, 4, 63, 37, 5, FLOAT32)
    half = [t.bfloat16() for t in (x, delta, B, C)]
    tensors = (half[0], half[1], A, half[2], half[3], D, bias, h0)
    ours, theirs = run(tensors, operator), run(tensors, lambda *t: operator(*t, backend="reference"))
    exact = run([t.double() for t in tensors], lambda *t: operator(*t, backend="reference"))
    assert [t.dtype for t in ours[2:]] == [t.dtype for t in tensors]
    for a, b, e in zip(ours, theirs, exact):
        assert a.dtype == b.dtype
        assert relative_error(a, e) <= max(2 * relative_error(b, e), 2**-23)


@pytest.mark.parametrize("dtype", [FLOAT32, torch.bfloat16])
def test_autocast_leaves_the_scan_alone(dtype):
    tensors = problem(2, 4, 40, 33, 4, dtype)
    expected = run(tensors, operator)

    def under_autocast(*t):
        with torch.autocast(DEVICE.type, torch.bfloat16):
            return operator(*t)

    assert_equal_bits(run(tensors, under_autocast), expected)


def test_autocast_around_projections():
    """As in a model: bfloat16 activations from projections, float32 parameters, one backward."""
    x = torch.randn(2, 49, 34, device=DEVICE)
    project = torch.nn.Linear(34, 4 * 34 + 2 * 4 * 8, device=DEVICE)
    A = torch.nn.Parameter(-torch.rand(4, 34, 8, device=DEVICE))
    with torch.autocast(DEVICE.type, torch.bfloat16):
        delta, B, C = project(x).split([4 * 34, 4 * 8, 4 * 8], dim=-1)
        delta, B, C = (t.unflatten(2, (4, -1)).transpose(1, 2) for t in (delta, B, C))
        assert delta.dtype == torch.bfloat16
        y = vk.cross_selective_scan(x.bfloat16(), delta, A, B, C, table=rows(4, 49), backend=BACKEND)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    for parameter in (A, *project.parameters()):
        assert parameter.grad.dtype == FLOAT32
        assert torch.isfinite(parameter.grad).all()


def test_second_derivative_is_refused():
    tensors = [t.requires_grad_() for t in problem(1, 1, 3, 2, 2, torch.float64)[:5]]
    y = vk.cross_selective_scan(*tensors, backend=BACKEND)
    (dx,) = torch.autograd.grad(y.sum(), tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        dx.square().sum().backward()


@pytest.mark.parametrize("name", ["delta", "A", "B", "C", "D", "delta_bias", "initial_state", "table"])
def test_tensors_of_two_devices(cuda, name):
    names = ("x", "delta", "A", "B", "C", "D", "delta_bias", "initial_state")
    arguments = {**dict(zip(names, problem(1, 4, 6, 3, 2, FLOAT32))), "table": vk.routes(2, 3, device=DEVICE)}
    arguments[name] = arguments[name].cpu()
    with pytest.raises(ValueError, match=f"{name} is on cpu, but x is on cuda"):
        vk.cross_selective_scan(**arguments)


def test_backend_of_another_device(cuda):
    tensors = problem(1, 1, 3, 2, 2, FLOAT32)[:5]
    with pytest.raises(ValueError, match="does not run on device"):
        vk.cross_selective_scan(*tensors, backend="cpu")
    with pytest.raises(ValueError, match="does not run on device"):
        vk.cross_selective_scan(*(t.cpu() for t in tensors), backend="cuda")


def test_bad_tables():
    """A table that is no permutation never reaches a kernel, even after a valid one of the same shape."""
    tensors, good = problem(1, 4, 6, 3, 2, FLOAT32), vk.routes(2, 3, device=DEVICE)
    expected = operator(*tensors, table=good)
    far, twice = good.clone(), good.clone()
    far[3, 5], twice[2, 0] = 2**30, twice[2, 1]
    for bad in (good + 1, good - 1, torch.zeros_like(good), far, twice):
        with pytest.raises(ValueError, match="table"):
            operator(*tensors, table=bad)
    assert_equal_bits(operator(*tensors, table=good), expected)
    good[0, 0] = good[0, 1]  # changed after it was checked
    with pytest.raises(ValueError, match="table"):
        operator(*tensors, table=good)
