"""torch.compile and torch.export of the operators: one graph for all sizes, and the bits of eager execution, because
the same kernels run. Only inductor rounds the code between kernels differently."""

import pytest
import torch
from oracle import relative_error
from test_scan_accuracy import image_problem, rows

import vmddpm_kernels as vk


def compiled(function, backend="aot_eager"):
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, dynamic=True, backend=backend)


def results(function, tensors, *rest):
    """Outputs and gradients."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    outputs = function(*leaves, *rest)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [*outputs, *torch.autograd.grad(sum(o.square().sum() for o in outputs), leaves)]


def assert_same(function, graph, tensors, *rest):
    for eager, ours in zip(results(function, tensors, *rest), results(graph, tensors, *rest)):
        assert torch.equal(eager, ours)
        assert eager.stride() == ours.stride()


def test_cross_selective_scan(compiled_backend):
    def function(x, delta, A, B, C, D, bias, state, table):
        return vk.cross_selective_scan(
            x, delta, A, B, C, D, bias, table, initial_state=state, return_last_state=True, backend=compiled_backend
        )

    graph = compiled(function)
    for batch, height, width, dim, states in [(2, 3, 4, 5, 4), (3, 8, 9, 37, 5)]:
        tensors = image_problem(batch, 4, height * width, dim, states, torch.float32)
        assert_same(function, graph, tensors, vk.routes(height, width))


def test_a_table_made_in_the_graph_is_checked_in_it():
    def function(x, delta, A, B, C, order):
        table = vk.routes(3, 4, permutation=order)
        return vk.cross_selective_scan(x, delta, A, B, C, table=table)

    tensors = image_problem(2, 4, 12, 5, 4, torch.float32)[:5]
    graph = compiled(function)
    order = vk.patch_permutation(3, 4, seed=1)
    assert torch.equal(graph(*tensors, order), function(*tensors, order))
    with pytest.raises(ValueError, match="every row of permutation"):
        graph(*tensors, torch.zeros_like(order))


@pytest.mark.parametrize("channel_last", [False, True])
def test_selective_scan(compiled_backend, channel_last):
    def function(u, delta, A, B, C, D, z):
        options = {"delta_softplus": True, "channel_last": channel_last, "backend": compiled_backend}
        return vk.selective_scan(u, delta, A, B, C, D, z, return_last_state=True, **options)

    graph = compiled(function)
    for batch, groups, dim, states, length in [(2, 2, 6, 4, 5), (3, 1, 5, 3, 70)]:
        u, delta, z = (torch.randn(batch, dim, length) for _ in range(3))
        B, C = (torch.randn(batch, groups, states, length) for _ in range(2))
        if channel_last:
            u, delta, z = (t.transpose(1, 2) for t in (u, delta, z))
            B, C = (t.permute(0, 3, 1, 2) for t in (B, C))
        tensors = (u, delta, -torch.rand(dim, states), B, C, torch.randn(dim))
        # The gate's gradient is torch's; in a graph torch 2.8 rounds it differently.
        assert_same(function, graph, *(((*tensors, z),) if torch.__version__ >= "2.13" else (tensors, z)))


@pytest.mark.parametrize("channel_first", [False, True])
def test_cross_scan_and_merge(compiled_backend, channel_first):
    def function(x):
        height, width = x.shape[2:] if channel_first else x.shape[1:3]
        y = vk.cross_scan(x, channel_first, channel_first, scans="rot90", backend=compiled_backend)
        y = y.unflatten(3, (height, width)) if channel_first else y.unflatten(1, (height, width))
        return vk.cross_merge(y.square(), channel_first, channel_first, backend=compiled_backend)

    graph = compiled(function)
    for shape in [(2, 3, 4, 5), (1, 2, 6, 7)]:
        assert_same(function, graph, (torch.randn(shape),))


def test_inductor():
    """Cross selective scan between pointwise operations, with an expanded incoming gradient, against eager execution of
    the reference in float64 and float32."""

    def function(x, delta, A, B, C, table, backend=None):
        y = vk.cross_selective_scan(x.sin(), delta, -A.exp(), B, C, table=table, backend=backend)
        return y.relu()

    graph = compiled(function, "inductor")
    for batch, height, width in [(2, 3, 4), (3, 5, 2)]:
        tensors = image_problem(batch, 4, height * width, 5, 4, torch.float32)[:5]
        table = vk.routes(height, width)
        exact = results(function, [t.double() for t in tensors], table, "reference")
        for want, reference, ours in zip(
            exact, results(function, tensors, table, "reference"), results(graph, tensors, table)
        ):
            assert relative_error(ours, want) <= 2 * relative_error(reference, want)


def test_a_derivative_of_a_derivative_is_refused():
    table = rows(2, 6)

    def function(x, delta, A, B, C):
        return vk.cross_selective_scan(x, delta, A, B, C, table=table).square()

    tensors = [t.requires_grad_() for t in image_problem(1, 2, 6, 3, 2, torch.float32)[:5]]
    y = compiled(function)(*tensors)

    def twice():
        dx, *_ = torch.autograd.grad(y.sum(), tensors, create_graph=True)
        dx.sum().backward()

    with pytest.raises(RuntimeError, match=r"double backward|create_graph=False"):
        twice()


def test_export():
    class Scan(torch.nn.Module):
        def forward(self, x, delta, A, B, C, table):
            return vk.cross_selective_scan(x, delta, A, B, C, table=table)

    def arguments(batch, height, width):
        return (*image_problem(batch, 4, height * width, 5, 4, torch.float32)[:5], vk.routes(height, width))

    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    image, per_route = {0: batch, 1: length}, {0: batch, 2: length}
    shapes = (image, per_route, None, per_route, per_route, {1: length})
    program = torch.export.export(Scan(), arguments(2, 3, 4), dynamic_shapes=shapes)
    assert "vmddpm.selective_scan_forward" in str(program.graph)
    for sizes in [(2, 3, 4), (5, 7, 9)]:
        assert torch.equal(program.module()(*arguments(*sizes)), Scan()(*arguments(*sizes)))
