"""mamba_ssm's functions against float64 loops: all forms of B and C, gates, last states, complex states, the block."""

import inspect
import itertools

import numpy as np
import pytest
import torch
from oracle import assert_as_accurate, concatenated_results, scan_loop

from vmddpm_kernels.compat import mamba_ssm
from vmddpm_kernels.compat.mamba_ssm import (
    bimamba_inner_fn,
    mamba_inner_fn,
    mamba_inner_fn_no_out_proj,
    mamba_inner_ref,
    selective_scan_fn,
    selective_scan_ref,
)

BATCH, DIM, LENGTH, STATES = 2, 6, 11, 3


def normal(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


def matrix(form):
    """B or C in a form that mamba_ssm takes: constant, one group, three groups."""
    shapes = {"D, N": (DIM, STATES), "B, N, L": (BATCH, STATES, LENGTH), "B, G, N, L": (BATCH, 3, STATES, LENGTH)}
    return normal(*shapes[form])


def of_channels(t):
    """B or C in any form -> (B, D, L, N), one per channel, by the definition of the forms."""
    if t.dim() == 2:
        return torch.stack([torch.stack([t[d].expand(LENGTH, -1) for d in range(DIM)])] * BATCH)
    groups = t.shape[1] if t.dim() == 4 else 1
    rows = [t[:, d // (DIM // groups)] if t.dim() == 4 else t for d in range(DIM)]
    return torch.stack(rows, dim=1).transpose(2, 3)


def loop(u, delta, A, B, C, D, z, delta_bias, softplus):
    """out (B, D, L) and the last state (B, D, N), with every channel as its own route."""
    y, last = scan_loop(
        u[..., None], delta[..., None], A[:, None], of_channels(B), of_channels(C), None, delta_bias[:, None],
        softplus=softplus, merge=False,
    )  # fmt: skip
    y = y[..., 0]
    y = 2 * y.real if A.is_complex() else y
    return (y + D[:, None] * u) * (z / (1 + torch.exp(-z))), last[:, :, 0]


def arguments(form_B="B, N, L", form_C="B, N, L"):
    u, delta, z = (normal(BATCH, DIM, LENGTH) for _ in range(3))
    return [u, delta, -torch.rand(DIM, STATES).double(), matrix(form_B), matrix(form_C), normal(DIM), z, normal(DIM)]


def run(function, tensors):
    """out, the last state, and all gradients of a projection of both."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out, last = function(*leaves)
    g = torch.Generator().manual_seed(9)
    total = sum((o * torch.randn(o.shape, generator=g).to(o.dtype)).sum() for o in (out, last))
    return [out, last, *torch.autograd.grad(total, leaves)]


FORMS = ["D, N", "B, N, L", "B, G, N, L"]


@pytest.mark.parametrize(("form_B", "form_C"), list(itertools.product(FORMS, FORMS)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_form_of_B_and_C(form_B, form_C, dtype):
    problems = [[t.to(dtype) for t in arguments(form_B, form_C)] for _ in range(12)]
    ours = concatenated_results(problems, lambda p: run(lambda *t: selective_scan_fn(*t, True, True), p))
    theirs = concatenated_results(problems, lambda p: run(lambda *t: selective_scan_ref(*t, True, True), p))
    exact = concatenated_results(problems, lambda p: run(lambda *t: loop(*t, True), [t.double() for t in p]))
    names = ["out", "last_state", "du", "ddelta", "dA", "dB", "dC", "dD", "dz", "ddelta_bias"]
    for name, a, b, e in zip(names, ours, theirs, exact):
        assert_as_accurate(a, b, e, dtype, name)


def test_defaults_and_positions():
    """As in mamba_ssm: z is seventh, softplus is off, and no state is returned."""
    u, delta, A, B, C, D, z, bias = arguments()
    zero = torch.zeros(DIM).double()
    for function in (selective_scan_fn, selective_scan_ref, mamba_ssm.SelectiveScanFn.apply):
        expected = "u delta A B C D z delta_bias delta_softplus return_last_state"
        assert list(inspect.signature(function).parameters) == expected.split()
        torch.testing.assert_close(function(u, delta, A, B, C, D, z), loop(u, delta, A, B, C, D, z, zero, False)[0])
        torch.testing.assert_close(
            function(u, delta, A, B, C, D, z=z, delta_bias=bias, delta_softplus=True),
            loop(u, delta, A, B, C, D, z, bias, True)[0],
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_with_float32_parameters(dtype):
    tensors = [t.to(dtype if i in (0, 1, 3, 4, 6) else torch.float32) for i, t in enumerate(arguments())]
    out, last = selective_scan_fn(*tensors, True, True)
    assert (out.dtype, last.dtype) == (dtype, torch.float32)
    reference, last_reference = selective_scan_ref(*tensors, True, True)
    exact, last_exact = loop(*(t.double() for t in tensors), True)
    assert_as_accurate(out, reference, exact, dtype, "out")
    assert_as_accurate(last, last_reference, last_exact, torch.float32, "last_state")


def complex_arguments(form_B, form_C):
    """Arguments for the function, and for the loop."""
    u, delta, A, _, _, D, z, bias = arguments()
    A = torch.complex(A, normal(DIM, STATES))
    given, meant = [], []
    for form in (form_B, form_C):
        t = torch.complex(matrix(form), matrix(form))
        meant.append(t)
        given.append(t if t.dim() == 2 else torch.stack([t.real, t.imag], dim=-1).flatten(-2))
    return [u, delta, A, *given, D, z, bias], [u, delta, A, *meant, D, z, bias]


@pytest.mark.parametrize(("form_B", "form_C"), list(itertools.product(FORMS, FORMS)))
def test_complex_states(form_B, form_C):
    given, meant = complex_arguments(form_B, form_C)
    for function in (selective_scan_fn, selective_scan_ref):
        out, last = function(*given, True, True)
        exact, exact_last = loop(*meant, True)
        torch.testing.assert_close(out, exact)
        torch.testing.assert_close(last, exact_last)


def test_gradient_of_complex_states():
    given, _ = complex_arguments("B, N, L", "D, N")
    given = [t[:1] if t.shape[0] == BATCH else t for t in given]
    leaves = [(t[..., :4] if t.shape[-1] == LENGTH else t[..., :8] if t.shape[-1] == 2 * LENGTH else t) for t in given]
    leaves = [t.clone().requires_grad_() for t in leaves]
    assert torch.autograd.gradcheck(lambda *t: selective_scan_fn(*t, True), leaves, fast_mode=True)


RANK, WIDTH, OUT = 2, 4, 5


def block(complex_states=False, **given):
    """Arguments of mamba_inner_fn."""
    A = -torch.rand(DIM, STATES).double()
    per_state = STATES * (2 if complex_states else 1)
    rows = RANK + per_state * sum(name not in given for name in ("B", "C"))
    return {
        "xz": normal(BATCH, 2 * DIM, LENGTH), "conv1d_weight": normal(DIM, 1, WIDTH), "conv1d_bias": normal(DIM),
        "x_proj_weight": normal(rows, DIM) / 3, "delta_proj_weight": normal(DIM, RANK),
        "out_proj_weight": normal(OUT, DIM), "out_proj_bias": normal(OUT),
        "A": torch.complex(A, normal(DIM, STATES)) if complex_states else A, "D": normal(DIM),
        "delta_bias": normal(DIM), **given,
    }  # fmt: skip


def rms(t, weight, eps):
    return t if weight is None else t / (t.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def scan_inputs(xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B=None, C=None, **options):
    """The scan's inputs in the block, x, delta, B, C, z, by definition: x (B, D, L), B and C (B, N, L) or as given."""
    states = STATES * (2 if A.is_complex() else 1)
    x, z = xz[:, :DIM], xz[:, DIM:]
    conv = torch.zeros_like(x)
    for step, w in itertools.product(range(LENGTH), range(WIDTH)):
        source = step - (WIDTH - 1) + w
        if source >= 0:
            conv[:, :, step] += conv1d_weight[:, 0, w] * x[:, :, source]
    x = conv + conv1d_bias[:, None]
    x = x / (1 + torch.exp(-x))
    projected = torch.einsum("rd,bdl->blr", x_proj_weight, x)
    delta = rms(projected[..., :RANK] @ delta_proj_weight.T, options.get("dt_rms_weight"), 1e-6).transpose(1, 2)

    def variable(name, t):
        t = rms(t + options.get(f"{name}_proj_bias", 0), options.get(f"{name.lower()}_rms_weight"), 1e-6)
        if A.is_complex():
            t = torch.complex(t[..., 0::2], t[..., 1::2])
        return t.transpose(1, 2)

    B = variable("B", projected[..., RANK : RANK + states]) if B is None else B
    C = variable("C", projected[..., -states:]) if C is None else C
    return x, delta, B, C, z


def block_loop(arguments):
    kept = {name: value for name, value in arguments.items() if not name.startswith("out_proj")}
    x, delta, B, C, z = scan_inputs(**kept)
    y, _ = loop(x, delta, arguments["A"], B, C, arguments["D"], z, arguments["delta_bias"], True)
    return torch.einsum("ed,bdl->ble", arguments["out_proj_weight"], y) + arguments["out_proj_bias"]


VARIANTS = {
    "variable": {},
    "constant B": {"B": (DIM, STATES)},
    "constant C": {"C": (DIM, STATES)},
    "biased": {"B_proj_bias": (STATES,), "C_proj_bias": (STATES,)},
    "normalized": {"b_rms_weight": (STATES,), "c_rms_weight": (STATES,), "dt_rms_weight": (DIM,)},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_mamba_block(variant):
    arguments = block(**{name: normal(*shape) for name, shape in VARIANTS[variant].items()})
    # RMS norms compute in float32, like mamba_ssm's kernels.
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if variant == "normalized" else {}
    torch.testing.assert_close(mamba_inner_fn(**arguments), block_loop(arguments), **tolerance)
    if variant != "normalized":
        torch.testing.assert_close(mamba_inner_ref(**arguments), block_loop(arguments))
        assert torch.autograd.gradcheck(
            lambda xz, w: mamba_inner_fn(**{**arguments, "xz": xz, "x_proj_weight": w}),
            (arguments["xz"].requires_grad_(), arguments["x_proj_weight"].requires_grad_()),
            fast_mode=True,
        )


def test_mamba_block_with_complex_states():
    arguments = block(complex_states=True)
    torch.testing.assert_close(mamba_inner_fn(**arguments), block_loop(arguments))


@pytest.mark.parametrize("complex_states", [False, True])
def test_both_directions(complex_states):
    """Vim's block: the sum of a forward scan with A and a backward scan with A_b, each gated."""
    arguments = block(complex_states)
    A_b = arguments["A"] * 0.5
    kept = {name: value for name, value in arguments.items() if not name.startswith("out_proj")}
    x, delta, B, C, z = scan_inputs(**kept)
    forward, _ = loop(x, delta, arguments["A"], B, C, arguments["D"], z, arguments["delta_bias"], True)
    flipped = [t.flip(-1) for t in (x, delta, B, C, z)]
    backward, _ = loop(
        *flipped[:2], A_b, *flipped[2:4], arguments["D"], flipped[4], arguments["delta_bias"], True
    )  # fmt: skip
    torch.testing.assert_close(mamba_inner_fn_no_out_proj(**kept), forward)
    y = forward + backward.flip(-1)
    expected = torch.einsum("ed,bdl->ble", arguments["out_proj_weight"], y) + arguments["out_proj_bias"]
    torch.testing.assert_close(bimamba_inner_fn(**arguments, A_b=A_b), expected)


def test_mamba_block_under_autocast():
    arguments = {name: t.float() for name, t in block().items()}
    with torch.autocast("cpu", torch.bfloat16):
        out = mamba_inner_fn(**arguments)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), mamba_inner_fn(**arguments), rtol=0.1, atol=0.2)


def test_errors_name_the_argument():
    u, delta, A, B, C, D, _, bias = arguments()
    groups = [normal(BATCH, count, STATES, LENGTH) for count in (2, 3, 4)]
    inner = block()
    sparse = A.to(torch.complex64).to_sparse()
    for call, error, words in [
        (lambda: selective_scan_fn(u[0], delta, A, B, C), ValueError, r"u must have shape \(batch, dim, length\)"),
        (lambda: selective_scan_fn(u, delta, A, B[0, 0], C), ValueError, r"B must have shape"),
        (lambda: selective_scan_fn(u, delta, A, normal(5, STATES), C), ValueError, "B must have shape"),
        (lambda: selective_scan_fn(u, delta, A, groups[2], C), ValueError, "4 groups of B"),
        (lambda: selective_scan_fn(u, delta, A, *groups[:2]), ValueError, "got 2 and 3"),
        (lambda: selective_scan_fn(u, delta, A, B, C, bias, D), ValueError, "z must have shape"),
        (lambda: selective_scan_fn(u, delta, A, B, C, delta_softplus="no"), TypeError, "delta_softplus must be"),
        (lambda: selective_scan_fn(u, delta, A.to(torch.complex64), B, C), ValueError, r"B must .*2 \* length"),
        (lambda: selective_scan_fn(u, delta, sparse, B, C), TypeError, "A must be a dense tensor"),
        (lambda: selective_scan_fn(u, delta, sparse.to_dense(), sparse, C), TypeError, "B must be a dense tensor"),
        (lambda: mamba_inner_fn(**{**inner, "xz": inner["xz"][:, 1:]}), ValueError, "xz must have shape"),
        (lambda: mamba_inner_fn(**{**inner, "x_proj_weight": inner["A"]}), ValueError, "x_proj_weight must have"),
        (lambda: mamba_inner_fn(**{**inner, "xz": inner["xz"].float()}), TypeError, "x_proj_weight must have xz's"),
    ]:
        with pytest.raises(error, match=words):
            call()


@pytest.mark.parametrize("truth", [1, 1.0, np.bool_(True), np.float32(2), torch.tensor(True)])
@pytest.mark.parametrize("opposite", [None, 0, 0.0, np.bool_(False), torch.tensor(False)])
def test_flags_count_by_their_truth(truth, opposite):
    u, delta, A, B, C, *_ = arguments()
    want, last = selective_scan_fn(u, delta, A, B, C, delta_softplus=True, return_last_state=True)
    got, state = selective_scan_fn(u, delta, A, B, C, None, None, None, truth, truth)
    assert torch.equal(got, want)
    assert torch.equal(state, last)
    plain = selective_scan_fn(u, delta, A, B, C)
    assert torch.equal(selective_scan_fn(u, delta, A, B, C, None, None, None, opposite, opposite), plain)


@pytest.mark.parametrize("flag", ["yes", [], [True], torch.ones(2), np.ones(2)])
def test_what_is_no_flag_is_refused(flag):
    u, delta, A, B, C, *_ = arguments()
    for name in ("delta_softplus", "return_last_state"):
        with pytest.raises(TypeError, match=f"{name} must be True or False"):
            selective_scan_fn(u, delta, A, B, C, **{name: flag})
