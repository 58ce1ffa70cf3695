"""The causal convolution against its definition as a float64 loop: memory orders, initial and final states, gradients,
state updates, ring buffers, indexed rows, and refusals."""

import itertools
from functools import partial

import pytest
import torch
from oracle import assert_as_accurate, concatenated_results

import vmddpm_kernels as vk
from vmddpm_kernels.compat import causal_conv1d as names
from vmddpm_kernels.ops.causal_conv1d import causal_conv1d_backward, causal_conv1d_forward


def loop(x, weight, bias, history, silu):
    """y (B, D, L) by the definition, one tap of one step at a time; x and history as one sequence."""
    batch, dim, length = x.shape
    width = weight.shape[1]
    whole = torch.cat([x.new_zeros(batch, dim, width - 1) if history is None else history, x], dim=-1)
    steps = []
    for l in range(length):
        v = torch.zeros(batch, dim, dtype=x.dtype) + (0 if bias is None else bias)
        for k in range(width):
            v = v + weight[:, k] * whole[:, :, l + k]
        steps.append(v / (1 + torch.exp(-v)) if silu else v)
    y = torch.stack(steps, dim=-1) if steps else x * 1
    return y, whole[:, :, whole.shape[2] - width + 1 :]


def problem(batch, dim, length, width, dtype, order="steps", bias=True, history=True):
    x = torch.randn(batch, dim, length).to(dtype)
    if order == "channels":
        x = x.mT.contiguous().mT
    if order == "neither":
        x = torch.randn(batch, 2 * dim, 3 * length).to(dtype)[:, ::2, ::3]
    return [
        x, torch.randn(dim, width).to(dtype), torch.randn(dim).to(dtype) if bias else None,
        torch.randn(batch, dim, width - 1).to(dtype) if history else None,
    ]  # fmt: skip


