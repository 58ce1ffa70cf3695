"""One step of the selective scan against its definition as float64 loops, and the whole scan as repeated steps."""

import itertools
from functools import partial

import pytest
import torch
from oracle import assert_as_accurate, concatenated_results

import vmddpm_kernels as vk
from vmddpm_kernels.compat import state_update as names
from vmddpm_kernels.ops.state_update import state_update


def loop(state, u, delta, A, B, C, D, z, delta_bias, softplus):
    """y (B, H, P) and the next state by the definition, one channel at a time."""
    batch, heads, channels, _ = state.shape
    share = heads // B.shape[1]
    rows, states = [], []
    for b, h, p in itertools.product(range(batch), range(heads), range(channels)):
        d = delta[b, h, p] + (0 if delta_bias is None else delta_bias[h, p])
        d = torch.where(d > 20, d, torch.log1p(torch.exp(d.clamp(max=20)))) if softplus else d
        new = torch.exp(d * A[h, p]) * state[b, h, p] + d * B[b, h // share] * u[b, h, p]
        y = (new * C[b, h // share]).sum() + (0 if D is None else D[h, p] * u[b, h, p])
        rows.append(y if z is None else y * z[b, h, p] / (1 + torch.exp(-z[b, h, p])))
        states.append(new)
    return torch.stack(rows).view(u.shape), torch.stack(states).view(state.shape)


def problem(states, dtype, groups, optional, strided=False):
    """Heads in `groups`, or channels without heads if 0."""
    batch, heads, channels = 2, 4 if groups else 1, 19
    sizes = [
        (batch, heads, channels, states), *[(batch, heads, channels)] * 2, (heads, channels, states),
        *[(batch, groups or 1, states)] * 2, (heads, channels), (batch, heads, channels), (heads, channels),
    ]  # fmt: skip
    tensors = [torch.randn(*(2 * n if strided else n for n in size)).to(dtype) for size in sizes]
    if strided:
        tensors = [t[tuple(slice(None, None, 2) for _ in t.shape)] for t in tensors]
    tensors[3] = -tensors[3].abs()
    tensors[2] = tensors[2] if optional else 0.1 * tensors[2].abs()
    if not optional:
        tensors[6:] = [None] * 3
    return tensors


def without_heads(tensors):
    axes = (1, 1, 1, 0, 1, 1, 0, 1, 0)
    return [None if t is None else t.squeeze(axis) for t, axis in zip(tensors, axes)]


def results(tensors, function):
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    y, state = function(leaves)
    g = torch.Generator().manual_seed(4)
    total = sum((r * torch.randn(r.shape, generator=g).to(r.dtype)).sum() for r in (y, state))
    return [y, state, *torch.autograd.grad(total, [t for t in leaves if t is not None])]


def update_with(backend, softplus, heads=True):
    def update(leaves):
        arguments = leaves if heads else without_heads(leaves)
        state = arguments[0] * 1
        y = vk.selective_state_update(state, *arguments[1:], delta_softplus=softplus, backend=backend)
        return (y, state) if heads else (y.unsqueeze(1), state.unsqueeze(1))

    return update


def exact(leaves, softplus):
    return loop(*[t if t is None else t.double() for t in leaves], softplus)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("states", "groups"), [(16, 0), (3, 0), (16, 2), (20, 4), (64, 1)])
def test_against_a_loop(backend, dtype, states, groups):
    for optional in (False, True):
        problems = [problem(states, dtype, groups, optional, strided=states == 20) for _ in range(2)]
        got, want, wide = (
            concatenated_results(problems, partial(results, function=function))
            for function in (
                update_with(backend, optional, groups > 0),
                update_with("reference", optional, groups > 0),
                partial(exact, softplus=optional),
            )
        )
        listed = ["y", "state", "dstate", "du", "ddelta", "dA", "dB", "dC", "dD", "dz", "ddelta_bias"]
        for name, a, b, e in zip(listed, got, want, wide):
            assert_as_accurate(a, b, e, dtype, f"{name}, {optional=}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_place_as_with_gradient(backend, dtype):
    """Without autograd the state is updated in place, with the same values in every dtype and memory order."""
    for states, optional, strided in itertools.product((16, 5), (False, True), (False, True)):
        tensors = problem(states, dtype, 2, optional, strided)
        y, state = update_with(backend, optional)([None if t is None else t.detach().requires_grad_() for t in tensors])
        for kept in (tensors[0], tensors[0].mT.contiguous().mT, tensors[0].clone().float()):
            moving = kept.clone(memory_format=torch.preserve_format)
            got = vk.selective_state_update(moving, *tensors[1:], delta_softplus=optional, backend=backend)
            assert got.dtype == dtype
            torch.testing.assert_close(got, y, rtol=0, atol=0)
            if kept.dtype == dtype:
                torch.testing.assert_close(moving, state, rtol=0, atol=0)


def test_steps_are_the_scan(backend):
    u, delta, z = (torch.randn(2, 12, 9) for _ in range(3))
    A, B, C = -torch.rand(12, 16), torch.randn(2, 16, 9), torch.randn(2, 16, 9)
    D, bias = torch.randn(12), torch.randn(12)
    want, last = vk.selective_scan(
        u, delta, A, B, C, D, z, bias, delta_softplus=True, return_last_state=True, backend=backend
    )
    state = torch.zeros(2, 12, 16)
    steps = zip(*(t.unbind(-1) for t in (u, delta, B, C, z)))
    ys = [
        vk.selective_state_update(
            state, u_l, delta_l, A, B_l, C_l, D, z_l, bias, delta_softplus=True, backend=backend
        )
        for u_l, delta_l, B_l, C_l, z_l in steps
    ]
    torch.testing.assert_close(torch.stack(ys, -1), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


def test_A_and_step_sizes_of_whole_heads(backend):
    """As in Mamba-2: one number, expanded over all channels and states of a head."""
    state, u, _, _, B, C, D, z, _ = problem(16, torch.float32, 2, True)
    delta, A, bias = torch.rand(2, 4, 1), -torch.rand(4, 1, 1), torch.rand(4, 1)
    expanded = (delta.expand(2, 4, 19), A.expand(4, 19, 16), bias.expand(4, 19))
    copied = [t.contiguous() for t in expanded]
    got = [
        vk.selective_state_update(s, u, d, a, B, C, D, z, b, delta_softplus=True, backend=backend)
        for s, (d, a, b) in ((state.clone(), expanded), (state.clone(), copied))
    ]
    assert torch.equal(*got)


def test_autograd_is_told_of_the_update(compiled_backend):
    tensors = problem(16, torch.float32, 0, True)
    state, *others = without_heads(tensors)
    state = state.clone()
    saved = (torch.ones((), requires_grad=True) * state).sum()
    vk.selective_state_update(state, *others, backend=compiled_backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()


def test_opcheck(compiled_backend):
    for groups, optional in ((0, False), (2, True)):
        tensors = problem(5, torch.float32, groups, optional, strided=optional)
        tensors = tensors if groups else without_heads(tensors)
        leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
        torch.library.opcheck(state_update, (*leaves, optional, compiled_backend))


def test_second_derivatives():
    """The derivative of a step is plain PyTorch on every backend: gradgradcheck holds."""
    tensors = problem(3, torch.float64, 2, True)
    leaves = [t[..., :2].contiguous().requires_grad_() if t.shape[-1] == 19 else t.requires_grad_() for t in tensors]
    leaves[0], leaves[3] = (leaves[i].detach()[..., :2, :].contiguous().requires_grad_() for i in (0, 3))

    def update(*leaves):
        state = leaves[0] * 1
        return vk.selective_state_update(state, *leaves[1:], delta_softplus=True), state

    assert torch.autograd.gradcheck(update, leaves)
    assert torch.autograd.gradgradcheck(update, leaves)


def test_transforms_compilers_and_forward_mode():
    state, u, *others = without_heads(problem(4, torch.float64, 0, True))

    def f(u):
        return vk.selective_state_update(state.clone(), u, *others, delta_softplus=True)

    want = f(u)
    torch.testing.assert_close(torch.compile(f, fullgraph=True, backend="aot_eager")(u), want)
    _, tangent = torch.func.jvp(f, (u,), (torch.ones_like(u),))
    numeric = (f(u + 1e-6) - f(u - 1e-6)) / 2e-6
    torch.testing.assert_close(tangent, numeric, rtol=1e-6, atol=1e-8)


STATE, U, A, B = torch.zeros(2, 6, 4), torch.zeros(2, 6), torch.zeros(6, 4), torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((STATE[0], U, U, A, B, B), ValueError, r"state must have shape \(batch, dim, d_state\), got \(6, 4\)"),
        ((STATE, U[:1], U, A, B, B), ValueError, r"u must have shape \(batch, dim\) = \(2, 6\), got \(1, 6\)"),
        ((STATE, U, U, A.T, B, B), ValueError, r"A must have shape \(dim, d_state\) = \(6, 4\), got \(4, 6\)"),
        ((STATE, U, U, A, B, B.int()), TypeError, "C must be float16"),
        ((STATE, U, U, A, B, B, A), ValueError, r"D must have shape \(dim\) = \(6,\)"),
        ((STATE[:1].expand(2, 6, 4), U, U, A, B, B), ValueError, "must not be expanded"),
        ((STATE.clone().requires_grad_(), U, U, A, B, B), ValueError, "state is a leaf that requires gradient"),
        ((STATE[:, None].repeat(1, 3, 1, 1), U, U, A, STATE[:, :2], B), ValueError, "3 heads of state must divide"),
    ],
)
def test_what_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        vk.selective_state_update(*arguments)


def test_names_of_mamba_ssm():
    """mamba_ssm's arguments, flags by truth value, and rows of a larger state."""
    state, x, dt, A, B, C, D, z, bias = without_heads(problem(16, torch.float32, 0, True))
    want = state.clone()
    y = vk.selective_state_update(want, x, dt, A, B, C, D, z, bias, delta_softplus=True)
    for function in (names.selective_state_update, names.selective_state_update_ref):
        moving = state.clone()
        got = function(moving, x, dt, A, B, C, D, z=z, dt_bias=bias, dt_softplus=1.0)
        torch.testing.assert_close((got, moving), (y, want), rtol=1e-5, atol=1e-6)
    many, rows = torch.zeros(4, *state.shape[1:]), torch.tensor([3, 1], dtype=torch.int32)
    many[rows.long()] = state
    got = names.selective_state_update(many, x, dt, A, B, C, D, z, bias, True, state_batch_indices=rows)
    assert torch.equal(got, y)
    assert torch.equal(many[[3, 1]], want)
    assert not many[[0, 2]].any()


def test_arguments_in_the_memory_of_the_state():
    state, u = torch.randn(1, 20, 16), torch.ones(1, 20)
    with pytest.raises(ValueError, match="pass a clone"):
        vk.selective_state_update(state, u, u, -torch.ones(20, 16), state[:, 0], state[:, 1], backend="cpu")
    overlapping = torch.randn(64).as_strided((2, 6, 16), (1, 1, 1))
    with pytest.raises(ValueError, match="must not be expanded"):
        vk.selective_state_update(overlapping, *[torch.ones(2, 6)] * 2, -torch.ones(6, 16), *[torch.ones(2, 16)] * 2)


def test_no_decay_over_any_step():
    """A = 0 means no decay even for a step near the largest number."""
    state, u = torch.ones(1, 1, 1), torch.zeros(1, 1)
    B = torch.ones(1, 1)
    y = vk.selective_state_update(state, u, torch.full((1, 1), 3e38), torch.full((1, 1), -0.0), B, B, backend="cpu")
    assert y.item() == 1
