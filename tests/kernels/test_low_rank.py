"""Low-rank step sizes (`dt_proj`), against float64 loops that form them first, and tested like every other input."""

import pytest
import torch
from oracle import assert_as_accurate, scan_loop
from test_fuzz import RTOL
from test_operator_boundary import WRONG
from test_scan_accuracy import image_problem
from test_torch_compile import assert_same, compiled
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

import vmddpm_kernels as vk
import vmddpm_kernels.flops
from vmddpm_kernels.backends.extension import native
from vmddpm_kernels.ops.selective_scan import scan, selective_scan_backward, selective_scan_forward
from vmddpm_kernels.scan_inputs import ScanInputs, scan_options

OPS = torch.ops.vmddpm


def low_rank_problem(batch, K, length, dim, states, rank, dtype, seed=0):
    """`image_problem` with a factor (B, K, L, R) for delta and the weight (K, D, R) as the ninth tensor."""
    x, _, *rest = image_problem(batch, K, length, dim, states, torch.float64, seed)
    g = torch.Generator().manual_seed(seed + 1000)
    factor = torch.randn(batch, K, length, rank, generator=g, dtype=torch.float64)
    weight = torch.randn(K, dim, rank, generator=g, dtype=torch.float64) / rank**0.5
    return [t.to(dtype) for t in (x, factor, *rest, weight)]


def orders(K, length):
    g = torch.Generator().manual_seed(length)
    return torch.stack([torch.randperm(length, generator=g) for _ in range(K)]).int()


def operator(*t, table, **options):
    return vk.cross_selective_scan(
        *t[:7], table, initial_state=t[7], dt_proj=t[8], return_last_state=True, delta_softplus=True, **options
    )


def loop(*t, table, zoh=False):
    return scan_loop(t[0], t[1] @ t[8].mT, *t[2:8], table=table, zoh=zoh)


def run(tensors, function):
    """Results, and gradients of a fixed projection of them."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    results = function(*leaves)
    g = torch.Generator().manual_seed(99)
    weights = [torch.randn(r.shape, generator=g, dtype=torch.float64).to(r.dtype) for r in results]
    projection = sum((r * w).sum() for r, w in zip(results, weights))
    return [*results, *torch.autograd.grad(projection, leaves, allow_unused=True, materialize_grads=True)]


def assert_accurate(tensors, backends, dtype, table, **options):
    exact = run([t.double() for t in tensors], lambda *t: loop(*t, table=table, zoh=options != {}))
    reference = run(tensors, lambda *t: operator(*t, table=table, backend="reference", **options))
    for backend in backends:
        ours = run(tensors, lambda *t, b=backend: operator(*t, table=table, backend=b, **options))
        names = ("y", "last_state", *ScanInputs._fields[:9])
        for name, value, theirs, want in zip(names, ours, reference, exact, strict=True):
            assert value.dtype == theirs.dtype
            of = value.dtype if name == "last_state" else dtype
            assert_as_accurate(value, theirs, want, of, f"{name} on {backend}")


@pytest.mark.parametrize("zoh", [False, True])
@pytest.mark.parametrize(
    ("batch", "K", "length", "dim", "states", "rank"),
    [(2, 4, 150, 49, 16, 6), (1, 2, 70, 130, 5, 17), (2, 1, 33, 65, 1, 3), (3, 4, 9, 20, 4, 48)],
)
def test_float32(batch, K, length, dim, states, rank, zoh):
    tensors = low_rank_problem(batch, K, length, dim, states, rank, torch.float32)
    options = {"discretization": "zoh"} if zoh else {}
    assert_accurate(tensors, ["cpu"], torch.float32, orders(K, length), **options)


def test_float32_where_step_sizes_are_formed_first(compiled_backend):
    assert_accurate(low_rank_problem(2, 2, 9, 33, 4, 5, torch.float32), [compiled_backend], torch.float32, orders(2, 9))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(dtype):
    for states in (1, 6):
        assert_accurate(low_rank_problem(2, 4, 70, 37, states, 5, dtype), ["cpu"], dtype, orders(4, 70))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_where_step_sizes_are_formed_first(compiled_backend, dtype):
    """They are rounded to their factor's dtype, as a linear layer would."""
    if compiled_backend == "cpu":
        pytest.skip("forms them in float32")
    tensors, table = low_rank_problem(1, 2, 6, 9, 4, 5, dtype), orders(2, 6)
    y, state = operator(*tensors, table=table, backend=compiled_backend)
    delta = tensors[1] @ tensors[8].mT
    given = vk.cross_selective_scan(
        tensors[0], delta, *tensors[2:7], table, initial_state=tensors[7], return_last_state=True, delta_softplus=True,
        backend=compiled_backend,
    )  # fmt: skip
    torch.testing.assert_close((y, state), given, rtol=RTOL[dtype], atol=RTOL[dtype])


