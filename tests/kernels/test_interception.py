"""Everything that can intercept an operator call sees it: one test per mechanism."""

import subprocess
import sys
from typing import ClassVar

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from oracle import scan_loop
from test_scan_accuracy import image_problem
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import vmddpm_kernels as vk
from vmddpm_kernels import interception
from vmddpm_kernels.ops.selective_scan import scan
from vmddpm_kernels.scan_inputs import ScanInputs, scan_options

NAMES = {"vmddpm.selective_scan_forward.default", "vmddpm.cross_scan.default", "vmddpm.cross_merge.default"}


class DispatchRecorder(TorchDispatchMode):
    """Records the names of called operators."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


class FunctionRecorder(torch.overrides.TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


class Wrapper(torch.Tensor):
    """A subclass that wraps a tensor and records the operators called on it."""

    names: ClassVar[set[str]] = set()

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(), dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        cls.names.add(str(function))
        args, kwargs = tree_map(lambda t: t.inner if isinstance(t, cls) else t, (args, kwargs or {}))
        return function(*args, **kwargs)


def scan_tensors(dtype=torch.float32, gradients=False):
    """x, delta, A, B, C, D and delta_bias of two images of twelve pixels."""
    return [t.requires_grad_(gradients) for t in image_problem(2, 4, 12, 5, 3, dtype)[:7]]


ROWS = vk.routes(3, 4, scans="unidi")


def scan_rows(*tensors, backend):
    """Scan along the rows of these images."""
    return vk.cross_selective_scan(*tensors, table=ROWS, backend=backend)


def call_all(backend):
    """Call every operator once."""
    scan_rows(*scan_tensors(), backend=backend)
    return vk.cross_merge(vk.cross_scan(torch.randn(1, 2, 3, 4), backend=backend).unflatten(3, (3, 4)), backend=backend)


def test_plain_tensors_are_not_intercepted():
    assert not interception.intercepted([torch.zeros(1), None, torch.nn.Parameter(torch.zeros(1))])


def test_dispatch_mode(compiled_backend):
    with DispatchRecorder() as seen:
        call_all(compiled_backend)
    assert seen.names >= NAMES


def test_function_mode(compiled_backend):
    with FunctionRecorder() as seen:
        call_all(compiled_backend)
    assert seen.names >= NAMES


def test_profiler(compiled_backend):
    with torch.profiler.profile() as profile:
        call_all(compiled_backend)
    assert {event.key for event in profile.key_averages()} >= {
        "vmddpm::selective_scan_forward", "vmddpm::cross_scan", "vmddpm::cross_merge"
    }  # fmt: skip


def test_subclass(compiled_backend):
    tensors = scan_tensors()
    Wrapper.names.clear()
    y = scan_rows(Wrapper(tensors[0]), *tensors[1:], backend=compiled_backend)
    assert Wrapper.names == {"vmddpm.selective_scan_forward.default"}
    assert torch.equal(y, scan_rows(*tensors, backend=compiled_backend))


@pytest.mark.parametrize("which", range(7))
def test_negated_view(compiled_backend, which):
    """A lazily negated view, as an input and as the gradient."""
    tensors = scan_tensors()
    negated = [torch._neg_view(-t) if i == which else t for i, t in enumerate(tensors)]
    assert negated[which].is_neg()
    expected = scan_rows(*tensors, backend=compiled_backend)
    assert torch.equal(scan_rows(*negated, backend=compiled_backend), expected)
    grads = []
    for given, dy in ((tensors, -torch.ones_like(expected)), (negated, torch._neg_view(torch.ones_like(expected)))):
        leaves = [t.detach().requires_grad_() for t in given]
        y = scan_rows(*leaves, backend=compiled_backend)
        grads.append(torch.autograd.grad(y, leaves, dy))
    assert all(torch.equal(a, b) for a, b in zip(*grads))


def test_negated_view_of_an_image(compiled_backend):
    x = torch.randn(1, 2, 3, 4)
    expected = vk.cross_scan(-x, backend=compiled_backend)
    assert torch.equal(vk.cross_scan(torch._neg_view(x), backend=compiled_backend), expected)


@pytest.mark.parametrize("which", range(7))
def test_zero_tensor(compiled_backend, which):
    """A zero tensor without memory."""
    tensors = scan_tensors()
    zeros = [torch._efficientzerotensor(t.shape) if i == which else t for i, t in enumerate(tensors)]
    tensors[which] = torch.zeros_like(tensors[which])
    expected = scan_rows(*tensors, backend=compiled_backend)
    assert torch.equal(scan_rows(*zeros, backend=compiled_backend), expected)


def test_zero_tensor_as_the_gradient(compiled_backend):
    leaves = scan_tensors(gradients=True)
    y = scan_rows(*leaves, backend=compiled_backend)
    for grad in torch.autograd.grad(y, leaves, torch._efficientzerotensor(y.shape)):
        assert torch.equal(grad, torch.zeros_like(grad))


def test_functionalize(compiled_backend):
    def function(*tensors):
        return scan_rows(*tensors, backend=compiled_backend).add_(1)

    tensors = scan_tensors()
    assert torch.equal(torch.func.functionalize(function)(*tensors), function(*tensors))


def test_functionalized_tensors_outside_of_a_transform_are_refused(compiled_backend):
    wrapped = [torch._to_functional_tensor(t) for t in scan_tensors()]
    with pytest.raises(ValueError, match=r"has no memory for all of its elements: .* it wraps another tensor"):
        scan_rows(*wrapped, backend=compiled_backend)


def test_make_fx(compiled_backend):
    from torch.fx.experimental.proxy_tensor import make_fx

    tensors = [*scan_tensors(), ROWS]

    def function(*tensors):
        return vk.cross_selective_scan(*tensors, backend=compiled_backend)

    for mode in ("real", "fake", "symbolic"):
        graph = make_fx(function, tracing_mode=mode)(*tensors)
        assert "vmddpm.selective_scan_forward" in graph.code
        assert torch.equal(graph(*tensors), function(*tensors))


def directional(function, tensors, tangents):
    """The derivative along the tangents, by two reverse passes."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    results = function(*leaves)
    weights = [torch.zeros_like(r, requires_grad=True) for r in results]
    grads = torch.autograd.grad(results, leaves, weights, create_graph=True)
    return torch.autograd.grad(sum((g * t).sum() for g, t in zip(grads, tangents)), weights)


