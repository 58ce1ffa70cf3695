"""The first call ever is captured in a CUDA graph, on the emulated GPU."""

import pytest
import torch
from capture import use_graph

import vmddpm_kernels as vk


@pytest.fixture
def graph(monkeypatch, emulated_native):
    return use_graph(monkeypatch, emulated_native)


DEVICE = "cpu:0"  # no tables are cached for it, unlike for "cpu"


def inputs(height, width, seed):
    g = torch.Generator().manual_seed(seed)
    length = height * width
    shapes = [(2, length, 5), (2, 4, length, 5), (4, 5, 3), (2, 4, length, 3), (2, 4, length, 3)]
    x, delta, A, B, C = (torch.randn(shape, generator=g) for shape in shapes)
    return [t.requires_grad_() for t in (x, delta, -A.abs(), B, C)]


def forward_and_backward(leaves, dy, table):
    y = vk.cross_selective_scan(*leaves, table=table, backend="cuda")
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


@pytest.mark.parametrize("permuted", [False, True])
def test_the_first_call_is_captured(graph, permuted):
    height, width = 5, 7
    leaves, dy = inputs(height, width, seed=0), torch.ones(2, height * width, 5)
    permutation = vk.patch_permutation(height, width, seed=3) if permuted else None
    with graph:
        table = vk.routes(height, width, permutation=permutation, device=DEVICE)
        captured = forward_and_backward(leaves, dy, table)
        scanned = vk.cross_scan(leaves[0].detach().mT.unflatten(2, (height, width)), backend="cuda")
    assert len(graph.work) > 4
    # Before the replay, as on another stream before this one has run.
    eager_table = vk.routes(height, width, permutation=permutation, device=DEVICE)
    assert torch.equal(eager_table.sort(1).values, torch.arange(35, dtype=torch.int32).expand(4, 35))
    for seed in (1, 2):
        fresh = inputs(height, width, seed)
        with torch.no_grad():
            for static, new in zip([*leaves, dy], [*fresh, torch.full_like(dy, seed)]):
                static.copy_(new)
        expected = forward_and_backward(fresh, torch.full_like(dy, seed), eager_table)
        graph.replay()
        for got, want in zip(captured, expected, strict=True):
            assert torch.equal(got, want)
        assert torch.equal(scanned, vk.cross_scan(fresh[0].detach().mT.unflatten(2, (height, width)), backend="cuda"))


def test_a_table_is_not_trusted_before_it_has_values(graph):
    leaves, dy = inputs(2, 3, seed=0), torch.ones(2, 6, 5)
    with graph:
        table = vk.routes(2, 3, device=DEVICE)
    with pytest.raises(ValueError, match=r"every row of table must hold each of 0\.\.5 exactly once"):
        forward_and_backward(leaves, dy, table)
    graph.replay()
    expected = forward_and_backward(leaves, dy, vk.routes(2, 3, device=DEVICE))
    for got, want in zip(forward_and_backward(leaves, dy, table), expected, strict=True):
        assert torch.equal(got, want)


def test_a_table_that_was_never_read_is_refused(graph):
    leaves, table = inputs(2, 3, seed=0), torch.arange(6, dtype=torch.int32).expand(4, 6).contiguous()
    with graph, pytest.raises(RuntimeError, match="table must be checked before a CUDA graph is captured"):
        vk.cross_selective_scan(*leaves, table=table, backend="cuda")
    vk.cross_selective_scan(*leaves, table=table, backend="cuda")
    with graph:
        vk.cross_selective_scan(*leaves, table=table, backend="cuda")


def test_a_permutation_on_the_cpu_is_refused(graph):
    permutation = vk.patch_permutation(2, 3, seed=0)
    with graph, pytest.raises(RuntimeError, match="permutation is on cpu, and cannot be copied to meta"):
        vk.routes(2, 3, permutation=permutation, device="meta")


def test_triton_says_that_it_cannot_load_a_kernel():
    launching = pytest.importorskip("vmddpm_kernels.backends.triton.launch")

    def fails_with(words):
        def run(**arguments):
            raise RuntimeError(words)

        return {(1,): run}

    said = "Triton Error [CUDA]: operation not permitted when stream is capturing"
    with pytest.raises(RuntimeError, match="call the operator once before it, with inputs of the same dtypes"):
        launching.launch(fails_with(said), 1, torch.device("cpu"))
    with pytest.raises(RuntimeError, match=r"^Triton Error \[CUDA\]: out of memory$"):
        launching.launch(fails_with("Triton Error [CUDA]: out of memory"), 1, torch.device("cpu"))