def test_mixed_dtypes(backend):
    """bfloat16 activations with float32 parameters, as under autocast; autocast itself changes nothing."""
    tensors, table = low_rank_problem(1, 2, 6, 9, 4, 5, torch.float32), orders(2, 6)
    for i in (0, 1, 3, 4):
        tensors[i] = tensors[i].bfloat16()

    def function(*t):
        return operator(*t, table=table, backend=backend)

    def under_autocast(*t):
        with torch.autocast("cpu", torch.bfloat16):
            return function(*t)

    plain, cast = run(tensors, function), run(tensors, under_autocast)
    for a, b, t in zip(plain, cast, (tensors[0], tensors[7], *tensors), strict=True):
        assert a.dtype == b.dtype == t.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize(("groups", "channel_last"), [(1, True), (2, False)])
def test_selective_scan(backend, channel_last, groups):
    g = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    u, factor, z = normal(2, 11, 8), normal(2, 11, 3), normal(2, 11, 8)
    B, C, weight, A = normal(2, 11, groups, 4), normal(2, 11, groups, 4), normal(8, 3), -normal(8, 4).abs() - 0.1
    if not channel_last:
        u, factor, z, B, C = (t.movedim(1, -1) for t in (u, factor, z, B, C))
    leaves = [t.requires_grad_() for t in (u, factor, A, B, C, z, weight)]
    options = {"delta_softplus": True, "channel_last": channel_last, "backend": backend}
    ours = vk.selective_scan(*leaves[:5], z=z, dt_proj=weight, **options)
    delta = factor @ weight.mT if channel_last else weight @ factor
    theirs = vk.selective_scan(u, delta, *leaves[2:5], z=z, **{**options, "backend": "reference"})
    torch.testing.assert_close(ours, theirs)
    dy = normal(*ours.shape)
    for a, b in zip(torch.autograd.grad(ours, leaves, dy), torch.autograd.grad(theirs, leaves, dy), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("zoh", [False, True])
def test_gradcheck(zoh):
    tensors = [t.requires_grad_() for t in low_rank_problem(1, 2, 5, 3, 2, 2, torch.float64)]
    table, options = orders(2, 5), {"discretization": "zoh" if zoh else "mamba", "backend": "cpu"}
    assert torch.autograd.gradcheck(lambda *t: operator(*t, table=table, **options), tensors)


def test_gradcheck_where_step_sizes_are_formed_first(backend):
    """Along one direction only, because GPUs are emulated."""
    tensors = [t.requires_grad_() for t in low_rank_problem(1, 1, 2, 3, 2, 2, torch.float64)]
    assert torch.autograd.gradcheck(
        lambda *t: operator(*t, table=orders(1, 2), backend=backend), tensors, fast_mode=True
    )


@pytest.mark.parametrize(("batch", "dim", "states", "rank"), [(3, 50, 7, 5), (3, 50, 1, 17), (1, 150, 4, 9)])
def test_bitwise_repeatable_and_independent_of_threads(batch, dim, states, rank):
    tensors, table = low_rank_problem(batch, 4, 150, dim, states, rank, torch.float32), orders(4, 150)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 2, 3):
            torch.set_num_threads(count)
            results.append(run(tensors, lambda *t: operator(*t, table=table, backend="cpu")))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_any_strides(backend):
    tensors, table = low_rank_problem(2, 3, 7, 19, 5, 4, torch.float32), orders(3, 7)
    expected = run(tensors, lambda *t: operator(*t, table=table, backend=backend))
    found = run(tensors, lambda *t: operator(*map(strided_leaf, t), table=table, backend=backend))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def strided_leaf(t):
    """A leaf with gradient and every stride changed."""
    return torch.stack([t, torch.full_like(t, float("nan"))], -1)[..., 0]


@pytest.mark.parametrize("index", range(9))
def test_a_single_gradient_equals_that_of_all(index):
    tensors, table = low_rank_problem(2, 2, 70, 37, 4, 5, torch.float32), orders(2, 70)

    def gradients(*indices):
        leaves = [t.detach().requires_grad_(i in indices) for i, t in enumerate(tensors)]
        results = [r for r in operator(*leaves, table=table, backend="cpu") if r.requires_grad]
        return torch.autograd.grad(results, [leaves[i] for i in indices], [torch.ones_like(r) for r in results])

    assert torch.equal(gradients(index)[0], gradients(*range(9))[index])


