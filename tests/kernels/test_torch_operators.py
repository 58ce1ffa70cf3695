"""The operators in PyTorch's tools: opcheck, fake kernels, FLOP counts, profiler, transforms, import."""

import itertools
import subprocess
import sys

import pytest
import torch
from test_scan_accuracy import image_problem, rows
from torch.utils.flop_counter import FlopCounterMode

import vmddpm_kernels as vk
import vmddpm_kernels.flops
from vmddpm_kernels.backends import BACKENDS, extension
from vmddpm_kernels.compat.vmamba import selective_scan_fn
from vmddpm_kernels.curves import route_names
from vmddpm_kernels.ops.cross_scan import cross_merge_op, cross_scan_op
from vmddpm_kernels.ops.selective_scan import SelectiveScan, selective_scan_backward, selective_scan_forward
from vmddpm_kernels.scan_inputs import ScanOptions, ScanSizes


def scan_arguments(shared, dtype, optional, gradients):
    """x (B, L, D) or (B, K, L, D), and the other nine tensors."""
    x, *rest = image_problem(2, 4, 12, 5, 3, dtype)
    tensors = [x if shared else torch.randn(2, 4, 12, 5).to(dtype), *rest]
    tensors = [*tensors[:5], *(tensors[5:] if optional else [None] * 3)]
    for t in tensors:
        if t is not None:
            t.requires_grad_(gradients)
    return (*tensors, None, vk.routes(3, 4) if optional else None)


# `shared` and `channel_first` are layouts; the other options vary with them.
CASES = [(True, False, torch.float32, True), (False, True, torch.float16, False), (False, False, torch.float64, True)]


@pytest.mark.parametrize(("shared", "channel_first", "dtype", "optional"), CASES)
def test_opcheck_of_the_scan(compiled_backend, shared, channel_first, dtype, optional):
    options = (True, optional, channel_first, compiled_backend)
    arguments = scan_arguments(shared, dtype, optional, gradients=True)
    torch.library.opcheck(selective_scan_forward, (*arguments, *options, True))
    arguments = scan_arguments(shared, dtype, optional, gradients=False)
    torch.library.opcheck(selective_scan_forward, (*arguments, *options, False))
    y, last_state, checkpoints, _ = selective_scan_forward(*arguments, *options, True)
    for dlast_state in (None, torch.randn_like(last_state)):
        torch.library.opcheck(
            selective_scan_backward, (torch.randn_like(y), dlast_state, *arguments, checkpoints, *options)
        )


@pytest.mark.parametrize("channel_first", [False, True])
def test_opcheck_of_the_copies(compiled_backend, channel_first):
    x, y = (torch.randn(2, k, 12, 5, dtype=torch.float16, requires_grad=True) for k in (1, 4))
    table = vk.routes(3, 4)
    for order in ((table, 0, 0, 0), (None, 3, 4, 3)):
        torch.library.opcheck(cross_scan_op, (x, *order, channel_first, compiled_backend))
        for sum_routes in (False, True):
            torch.library.opcheck(cross_merge_op, (y, *order, sum_routes, channel_first, compiled_backend))


def test_opcheck_of_routes():
    permutation = vk.patch_permutation(3, 4, seed=1)
    for code, order in itertools.product(range(4), (None, permutation)):
        names = ",".join(route_names(code, 2))
        torch.library.opcheck(torch.ops.vmddpm.routes.default, ((3, 4), names, order, "cpu"))


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 200])
@pytest.mark.parametrize("states", [1, 64, 65, 256])
@pytest.mark.usefixtures("emulated_gpu")
def test_checkpoint_shape_is_that_of_the_plan(length, states):
    cuda = BACKENDS["cuda"]
    for wide in (False, True):
        sizes = ScanSizes(2, 3, length, 37, states, wide, False)
        plan = extension.native.scan_plan(sizes)
        assert BACKENDS["cpu"].checkpoint_shape(sizes) == (2, 3, plan.checkpoints, plan.blocks, states, plan.lanes)
        plan = cuda.runtime.kernels.scan_plan(sizes, ScanOptions(), (132, 227 * 1024), False)
        assert cuda.checkpoint_shape(sizes) == (2, 3, plan.chunks, states, 37)


