"""Properties other than accuracy: layouts, determinism, extremes, empty inputs, partial gradients, errors."""

import math
import os
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from oracle import relative_error
from test_scan_accuracy import image_problem, rows, run

import vmddpm_kernels as vk
from vmddpm_kernels.ops.selective_scan import scan
from vmddpm_kernels.scan_inputs import ScanInputs, scan_options


def operator(*t, **options):
    """Scan along rows."""
    _, K, length, _ = t[1].shape
    return vk.cross_selective_scan(*t[:7], rows(K, length), initial_state=t[7], return_last_state=True, **options)


def along(table, *t, backend, zoh=False):
    """The core of the public functions, which accepts several routes without a table."""
    return scan(ScanInputs(*t, table=table), scan_options(True, zoh, False), backend, last_state=True)


def strided(t):
    """The same values inside a larger tensor, with every stride changed."""
    padded = torch.full([2 * s + 1 for s in t.shape], float("nan"), dtype=t.dtype)
    window = padded[tuple(slice(1, None, 2) for _ in t.shape)]
    window.copy_(t)
    return window


def test_any_strides(backend):
    tensors = image_problem(2, 3, 37, 19, 5, torch.float32)
    expected = operator(*tensors, backend=backend)
    for got, want in zip(operator(*map(strided, tensors), backend=backend), expected):
        assert torch.equal(got, want)


def test_gradient_of_any_strides(backend):
    """A transposed or expanded incoming gradient is read in place."""
    x, delta, A, B, C, *_ = (t.requires_grad_() for t in image_problem(2, 2, 9, 5, 3, torch.float32))
    y = vk.cross_selective_scan(x, delta, A, B, C, table=rows(2, 9), backend=backend)
    dy = torch.randn(5, 9, 2)
    got = torch.autograd.grad(y, (x, delta, A, B, C), dy.permute(2, 1, 0), retain_graph=True)
    want = torch.autograd.grad(y, (x, delta, A, B, C), dy.permute(2, 1, 0).contiguous(), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(got, want))
    got = torch.autograd.grad(y.sum(), (x, delta, A, B, C))
    assert all(torch.isfinite(g).all() for g in got)


def test_output_layout_follows_the_caller():
    u = torch.randn(2, 6, 10)
    A, B = -torch.rand(6, 4), torch.randn(2, 4, 10)
    assert vk.selective_scan(u, u, A, B, B).is_contiguous()
    last = u.transpose(1, 2).contiguous()
    B = B.transpose(1, 2)
    assert vk.selective_scan(last, last, A, B, B, channel_last=True).is_contiguous()


@pytest.mark.parametrize(("batch", "dim", "states"), [(3, 50, 7), (3, 50, 1), (1, 120, 1), (1, 150, 16)])
def test_bitwise_repeatable_and_independent_of_threads(batch, dim, states):
    """For a batch, and for one image whose channels are divided among more threads than there may be cores."""
    tensors = image_problem(batch, 4, 150, dim, states, torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 2, 3, 8):
            torch.set_num_threads(count)
            results.append(run(tensors, lambda *t: operator(*t, backend="cpu")))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_order_of_pixels_is_only_an_order(backend):
    """Shuffling the pixels of every input and the table in the same way shuffles the output."""
    x, delta, A, B, C, D, bias, _ = image_problem(2, 4, 30, 5, 4, torch.float32)
    table = vk.routes(5, 6)
    order = torch.randperm(30)
    inverse = order.argsort()
    y = vk.cross_selective_scan(x, delta, A, B, C, D, bias, table, backend=backend)
    shuffled = vk.cross_selective_scan(
        x[:, order], delta[:, :, order], A, B[:, :, order], C[:, :, order], D, bias, inverse[table.long()].int(),
        backend=backend,
    )  # fmt: skip
    torch.testing.assert_close(shuffled, y[:, order])


@pytest.mark.parametrize("states", [1, 4])
def test_no_table_is_one_of_rows(backend, states):
    tensors = image_problem(2, 3, 9, 5, states, torch.float32)
    with_rows = run(tensors, lambda *t: operator(*t, backend=backend))
    for ours, expected in zip(run(tensors, lambda *t: along(None, *t, backend=backend)), with_rows):
        assert torch.equal(ours, expected)


def test_extremes_stay_finite(backend):
    """Large steps, fast decay and half-precision maxima: no NaN, no infinity, forward or backward."""
    x, delta, A, B, C, D, bias, h0 = image_problem(1, 2, 70, 5, 4, torch.float32)
    for scale_delta, scale_A in ((30, 1), (1, 1e4), (1e-6, 1), (-100, 1)):
        tensors = (x * 6e4, delta.abs() * scale_delta, A * scale_A, B, C, D, bias, h0)
        for value in run(tensors, lambda *t: operator(*t, backend=backend)):
            assert torch.isfinite(value).all()