@pytest.mark.parametrize("sizes", [(0, 2, 5, 3, 2, 2), (2, 2, 0, 3, 2, 2), (2, 2, 5, 0, 2, 2)])
def test_nothing_to_scan(backend, sizes):
    tensors, table = low_rank_problem(*sizes, torch.float32), orders(2, sizes[2])
    for ours, expected in zip(
        run(tensors, lambda *t: operator(*t, table=table, backend=backend)),
        run(tensors, lambda *t: operator(*t, table=table, backend="reference")),
        strict=True,
    ):
        assert torch.equal(ours, expected)


def inputs_of(rank=3):
    return ScanInputs(*low_rank_problem(2, 3, 12, 5, 4, rank, torch.float32), orders(3, 12))


@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("name", ["delta", "A", "B", "dt_proj"])
def test_a_wrong_input_is_named(backend, name, how):
    inputs, options = inputs_of(), (True, False, False, backend)
    wrong = inputs._replace(**{name: WRONG[how](getattr(inputs, name))})
    y, last_state, checkpoints, order = selective_scan_forward(*inputs, *options, True)
    named = "delta|dt_proj" if (name, how) == ("dt_proj", "last axis") else "A|B" if name == "A" else name
    for call in (
        lambda: selective_scan_forward(*wrong, *options, True),
        lambda: selective_scan_backward(y, last_state, *wrong._replace(table=order), checkpoints, *options),
    ):
        with pytest.raises((TypeError, ValueError), match=rf"^({named}) (.*must|is on)"):
            call()


def test_the_extension_takes_what_python_takes():
    inputs = inputs_of()
    assert native.scan_sizes(inputs, None, None) == inputs.sizes()
    wide = inputs._replace(dt_proj=inputs.dt_proj.double())
    assert native.scan_sizes(wide, None, None) == wide.sizes()
    assert wide.sizes().wide
    for wrong in (*(change(inputs.dt_proj) for change in WRONG.values()), inputs.dt_proj[..., :0], "text", 3):
        assert native.scan_sizes(inputs._replace(dt_proj=wrong), None, None) is None
    assert native.scan_sizes(inputs._replace(delta=inputs.x[:, None].expand(2, 3, 12, 5)), None, None) is None


def test_what_does_not_fit_is_named(backend):
    x, delta, A, B, C, *_, weight, table = inputs_of()
    with pytest.raises(ValueError, match=r"dt_proj \(routes, dim, dt_rank\) must have dt_rank at least 1"):
        vk.cross_selective_scan(x, delta[..., :0], A, B, C, table=table, dt_proj=weight[..., :0], backend=backend)
    with pytest.raises(ValueError, match=r"delta must have shape \(batch, routes, length, dim\)"):
        vk.cross_selective_scan(x, delta, A, B, C, table=table, delta_softplus=True, backend=backend)
    u, B, C = x.mT, B[:, 0].mT, C[:, 0].mT
    arguments = (u, delta[:, 0].mT, A[0], B, C)
    for change, message in (
        ({"dt_proj": weight}, r"dt_proj must have shape \(dim, dt_rank\)"),
        ({"dt_proj": weight[0][:, :0]}, "dt_rank at least 1"),
        ({"dt_proj": weight[0][:3]}, r"dt_proj must have shape \(dim, dt_rank\) = \(5, 3\)"),
        ({"dt_proj": weight[0][:, :2]}, r"delta must have shape \(batch, dt_rank, length\) = \(2, 2, 12\)"),
    ):
        with pytest.raises(ValueError, match=message):
            vk.selective_scan(*arguments, **change, backend=backend)
    with pytest.raises(TypeError, match="dt_proj must be"):
        vk.selective_scan(*arguments, dt_proj=weight[0].int(), backend=backend)