def test_flops(compiled_backend):
    batch, K, length, dim, states = 2, 4, 12, 5, 3
    tensors = [t.requires_grad_() for t in image_problem(batch, K, length, dim, states, torch.float32)[:7]]
    steps = batch * K * length * dim
    with FlopCounterMode(display=False) as counter:
        y = vk.cross_selective_scan(*tensors, rows(K, length), backend=compiled_backend)
    assert counter.get_total_flops() == 9 * steps * states + steps
    with FlopCounterMode(display=False) as counter:
        y.backward(torch.ones_like(y))
    assert counter.get_total_flops() == 23 * steps * states + 4 * steps
    with FlopCounterMode(display=False) as counter:
        vk.cross_scan(torch.zeros(batch, dim, 3, 4), backend=compiled_backend)
        assert counter.get_total_flops() == 0
        vk.cross_merge(torch.zeros(batch, 4, dim, 3, 4), backend=compiled_backend)
    assert counter.get_total_flops() == 3 * batch * dim * length


class SS2D(torch.nn.Module):
    """Cross scan, S6 and cross merge as in VMamba, with one projection for all routes."""

    def __init__(self):
        super().__init__()
        self.A, self.D = torch.nn.Parameter(-torch.rand(24, 5)), torch.nn.Parameter(torch.ones(24))
        self.projection = torch.nn.Conv1d(6, 16, 1)

    def forward(self, x):
        batch, channels, height, width = x.shape
        xs = vk.cross_scan.cross_scan_fn(x)                                     # (B, 4, C, L)
        delta, B, C = self.projection(xs.flatten(0, 1)).view(batch, 4, 16, -1).split([6, 5, 5], 2)
        y = selective_scan_fn(xs.flatten(1, 2), delta.flatten(1, 2), self.A, B, C, self.D)
        return vk.cross_scan.cross_merge_fn(y.view(batch, 4, channels, height, width))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_flops_of_a_traced_model_are_those_of_vmamba():
    """fvcore's count: VMamba's formula 9 B L D N + B D L for the scan, plus the products of the projection."""
    from fvcore.nn import FlopCountAnalysis

    batch, length, channels, states = 2, 12, 24, 5
    counted = FlopCountAnalysis(SS2D(), torch.randn(batch, 6, 3, 4))
    counted.set_op_handle(**vmddpm_kernels.flops.FVCORE_HANDLES)
    scan = 9 * batch * length * channels * states + batch * channels * length
    assert counted.by_operator()["selective_scan_forward"] == scan
    assert counted.total() == scan + batch * 4 * length * 6 * 16
    assert not any("vmddpm" in name for name in counted.unsupported_ops())


def test_profiler_names():
    tensors = [t.requires_grad_() for t in image_problem(1, 4, 12, 5, 3, torch.float32)[:7]]
    with torch.profiler.profile() as profile:
        vk.cross_selective_scan(*tensors, vk.routes(3, 4)).sum().backward()
        vk.cross_merge(vk.cross_scan(torch.zeros(1, 2, 3, 4)).unflatten(3, (3, 4)))
    names = {event.key for event in profile.key_averages()}
    wanted = {"selective_scan_forward", "selective_scan_backward", "cross_scan", "cross_merge"}
    assert {f"vmddpm::{name}" for name in wanted} <= names