def test_steps_of_every_size(backend):
    """In a single step from no state, with x = B = C = 1, y is softplus(delta) and its gradient the sigmoid."""
    delta = torch.linspace(-80, 110, 190 * 64 + 1).view(1, 1, -1).requires_grad_()
    one = torch.ones(1, 1, 1)
    y = vk.selective_scan(
        one.expand_as(delta), delta, -torch.ones(delta.shape[2], 1), one, one, delta_softplus=True, channel_last=True,
        backend=backend,
    )  # fmt: skip
    (slope,) = torch.autograd.grad(y.sum(), delta)
    exact = delta.detach().double()
    few_units = {"rtol": 4 * torch.finfo(torch.float32).eps, "atol": 0}
    torch.testing.assert_close(y.double(), exact.clamp(min=0) + torch.log1p(torch.exp(-exact.abs())), **few_units)
    torch.testing.assert_close(slope.double(), torch.sigmoid(exact), **few_units)


def test_decay_of_zero_keeps_the_state_forever(backend):
    """exp(0) is exactly 1: A = 0 sums its inputs over any length."""
    length = 130 if backend == "triton" else 4096  # interpreted
    one = torch.ones(1, length, 1)
    y = vk.selective_scan(
        one, one, torch.zeros(1, 1), one, one, channel_last=True, backend=backend
    )
    assert torch.equal(y[0, :, 0], torch.arange(1.0, length + 1))


@pytest.mark.parametrize("states", [1, 2])
def test_nan_comes_through(backend, states):
    x, delta, A, B, C, *_ = image_problem(1, 1, 6, 18, states, torch.float32)
    delta[0, 0, 3, 0] = float("nan")
    y = vk.cross_selective_scan(x, delta, A, B, C, backend=backend)
    assert torch.isfinite(y[0, :3]).all()
    assert torch.isnan(y[0, 3:, 0]).all()


def test_growing_states(backend):
    """A may be positive: growth is as exact as decay, and overflows become infinite."""
    x, delta, A, B, C, *_ = image_problem(1, 2, 40, 20, 9, torch.float32)
    tensors = (x, delta.abs() * 0.1, torch.where(torch.arange(9) == 4, -A, A), B, C)

    def growing(backend):
        return lambda *t: (vk.cross_selective_scan(*t, table=rows(2, 40), delta_softplus=False, backend=backend),)

    exact = run([t.double() for t in tensors], growing("reference"))
    for value, expected in zip(run(tensors, growing(backend)), exact):
        assert relative_error(value, expected) < 2e-6
    one, delta = torch.ones(1, 2, 1), torch.tensor([1.0, 100.0]).view(1, 2, 1)
    y = vk.selective_scan(one, delta, torch.ones(1, 1), one, one, channel_last=True, backend=backend)
    assert torch.equal(y[0, :, 0], torch.tensor([1.0, float("inf")]))


@pytest.mark.parametrize("shape", [(2, 3, 0, 5), (0, 3, 4, 5), (2, 3, 4, 0)])
def test_empty_inputs(backend, shape):
    batch, K, length, dim = shape
    tensors = image_problem(batch, K, length, dim, 3, torch.float32)
    y, last, *grads = run(tensors, lambda *t: operator(*t, backend=backend))
    assert y.shape == (batch, length, dim)
    torch.testing.assert_close(last, tensors[7])
    assert [g.shape for g in grads] == [t.shape for t in tensors]
    assert all(torch.isfinite(g).all() for g in grads)


def test_only_some_gradients_are_requested():
    x, delta, A, B, C, D, bias, h0 = image_problem(1, 2, 9, 3, 2, torch.float32)
    C.requires_grad_()
    table = rows(2, 9)
    vk.cross_selective_scan(x, delta, A, B, C, D, bias, table).sum().backward()
    assert C.grad is not None
    assert x.grad is None
    h0.requires_grad_()
    _, last = vk.cross_selective_scan(x, delta, A, B, C, table=table, initial_state=h0, return_last_state=True)
    last.sum().backward()  # y is unused
    assert torch.isfinite(h0.grad).all()


# batch, dim, states, zoh
ALONE = [(1, 5, 3, False), (3, 5, 3, False), (2, 40, 1, False), (2, 5, 1, False), (1, 20, 16, True), (20, 3, 2, False)]