def results(tensors, silu, function):
    """y, the final states, and the gradients of a projection of both."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    y, final = function(leaves, silu)
    g = torch.Generator().manual_seed(4)
    total = sum((r * torch.randn(r.shape, generator=g).to(r.dtype)).sum() for r in (y, final))
    given = [t for t in leaves if t is not None]
    return [y, final, *torch.autograd.grad(total, given, allow_unused=True, materialize_grads=True)]


def ours(backend):
    def convolve(leaves, silu):
        x, weight, bias, history = leaves
        return vk.causal_conv1d(
            x, weight, bias, initial_states=history, return_final_states=True, activation="silu" if silu else None,
            backend=backend,
        )  # fmt: skip

    return convolve


def exact(leaves, silu):
    return loop(*[None if t is None else t.double() for t in leaves], silu)


SIZES = [(2, 5, 7, 4), (1, 40, 33, 3), (2, 19, 2, 4), (3, 17, 1, 3), (1, 2, 40, 2), (2, 3, 5, 7)]


@pytest.mark.parametrize("order", ["steps", "channels", "neither"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_against_a_loop(backend, order, dtype):
    """Widths 2 to 4 on every backend; PyTorch computes wider ones."""
    cases = itertools.product((False, True), (False, True), SIZES)
    interpreted = backend in ("cuda", "triton")  # slow; the `cuda` backend also uses Triton's convolutions
    if interpreted:
        cases = [(True, True, (2, 19, 35, 3 if order == "steps" else 4)), (False, False, (2, 5, 2, 2))]
    for silu, extra, size in cases:
        chosen = backend if size[3] <= 4 else None
        problems = [problem(*size, dtype, order, extra, extra) for _ in range(1 if interpreted else 6)]
        got, want, wide = (
            concatenated_results(problems, partial(results, silu=silu, function=function))
            for function in (ours(chosen), ours("reference"), exact)
        )
        for name, a, b, e in zip(["y", "final", "dx", "dweight", "dbias", "dinitial"], got, want, wide):
            assert_as_accurate(a, b, e, dtype, f"{name} of {size}, {silu=}, {extra=}")


def test_result_has_the_memory_order_of_x(backend):
    for order, stride in (("steps", 1), ("channels", 6), ("neither", 6)):
        x, weight, *_ = problem(2, 6, 9, 3, torch.float32, order)
        y = vk.causal_conv1d(x, weight, backend=backend)
        assert y.stride(2) == stride
        last = vk.causal_conv1d(x.mT, weight, channel_last=True, backend=backend)
        assert torch.equal(last.mT, y)


def test_deterministic(backend):
    tensors = problem(3, 40, 50, 4, torch.float32)
    first, second = (results(tensors, True, ours(backend)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("sizes", [(0, 3, 5), (2, 0, 5), (2, 3, 0)])
def test_nothing_to_do(backend, sizes):
    x, weight = torch.randn(*sizes, requires_grad=True), torch.randn(sizes[1], 3, requires_grad=True)
    y, final = vk.causal_conv1d(x, weight, return_final_states=True, activation="silu", backend=backend)
    assert y.shape == sizes
    assert final.shape == (*sizes[:2], 2)
    assert not final.any()
    (y.sum() + final.sum()).backward()
    assert weight.grad is None or not weight.grad.any()


@pytest.mark.parametrize("steps", [None, 1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_update(backend, steps, dtype):
    """Successive steps equal the whole convolution; the state holds the last inputs, in its own dtype."""
    x, weight, bias, _ = problem(2, 37, 10, 4, dtype)
    for size, channels_side_by_side in itertools.product((3, 4, 6), (False, True)):
        state = torch.zeros(2, 37, size, dtype=torch.float32)
        if channels_side_by_side:
            state = state.mT.contiguous().mT
        pieces = x.unbind(-1) if steps is None else x.split(steps, dim=-1)
        ys = [
            vk.causal_conv1d_update(piece, state, weight, bias, activation="swish", backend=backend)
            for piece in pieces
        ]
        assert all(y.shape == piece.shape and y.dtype == dtype for y, piece in zip(ys, pieces))
        whole = vk.causal_conv1d(x, weight, bias, activation="silu", backend=backend)
        joined = torch.stack(ys, -1) if steps is None else torch.cat(ys, -1)
        torch.testing.assert_close(joined, whole, rtol=2e-6 if dtype == torch.float32 else 1e-2, atol=2e-6)
        assert torch.equal(state, x[:, :, 10 - size :].float())


def test_update_with_gradient(backend):
    """The previous state, x and the weights get gradients, and the state advances as without autograd."""
    x, weight, bias, _ = (t.double().requires_grad_() for t in problem(2, 5, 3, 4, torch.float32))
    before = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    state = before * 1
    y = vk.causal_conv1d_update(x, state, weight, bias, activation="silu", backend=backend)
    want, _ = loop(x, weight, bias, before[:, :, 3:], True)
    got = torch.autograd.grad(y.sum() + state.square().sum(), [x, before, weight, bias])
    whole = torch.cat([before, x], -1)[:, :, 3:]
    expected = torch.autograd.grad(want.sum() + whole.square().sum(), [x, before, weight, bias])
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(state, whole)
    torch.testing.assert_close(got, expected)


def test_update_of_a_ring_and_of_rows(backend):
    """The same steps with the state as a ring buffer, and as a row among the states of other sequences."""
    x, weight, bias, _ = problem(2, 5, 12, 4, torch.float32)
    want = vk.causal_conv1d(x, weight, bias, backend=backend)
    ring, seen, ys = torch.zeros(2, 5, 6), torch.tensor([4, 1], dtype=torch.int32), []
    many, rows, zs = torch.full((4, 5, 6), float("nan")), torch.tensor([3, 1], dtype=torch.int32), []
    many[rows.long()] = 0
    for piece in x.split([1, 2, 3, 6], dim=-1):
        ys.append(vk.causal_conv1d_update(piece, ring, weight, bias, cache_seqlens=seen, backend=backend))
        zs.append(vk.causal_conv1d_update(piece, many, weight, bias, conv_state_indices=rows, backend=backend))
        seen = seen + piece.shape[-1]
    torch.testing.assert_close(torch.cat(ys, -1), want, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(torch.cat(zs, -1), want, rtol=2e-6, atol=2e-6)
    assert torch.equal(many[[3, 1]], x[:, :, 6:])
    assert many[[0, 2]].isnan().all()
    kept, nobody = many.clone(), torch.tensor([-1, 3])
    y = vk.causal_conv1d_update(x[:, :, 0], many, weight, bias, conv_state_indices=nobody, backend=backend)
    assert not y[0].any()
    assert y[1].any()
    assert torch.equal(many[1], kept[1])
    small = torch.zeros(2, 5, 4)
    y = vk.causal_conv1d_update(x, small, weight, bias, cache_seqlens=torch.tensor([1, 2]), backend=backend)
    torch.testing.assert_close(y, want, rtol=2e-6, atol=2e-6)
    assert torch.equal(small[0, :, [1, 2, 3, 0]], x[0, :, 8:])


def test_autograd_is_told_of_the_update(compiled_backend):
    """As with any in-place operation, autograd detects that a state saved for a backward was updated."""
    state, weight = torch.randn(2, 5, 3), torch.randn(5, 4)
    factor = torch.ones((), requires_grad=True)
    saved = (factor * state).sum()
    vk.causal_conv1d_update(torch.randn(2, 5), state, weight, backend=compiled_backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()


def test_opcheck(compiled_backend):
    for order, extra in itertools.product(("steps", "channels", "neither"), (False, True)):
        x, weight, bias, history = problem(2, 5, 7, 4, torch.float32, order, extra, extra)
        arguments = [x.mT, weight, bias, None if history is None else history.mT]
        leaves = [None if t is None else t.detach().requires_grad_() for t in arguments]
        torch.library.opcheck(causal_conv1d_forward, (*leaves, extra, compiled_backend))
        torch.library.opcheck(causal_conv1d_backward, (torch.randn_like(x.mT), *arguments, extra, compiled_backend))


def test_second_derivatives():
    x, weight, *_ = problem(2, 3, 5, 3, torch.float64)
    x.requires_grad_()
    for backend in ("cpu", "reference"):
        y = vk.causal_conv1d(x, weight, activation="silu", backend=backend)
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        if backend == "reference":
            assert torch.autograd.grad(dx.sum(), x)[0].isfinite().all()
        else:
            with pytest.raises(RuntimeError, match="no second derivative; pass backend='reference'"):
                dx.sum().backward()


def test_transforms_compilers_and_forward_mode():
    x, weight, bias, _ = problem(3, 4, 6, 3, torch.float64)

    def f(x):
        return vk.causal_conv1d(x, weight, bias, activation="silu")

    want = f(x)
    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(x), want)
    torch.testing.assert_close(torch.func.vmap(lambda row: f(row[None])[0])(x), want)
    _, tangent = torch.func.jvp(f, (x,), (torch.ones_like(x),))
    numeric = (f(x + 1e-6) - f(x - 1e-6)) / 2e-6
    torch.testing.assert_close(tangent, numeric, rtol=1e-6, atol=1e-8)
    grad = torch.func.grad(lambda x: f(x).sum())(x)
    torch.testing.assert_close(grad.sum(), numeric.sum(), rtol=1e-6, atol=1e-8)


X, W = torch.zeros(2, 6, 9), torch.zeros(6, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: vk.causal_conv1d(X[0], W), ValueError, r"x must have shape \(batch, dim, length\), got \(6, 9\)"),
        (lambda: vk.causal_conv1d(X, W[:5]), ValueError, r"weight must .* \(dim, width\) = \(6, 4\), got \(5, 4\)"),
        (lambda: vk.causal_conv1d(X, W[:, None]), ValueError, "weight must have shape"),
        (lambda: vk.causal_conv1d(X, W, W), ValueError, r"bias must have shape \(dim\) = \(6,\), got \(6, 4\)"),
        (lambda: vk.causal_conv1d(X.int(), W), TypeError, "x must be float16"),
        (lambda: vk.causal_conv1d(X, W, initial_states=X), ValueError, r"initial_states must have shape"),
        (lambda: vk.causal_conv1d(X, W, activation="gelu"), ValueError, 'activation must be None, "silu" or "swish"'),
        (lambda: vk.causal_conv1d(X, W.repeat(1, 2), backend="cpu"), ValueError, "2 to 4 taps with backend 'cpu'"),
        (lambda: vk.causal_conv1d_update(X, X[:, :, :2], W), ValueError, "hold width - 1 = 3 .* state_len = 2"),
        (lambda: vk.causal_conv1d_update(X, X[:1], W), ValueError, r"conv_state must .* \(batch, dim, state_len"),
        (lambda: vk.causal_conv1d_update(X, X, W, cache_seqlens=W), TypeError, "cache_seqlens must be an int32"),
        (lambda: vk.causal_conv1d_update(X, X.clone().requires_grad_(), W), ValueError, "leaf that requires gradient"),
        (lambda: names.causal_conv1d_fn(X, W, seq_idx=X), NotImplementedError, "seq_idx is not supported"),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_names_of_the_package():
    """The arguments of causal_conv1d, including 1.0's, where the activation came fourth."""
    x, weight, bias, history = problem(2, 5, 7, 4, torch.float32, "channels")
    want, last = loop(*(t.double() for t in (x, weight, bias, history)), True)
    out = torch.empty(2, 5, 3)
    y, final = names.causal_conv1d_fn(
        x, weight, bias, initial_states=history, return_final_states=1.0, final_states_out=out, activation="swish"
    )
    assert final is out
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(final.double(), last)
    for function in (names.causal_conv1d_fn, names.causal_conv1d_ref, names.CausalConv1dFn.apply):
        y = function(x, weight, bias, "silu")
        torch.testing.assert_close(y, vk.causal_conv1d(x, weight, bias, activation="silu"), rtol=1e-5, atol=1e-6)
    states = [history.clone(), history.clone()]
    one = names.causal_conv1d_update(x[:, :, 0], states[0], weight, bias, "silu")
    two = names.causal_conv1d_update_ref(x[:, :, 0], states[1], weight, bias, "silu")
    torch.testing.assert_close(one, two)
    assert torch.equal(*states)