@pytest.mark.parametrize("name", ["delta", "dt_proj"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_changes_between_forward_and_backward(backend, name, dtype):
    """A change in place is autograd's error; a shape or memory change unseen by autograd is refused."""
    if backend == "reference":
        pytest.skip("torch's own operators read what they saved")

    def forward():
        inputs = inputs_of()
        leaves = [t.requires_grad_() for t in inputs[:9]]
        leaves[ScanInputs._fields.index(name)].data = getattr(inputs, name).data.to(dtype)
        y, _ = operator(*leaves, table=inputs.table, backend=backend)
        return y, leaves, leaves[ScanInputs._fields.index(name)]

    y, leaves, changed = forward()
    with torch.no_grad():
        changed.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y.sum(), leaves)
    y, leaves, changed = forward()
    changed.data = changed.data[..., :1].clone()
    with pytest.raises(ValueError, match="must have shape"):
        torch.autograd.grad(y.sum(), leaves)
    y, leaves, changed = forward()
    changed.untyped_storage().resize_(4)
    with pytest.raises((ValueError, RuntimeError), match="has no memory for all of its elements"):
        torch.autograd.grad(y.sum(), leaves)


def test_opcheck(compiled_backend):
    inputs, shared = inputs_of(), compiled_backend == "cpu"
    if not shared:
        inputs = inputs._replace(x=torch.randn(2, 3, 12, 5))
    options = (True, False, not shared, compiled_backend)
    y, _, checkpoints, order = selective_scan_forward(*inputs, *options, True)
    torch.library.opcheck(
        selective_scan_backward, (torch.randn_like(y), None, *inputs._replace(table=order), checkpoints, *options)
    )
    arguments = [t.requires_grad_() if t.is_floating_point() else t for t in inputs]
    torch.library.opcheck(selective_scan_forward, (*arguments, *options, True))


def test_torch_compile():
    def function(*t):
        return operator(*t[:9], table=t[9], backend="cpu")

    graph = compiled(function)
    for batch, height, width, dim, rank in [(2, 3, 4, 5, 3), (3, 4, 5, 9, 4)]:
        tensors = low_rank_problem(batch, 4, height * width, dim, 4, rank, torch.float32)
        assert_same(function, graph, tensors, vk.routes(height, width))


class Scan(torch.nn.Module):
    def forward(self, x, delta, A, B, C, weight, table):
        return vk.cross_selective_scan(x, delta, A, B, C, table=table, dt_proj=weight, delta_softplus=True)


def module_arguments(batch, length):
    x, factor, A, B, C, *_, weight = low_rank_problem(batch, 3, length, 5, 4, 2, torch.float32)
    return x, factor, A, B, C, weight, orders(3, length)


def test_export():
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    per_route = {0: batch, 2: length}
    shapes = ({0: batch, 1: length}, per_route, None, per_route, per_route, None, {1: length})
    program = torch.export.export(Scan(), module_arguments(2, 12), dynamic_shapes=shapes)
    for sizes in [(2, 12), (5, 63)]:
        assert torch.equal(program.module()(*module_arguments(*sizes)), Scan()(*module_arguments(*sizes)))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_flops_and_traces():
    from fvcore.nn import FlopCountAnalysis

    arguments = module_arguments(2, 12)
    steps, rank, states = 2 * 3 * 12 * 5, 2, 4
    counted = FlopCountAnalysis(Scan(), arguments).set_op_handle(**vmddpm_kernels.flops.FVCORE_HANDLES)
    assert counted.by_operator()["selective_scan_forward"] == steps * (9 * states + 2 * rank)
    traced = torch.jit.trace(Scan(), arguments)
    assert torch.equal(traced(*arguments), Scan()(*arguments))
    leaves = [t.requires_grad_() for t in arguments[:6]]
    with FlopCounterMode(display=False) as counter:
        Scan()(*leaves, arguments[6]).sum().backward()
    assert counter.get_total_flops() == steps * (9 * states + 2 * rank) + steps * (23 * states + 6 * rank)


def test_forward_mode(compiled_backend):
    """Tangents of all inputs at once, against the float64 loop."""
    tensors, table = low_rank_problem(2, 4, 12, 5, 3, 2, torch.float64), orders(4, 12)
    along = [torch.randn_like(t) for t in tensors]
    with forward_ad.dual_level():
        dual = [forward_ad.make_dual(t, d) for t, d in zip(tensors, along)]
        results = scan(ScanInputs(*dual, table), scan_options(True, False, False), compiled_backend, last_state=True)
        found = [forward_ad.unpack_dual(r).tangent for r in results]
    _, expected = torch.func.jvp(lambda *t: loop(*t, table=table), tuple(tensors), tuple(along))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_vmap_of_gradients(compiled_backend):
    x, factor, A, B, C, *_, weight = low_rank_problem(1, 2, 6, 3, 2, 2, torch.float64)
    table, weights = orders(2, 6), torch.stack([weight, 2 * weight, weight.flip(2)])

    def loss(weight):
        y = vk.cross_selective_scan(
            x, factor, A, B, C, table=table, dt_proj=weight, delta_softplus=True, backend=compiled_backend
        )
        return y.square().sum()

    batched = torch.func.vmap(torch.func.grad(loss))(weights)
    for weight, gradient in zip(weights, batched):
        torch.testing.assert_close(gradient, torch.func.grad(loss)(weight))


def test_step_sizes_are_never_in_memory():
    """On the CPU, no tensor in forward or backward is as large as the step sizes."""
    tensors, table = low_rank_problem(2, 4, 200, 64, 2, 3, torch.float32), orders(4, 200)
    leaves = [t.requires_grad_() for t in tensors[:7]]
    with torch.profiler.profile(record_shapes=False, profile_memory=True) as profile:
        y = vk.cross_selective_scan(
            *leaves, table, dt_proj=tensors[8].requires_grad_(), delta_softplus=True, backend="cpu"
        )
        y.sum().backward()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert 0 < largest < 2 * 4 * 200 * 64 * 4