@pytest.mark.parametrize(("batch", "dim", "states", "zoh"), ALONE)
def test_a_gradient_does_not_depend_on_the_others(backend, batch, dim, states, zoh):
    """Gradients that are not needed may be left out, which changes no bit of the others."""
    if backend in ("triton", "reference") and (batch, dim) != (3, 5):
        pytest.skip("has one way")
    tensors = image_problem(batch, 2, 70 if batch < 4 else 3, dim, states, torch.float32)

    def gradients(*wanted):
        leaves = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
        results = operator(*leaves, backend=backend, discretization="zoh" if zoh else "mamba")
        results = [r for r in results if r.requires_grad]  # no last state depends on C
        return torch.autograd.grad(results, [leaves[i] for i in wanted], [torch.ones_like(r) for r in results])

    for i, grad in enumerate(gradients(*range(8))):
        assert torch.equal(gradients(i)[0], grad), ScanInputs._fields[i]


def test_mixed_precision_inputs():
    """bf16 activations with float32 parameters, as under autocast: float32 accumulation, output in x's dtype."""
    x, delta, A, B, C, D, bias, h0 = image_problem(2, 4, 30, 7, 5, torch.float32)
    half = [t.bfloat16() for t in (x, delta, B, C)]
    tensors = (half[0], half[1], A, half[2], half[3], D, bias, h0)
    ours = run(tensors, lambda *t: operator(*t, backend="cpu"))
    theirs = run(tensors, lambda *t: operator(*t, backend="reference"))
    exact = run([t.double() for t in tensors], lambda *t: operator(*t, backend="reference"))
    assert [t.dtype for t in ours[2:]] == [t.dtype for t in tensors]
    for a, b, e in zip(ours, theirs, exact):
        assert a.dtype == b.dtype
        assert relative_error(a, e) <= max(2 * relative_error(b, e), 2**-24)


def test_second_derivative_of_the_compiled_kernel_is_refused():
    tensors = [t.requires_grad_() for t in image_problem(1, 1, 3, 2, 2, torch.float64)[:5]]
    y = vk.cross_selective_scan(*tensors, backend="cpu")
    (dx,) = torch.autograd.grad(y.sum(), tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        dx.square().sum().backward()


sizes = st.integers(1, 9)


@hypothesis.given(
    sizes, st.integers(1, 5), st.integers(0, 90), st.integers(1, 40), st.integers(1, 20), st.booleans(), st.booleans()
)
def test_cpu_agrees_with_reference_on_any_shape(batch, K, length, dim, states, zoh, with_table):
    batch = min(batch, 3)
    tensors = image_problem(batch, K, length, dim, states, torch.float64, seed=length)
    table = torch.stack([torch.randperm(length) for _ in range(K)]).int() if with_table else None
    cpu = run(tensors, lambda *t: along(table, *t, zoh=zoh, backend="cpu"))
    reference = run(tensors, lambda *t: along(table, *t, zoh=zoh, backend="reference"))
    for a, b in zip(cpu, reference):
        assert a.shape == b.shape
        assert relative_error(a, b) < 1e-12


VARIANT = """
import torch, vmddpm_kernels as vk
from test_scan_accuracy import image_problem, run
from test_scan_behaviour import along
assert {isa!r} in vk.backends()["cpu"].detail, vk.backends()["cpu"].detail
for dtype, bound in ((torch.float32, 2e-6), (torch.float64, 1e-13), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
    for states, zoh in ((1, False), (16, False), (7, True)):
        tensors = image_problem(2, 2, 70, 19, states, dtype)
        cpu, exact = (
            run(t, lambda *t: along(None, *t, backend=b, zoh=zoh))
            for b, t in (("cpu", tensors), ("reference", [t.double() for t in tensors])))
        for a, e in zip(cpu, exact):
            assert (a - e).norm() <= bound * e.norm(), (dtype, states, zoh)
print("variant", "ok")
"""


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa):
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    environment = dict(os.environ, VMDDPM_CPU_ISA=isa, PYTHONPATH=path)
    script = VARIANT.format(isa=isa)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    if "is not available here" in done.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert "variant ok" in done.stdout, done.stderr


