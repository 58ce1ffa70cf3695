"""Arguments with the right shape and dtype that are still wrong."""

import pytest
import torch

import vmddpm_kernels as vk


def scan(**changes):
    x = torch.randn(1, 6, 3)
    delta, B = torch.randn(1, 4, 6, 3), torch.randn(1, 4, 6, 2)
    arguments = {"x": x, "delta": delta, "A": -torch.rand(4, 3, 2), "B": B, "C": B, "table": vk.routes(2, 3)}
    return vk.cross_selective_scan(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": torch.zeros(1, 6, 3).to_sparse()}, "x must be a dense tensor, got a torch.sparse_coo one"),
        ({"A": torch.zeros(4, 3, 2).to_sparse()}, "A must be a dense tensor"),
        ({"delta_softplus": "yes"}, "delta_softplus must be True or False, got 'yes'"),
        ({"return_last_state": None}, "return_last_state must be True or False"),
        ({"table": [[0, 1]]}, "table must be a torch.Tensor, got list"),
    ],
)
def test_types(backend, changes, words):
    with pytest.raises(TypeError, match=words):
        scan(backend=backend, **changes)


def test_table_that_int32_cannot_hold(backend):
    """The lower 32 bits of 2^32 + 1 are 1."""
    table = vk.routes(2, 3).long()
    assert scan(table=table, backend=backend).shape == (1, 6, 3)
    with pytest.raises(ValueError, match="every row of table must hold each of"):
        scan(table=table + 2**32, backend=backend)


def test_gradient_that_is_still_to_be_negated(backend):
    """Backward passes through complex numbers make such gradients."""
    x = torch.randn(1, 6, 3, requires_grad=True)
    B, delta = torch.randn(1, 4, 6, 2), torch.randn(1, 4, 6, 3)
    y, last = scan(x=x, B=B, C=B, delta=delta, return_last_state=True, backend=backend)
    grads = torch.randn(y.shape), torch.randn(last.shape)
    (want,) = torch.autograd.grad((y, last), x, grads, retain_graph=True)
    (got,) = torch.autograd.grad((y, last), x, tuple(torch._neg_view(-g) for g in grads))
    assert torch.equal(got, want)


def test_sizes_of_routes():
    for call, error, words in [
        (lambda: vk.routes("2", 3), TypeError, "height must be an int, got '2'"),
        (lambda: vk.routes(2, True), TypeError, "width must be an int"),
        (lambda: vk.routes(2**16, 2**15), ValueError, r"below 2\^31"),
        (lambda: vk.routes(2, 3, scans=1.0), ValueError, "scans must be 0-3"),
        (lambda: vk.routes(2, 3, permutation=[0, 1]), TypeError, "permutation must be a torch.Tensor"),
        (lambda: vk.routes(1, 2, permutation=torch.ones(2).bool()), ValueError, "permutation must be an integer"),
        (lambda: vk.routes(1, 2, permutation=torch.arange(2, device="meta"), device="cpu"), ValueError, "meta device"),
        (lambda: vk.patch_permutation(2, 2, seed=0.5), TypeError, "seed must be an int"),
        (lambda: vk.patch_permutation(2, 2, generator=3), TypeError, "generator must be a torch.Generator"),
        (lambda: vk.patch_permutation(2, 2, patch_size=0), ValueError, "patch_size must be at least 1"),
        (lambda: scan(backend=["cpu"]), ValueError, "backend must be one of"),
    ]:
        with pytest.raises(error, match=words):
            call()


def test_meta_tensors_have_shapes():
    meta = torch.zeros(1, 2, 3, 4, device="meta")
    assert vk.cross_scan(meta).shape == (1, 4, 2, 12)
    assert vk.cross_scan(meta).device.type == "meta"