@pytest.mark.parametrize("zoh", [False, True])
@pytest.mark.parametrize("table", [None, vk.routes(3, 4, permutation=vk.patch_permutation(3, 4, seed=1))])
def test_forward_mode(compiled_backend, zoh, table):
    """Tangents of all inputs at once, and of each alone, against the float64 loop."""
    tensors = [*image_problem(2, 4, 12, 5, 3, torch.float64)]
    torch.manual_seed(1)
    every = [torch.randn_like(t) for t in tensors]

    def operator(*t):
        return scan(ScanInputs(*t, table=table), scan_options(True, zoh, False), compiled_backend, last_state=True)

    def loop(*t):
        return scan_loop(*t, table=table, zoh=zoh)

    for alone in (None, *range(len(tensors))):
        with forward_ad.dual_level():
            dual = [forward_ad.make_dual(t, d) if alone in (None, i) else t
                    for i, (t, d) in enumerate(zip(tensors, every))]  # fmt: skip
            found = [forward_ad.unpack_dual(r).tangent for r in operator(*dual)]
        tangents = [d if alone in (None, i) else torch.zeros_like(d) for i, d in enumerate(every)]
        for ours, expected in zip(found, directional(loop, tensors, tangents)):
            if ours is None:  # the last state does not depend on C and D
                ours = torch.zeros_like(expected)
            torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_forward_mode_through_torch_func(compiled_backend):
    tensors = scan_tensors(torch.float64)
    tangents = tuple(torch.randn_like(t) for t in tensors)

    def operator(*t):
        return scan_rows(*t, backend=compiled_backend)

    y, found = torch.func.jvp(operator, tuple(tensors), tangents)
    assert torch.equal(y, operator(*tensors))
    (expected,) = directional(lambda *t: [scan_loop(*t)[0]], tensors, tangents)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_forward_mode_of_the_copies(compiled_backend):
    def function(x):
        y = vk.cross_scan(x, backend=compiled_backend)
        return vk.cross_merge(y.unflatten(3, (3, 4)), backend=compiled_backend)

    x, dx = torch.randn(2, 1, 2, 3, 4)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(function(forward_ad.make_dual(x, dx))).tangent
    assert torch.equal(found, function(dx))