def broken(**changes):
    names = ("x", "delta", "A", "B", "C", "D", "delta_bias", "initial_state")
    arguments = dict(zip(names, image_problem(2, 4, 6, 3, 2, torch.float32)))
    arguments["table"] = vk.routes(2, 3)
    return {**arguments, **changes}


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"x": torch.zeros(2, 6)}, ValueError, r"x must have shape \(batch, length, dim\)"),
        ({"x": [1.0]}, TypeError, "x must be a torch.Tensor"),
        ({"x": torch.zeros(2, 6, 3, dtype=torch.int32)}, TypeError, "x must be float16"),
        ({"x": torch.zeros(2, 6, 3, dtype=torch.complex64)}, TypeError, "complex64"),
        ({"delta": torch.zeros(2, 4, 6, 4)}, ValueError, r"delta .* \(batch, routes, length, dim\) = \(2, 4, 6, 3\)"),
        ({"A": torch.zeros(4, 3, 257)}, ValueError, "1 to 256 states"),
        ({"A": torch.zeros(4, 3, 0)}, ValueError, "1 to 256 states"),
        ({"delta": torch.zeros(2, 0, 6, 3), "A": torch.zeros(0, 3, 2)}, ValueError, "at least one route"),
        ({"A": torch.zeros(4, 2, 2)}, ValueError, "A must have shape"),
        ({"B": torch.zeros(2, 4, 2, 6)}, ValueError, "B must have shape"),
        ({"C": torch.zeros(2, 4, 6, 2, device="meta")}, ValueError, "C is on meta"),
        ({"D": torch.zeros(12)}, ValueError, "D must have shape"),
        ({"delta_bias": torch.zeros(3)}, ValueError, "delta_bias must have shape"),
        ({"initial_state": torch.zeros(2, 4, 3)}, ValueError, "initial_state must have shape"),
        ({"table": torch.zeros(4, 6)}, TypeError, "table must be an int32"),
        ({"table": torch.zeros(4, 5, dtype=torch.int32)}, ValueError, "table must have shape"),
        ({"table": vk.routes(2, 3) + 1}, ValueError, "every row of table"),
        ({"table": vk.routes(2, 3) - 1}, ValueError, "every row of table"),
        ({"table": torch.zeros(4, 6, dtype=torch.int32)}, ValueError, "every row of table"),
        ({"discretization": "euler"}, ValueError, "discretization"),
        ({"backend": "tpu"}, ValueError, "unknown backend"),
    ],
)
def test_errors_name_the_argument(backend, changes, error, words):
    with pytest.raises(error, match=words):
        vk.cross_selective_scan(**{"backend": backend, **broken(**changes)})


def test_selective_scan_errors():
    u, A, B = torch.zeros(2, 6, 5), torch.zeros(6, 3), torch.zeros(2, 3, 5)
    for arguments, words in [
        ((u[0], u, A, B, B), "u must have shape"),
        ((u, u[:1], A, B, B), "delta must have shape"),
        ((u, u, A[:5], B, B), "A must have shape"),
        ((u, u, A[0], B, B), "A must have shape"),
        ((u, u, A, B[0], B), "B must have shape"),
        ((u, u, A, torch.zeros(2, 4, 3, 5), B), "divide into the 4 groups"),
        ((u, u, A, B, torch.zeros(2, 2, 3, 5)), "C must have shape"),
        ((u, u, A, B, B, A), "D must have shape"),
        ((u, u, A, B, B, None, A), "z must have shape"),
    ]:
        with pytest.raises(ValueError, match=words):
            vk.selective_scan(*arguments)


@pytest.mark.parametrize("wide", range(8))
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_dtype_of_the_accumulation(backend, wide):
    """float64 if x, delta, A, B or C is; parameters that are only added do not count."""
    tensors = list(image_problem(1, 2, 5, 3, 2, torch.float32))
    tensors[wide] = tensors[wide].double()
    y, last_state = vk.cross_selective_scan(
        *tensors[:7], rows(2, 5), initial_state=tensors[7], return_last_state=True, backend=backend
    )
    assert last_state.dtype == (torch.float64 if wide < 5 else torch.float32)
    assert y.dtype == tensors[0].dtype


@pytest.mark.parametrize(("dtype", "rate", "step"), [
    (torch.float32, -1e30, 1e10), (torch.float32, -1e5, 1e34), (torch.float32, -1.0, float("inf")),
    (torch.float32, float("nan"), 1.0), (torch.float64, -1e308, 10.0), (torch.bfloat16, -1e38, 200.0),
])  # fmt: skip
@pytest.mark.parametrize("states", [1, 3, 16])
def test_a_state_that_decays_at_once(backend, dtype, rate, step, states):
    """delta A overflows: the previous state vanishes, and neither it nor its absence leaves a NaN."""
    if backend != "cpu" and not (math.isfinite(rate) and math.isfinite(step)):
        pytest.skip("how far what is not finite spreads backward is a backend's own")
    parameters = torch.float32 if dtype == torch.bfloat16 else dtype

    def results(name):
        u, delta = torch.ones(1, 20, 2, dtype=dtype), torch.full((1, 20, 2), step, dtype=dtype)
        A, rows = torch.full((20, states), rate, dtype=parameters), torch.ones(1, states, 2, dtype=dtype)
        leaves = [t.requires_grad_() for t in (u, delta, A, rows, rows.clone())]
        y = vk.selective_scan(*leaves, backend=name)
        return y, *torch.autograd.grad(y.sum(), leaves)

    for ours, expected in zip(results(backend), results("reference")):
        finite = expected.isfinite()
        torch.testing.assert_close(ours[finite], expected[finite], rtol=2e-2, atol=0)
        if backend == "cpu":
            assert torch.equal(ours.isnan(), expected.isnan())