def test_torch_func(compiled_backend):
    """grad and vmap, alone and together, against autograd and a loop."""
    x, *rest = image_problem(3, 2, 9, 5, 4, torch.float32)[:5]
    delta, A, B, C = rest

    def loss(x, delta, A, B, C):
        image = x[None], delta[None], A, B[None], C[None]
        y = vk.cross_selective_scan(*image, table=rows(2, 9), backend=compiled_backend)
        return y.square().sum()

    batched = torch.func.vmap(torch.func.grad(loss), in_dims=(0, 0, None, 0, 0))(x, delta, A, B, C)
    for b in range(3):
        leaf = x[b].clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(leaf, delta[b], A, B[b], C[b]), leaf)
        assert torch.equal(batched[b], expected)


def test_backward_twice(compiled_backend):
    tensors = [t.requires_grad_() for t in image_problem(2, 2, 9, 5, 4, torch.float32)[:7]]
    y = vk.cross_selective_scan(*tensors, rows(2, 9), backend=compiled_backend).square().sum()
    first = torch.autograd.grad(y, tensors, retain_graph=True)
    second = torch.autograd.grad(y, tensors)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(y, tensors)


def test_second_derivative_is_refused(compiled_backend):
    tensors = [t.requires_grad_() for t in image_problem(1, 1, 3, 2, 2, torch.float64)[:5]]
    y = vk.cross_selective_scan(*tensors, backend=compiled_backend)
    (dx,) = torch.autograd.grad(y.sum(), tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        dx.square().sum().backward()


def test_checkpoints_are_kept_wherever_autograd_follows():
    arguments = scan_arguments(True, torch.float32, True, gradients=True)
    grads = []
    for call in (SelectiveScan.apply, selective_scan_forward):
        for checkpoint in (False, True):
            y, *_ = call(*arguments, True, False, False, "cpu", checkpoint)
            grads.append(torch.autograd.grad(y.sum(), arguments[0])[0])
    assert all(torch.equal(grad, grads[0]) for grad in grads)
    with torch.no_grad():
        assert selective_scan_forward(*arguments, True, False, False, "cpu", False)[2].numel() == 0


def test_fake_tensors_leave_nothing_behind():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert vk.routes(7, 11).shape == (4, 77)
        assert vk.cross_scan(torch.empty(1, 2, 7, 11)).shape == (1, 4, 2, 77)
    assert vk.routes(7, 11)[0].tolist() == list(range(77))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_extremes_under_autocast(backend, dtype):
    """Activations of 6e4 and steps of 20: the state is float32, so nothing overflows before y is rounded."""
    x, delta, A, B, C, D, bias, _ = image_problem(1, 4, 30, 5, 4, torch.float32)
    x, delta = torch.full_like(x, 6e4).to(dtype), torch.full_like(delta, 20.0).to(dtype)
    B, C = (B * 1e-3).to(dtype), (C * 1e-3).to(dtype)
    A, D, bias = A.requires_grad_(), (D * 1e-2).requires_grad_(), bias.requires_grad_()
    x.requires_grad_()
    with torch.autocast("cpu", dtype):
        y, last_state = vk.cross_selective_scan(
            x, delta, A, B, C, D, bias, rows(4, 30), return_last_state=True, backend=backend
        )
    assert (y.dtype, last_state.dtype) == (dtype, torch.float32)
    y.float().mean().backward()
    assert all(torch.isfinite(t).all() for t in (y, last_state, x.grad, A.grad, D.grad, bias.grad))
    assert (A.grad.dtype, x.grad.dtype) == (torch.float32, dtype)


def test_importing_is_quick_and_imports_nothing_large():
    code = (
        "import sys, torch\nbefore = set(sys.modules)\nimport vmddpm_kernels\n"
        "print(*sorted(m.partition('.')[0] for m in set(sys.modules) - before))\n"
        "print(*sorted(m for m in set(sys.modules) - before if m.startswith('torch.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    packages, of_torch = done.stdout.splitlines()
    assert not {"triton", "vmddpm", "einops", "diffusers"} & set(packages.split())
    assert not any(m.startswith(("torch._dynamo", "torch._inductor")) for m in of_torch.split())