def test_forward_over_reverse_is_refused(compiled_backend):
    tensors = scan_tensors()
    with forward_ad.dual_level():
        leaf = forward_ad.make_dual(tensors[0].requires_grad_(), torch.ones_like(tensors[0]))
        y = scan_rows(leaf, *tensors[1:], backend=compiled_backend)
        with pytest.raises(RuntimeError, match="backend='reference'"):
            torch.autograd.grad(y.square().sum(), leaf)


class Model(torch.nn.Module):
    """Both public scans and the copies, for any input size."""

    def __init__(self, backend):
        super().__init__()
        self.backend = backend
        self.A = torch.nn.Parameter(-torch.rand(4, 6, 3))
        self.projection = torch.nn.Linear(6, 4 * (6 + 3 + 3))

    def forward(self, x):                                                       # (B, C, H, W)
        batch, _, height, width = x.shape
        sequence = x.flatten(2).mT                                              # (B, L, C)
        parts = self.projection(sequence).unflatten(2, (4, 12)).transpose(1, 2).split([6, 3, 3], -1)
        y = vk.cross_selective_scan(
            sequence, parts[0], self.A, *parts[1:], table=vk.routes(height, width), backend=self.backend
        )
        delta, B, C = (t[:, 0].mT for t in parts)
        z = vk.selective_scan(x.flatten(2), delta, self.A[0], B, C, delta_softplus=True, backend=self.backend)
        grouped = [t[:, None].expand(-1, 2, -1, -1) for t in (B, C)]
        z = z + vk.selective_scan(x.flatten(2), delta, self.A[0], *grouped, delta_softplus=True, backend=self.backend)
        s = vk.cross_scan(x, backend=self.backend).view(batch, 4, 6, height, width)
        return y.mT + z + vk.cross_merge(s.square(), backend=self.backend)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("gradients", [False, True])
def test_torch_jit_trace(backend, gradients, tmp_path):
    """Traced, saved and loaded, the model gives the eager model's bits and gradients, even if it was traced without
    gradients. (The loaded graph adds gradients in another order.)"""
    traced_with, others = (1, (3,)) if backend == "triton" else (2, (2, 5))  # batches; triton is interpreted
    model, x = Model(backend).eval(), torch.randn(traced_with, 6, 3, 4)
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(model, x)
    if backend != "reference":
        graph = str(traced.inlined_graph)
        assert graph.count("vmddpm::selective_scan_forward") == 3
        assert "PythonOp" not in graph
    torch.jit.save(traced, tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    for other in (torch.randn(batch, 6, 3, 4) for batch in others):
        with torch.no_grad():
            assert torch.equal(loaded(other), model(other))
        leaf, twin = other.clone().requires_grad_(), other.clone().requires_grad_()
        loaded(leaf).sum().backward()
        model(twin).sum().backward()
        torch.testing.assert_close(leaf.grad, twin.grad)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_sizes_of_a_traced_tensor_are_numbers():
    def function(x):
        return vk.routes(x.shape[2], x.shape[3]) + vk.patch_permutation(x.shape[2], x.shape[3], seed=0)

    x = torch.zeros(1, 1, 3, 4)
    assert torch.equal(torch.jit.trace(function, x)(x), function(x))


@pytest.fixture
def process_group():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_dtensor_is_refused(backend):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    mesh = init_device_mesh("cpu", (1,))
    x, *rest = (distribute_tensor(t, mesh, [Replicate()]) for t in scan_tensors())
    local = [t.to_local() for t in rest]
    for first, others in ((x, rest), (x, local), (x.to_local(), [rest[0], *local[1:]])):
        with pytest.raises(TypeError, match=r"(x|delta) must not be a DTensor.*to_local\(\)"):
            scan_rows(first, *others, backend=backend)
    with pytest.raises(TypeError, match=r"x must not be a DTensor.*to_local\(\)"):
        vk.cross_scan(distribute_tensor(torch.zeros(1, 2, 3, 4), mesh, [Replicate()]), backend=backend)
    assert torch.equal(
        scan_rows(x.to_local(), *local, backend=backend),
        scan_rows(*scan_tensors(), backend=backend),
    )


def test_a_torch_that_cannot_tell(monkeypatch, compiled_backend):
    """Without torch's private names every call takes the public path."""
    monkeypatch.setattr(interception, "_CAN_TELL", False)
    with DispatchRecorder() as seen:
        call_all(compiled_backend)
    assert seen.names >= NAMES
    leaves = scan_tensors(gradients=True)
    ours = torch.autograd.grad(scan_rows(*leaves, backend=compiled_backend).sum(), leaves)
    monkeypatch.undo()
    direct = torch.autograd.grad(scan_rows(*leaves, backend="cpu").sum(), leaves)
    for a, b in zip(ours, direct):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["_len_torch_dispatch_stack", "_len_torch_function_stack", "_get_tracing_state"])