@pytest.mark.parametrize("width", [1, 5, 6])
def test_operators_refuse_taps_that_have_no_kernel(width):
    x, weight = torch.randn(2, 9, 6), torch.randn(6, width)
    with pytest.raises(ValueError, match=f"2 to 4 taps with backend 'cpu', got width = {width}"):
        causal_conv1d_forward(x, weight, None, None, False, "cpu")
    with pytest.raises(ValueError, match=f"2 to 4 taps with backend 'cpu', got width = {width}"):
        causal_conv1d_backward(x, x, weight, None, None, False, "cpu")


@pytest.mark.parametrize("width", [1, 6])
def test_a_weight_that_gets_other_taps_before_the_backward(width):
    x, weight = torch.randn(2, 6, 9, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    y = vk.causal_conv1d(x, weight)
    weight.data = torch.randn(6, width)
    with pytest.raises((ValueError, RuntimeError), match=r"taps|version|shape"):
        y.sum().backward()


def test_autocast_rounds_no_plain_convolution():
    x, weight = torch.randn(2, 6, 20), torch.randn(6, 5)
    expected = vk.causal_conv1d(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vk.causal_conv1d(x, weight), expected)


def test_steps_move_on_in_a_wider_state_as_they_are():
    state = torch.full((1, 1, 4), 1 / 3, dtype=torch.float64)
    vk.causal_conv1d_update(torch.zeros(1, 1), state, torch.ones(1, 4))
    assert torch.equal(state[0, 0, :3], torch.full((3,), 1 / 3, dtype=torch.float64))


def test_arguments_in_the_memory_of_the_state():
    whole, weight = torch.randn(3, 3, 4), torch.randn(3, 4)
    with pytest.raises(ValueError, match="pass a clone"):
        vk.causal_conv1d_update(whole[:2, :, 3], whole[1:], weight, backend="cpu")