def test_missing_private_names_are_noticed(monkeypatch, name):
    monkeypatch.delattr(torch._C, name)
    assert not interception._can_tell()


def small_scan(**options):
    torch.manual_seed(0)
    shapes = (1, 6, 2), (1, 4, 6, 2), (4, 2, 3), (1, 4, 6, 3), (1, 4, 6, 3)
    tensors = [torch.randn(shape) for shape in shapes]
    tensors[2] = -tensors[2].abs()
    return tensors, lambda *t: vk.cross_selective_scan(*t, table=vk.routes(2, 3), **options)


def test_a_saved_tensor_may_become_one_whose_memory_is_not_its_value(backend):
    """B becomes a lazily negated view, unseen by autograd."""
    gradients = []
    for view in (lambda t: t, lambda t: torch._neg_view(-t)):
        tensors, scan = small_scan(backend=backend)
        tensors[0].requires_grad_()
        tensors[3] = torch.nn.Parameter(tensors[3])
        y = scan(*tensors)
        tensors[3].data = view(tensors[3].detach().flip(2).contiguous())
        gradients += torch.autograd.grad(y.sum(), tensors[0])
    assert torch.equal(*gradients)


def test_a_hook_may_return_a_tensor_whose_memory_is_not_its_value(backend):
    gradients = []
    for unpack in (lambda t: t, lambda t: torch._neg_view(-t) if t.is_floating_point() else t):
        tensors, scan = small_scan(backend=backend)
        leaves = [t.requires_grad_() for t in tensors]
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
            y = scan(*leaves)
        gradients.append(torch.autograd.grad(y.sum(), leaves))
    for plain, hooked in zip(*gradients):
        assert torch.equal(plain, hooked)


@pytest.mark.parametrize("call", ["scan", "cross_scan"])
def test_batched_gradients_are_refused_by_name(call):
    (x, *others), scan = small_scan()
    x = (x if call == "scan" else x.view(1, 2, 2, 3)).requires_grad_()
    y = scan(x, *others) if call == "scan" else vk.cross_scan(x)
    with pytest.raises(RuntimeError, match="one gradient at a time: leave is_grads_batched"):
        torch.autograd.grad(y, x, torch.randn(3, *y.shape), is_grads_batched=True)


def test_the_gradient_of_a_vmap(backend):
    (x, *others), scan = small_scan(backend=backend)
    xs = torch.stack([x, 2 * x])
    batched = torch.func.grad(lambda xs: torch.func.vmap(lambda x: scan(x, *others))(xs).square().sum())(xs)
    for x, gradient in zip(xs, batched):
        single = torch.func.grad(lambda x: scan(x, *others).square().sum())(x)
        torch.testing.assert_close(gradient, single)


def test_first_calls_of_two_threads_behind_an_import_hook():
    program = (
        "import builtins, threading, time, torch, vmddpm_kernels as vk\n"
        "real = builtins.__import__\n"
        "def slow(*args, **kwargs):\n"
        "    time.sleep(0.01)\n"
        "    return real(*args, **kwargs)\n"
        "builtins.__import__ = slow\n"
        "def call():\n"
        "    r = torch.randn\n"
        "    B, C = r(1, 4, 6, 3), r(1, 4, 6, 3)\n"
        "    vk.cross_selective_scan(r(1, 6, 2), r(1, 4, 6, 2), -r(4, 2, 3).abs(), B, C, table=vk.routes(2, 3))\n"
        "threads = [threading.Thread(target=call) for _ in range(2)]\n"
        "[t.start() for t in threads]\n"
        "[t.join() for t in threads]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
