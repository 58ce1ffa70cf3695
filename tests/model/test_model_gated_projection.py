"""Norm, gate and projection by blocks of pixels equal the three operations in sequence."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vmddpm.model import gated_projection as module
from vmddpm.model.gated_projection import GatedProjection, gated_projection
from vmddpm_kernels.modules import Linear


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    norm, out = nn.LayerNorm(6).double(), Linear(6, 4, bias=False).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    y, gate = (torch.randn(2, 9, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    return y, gate, norm, out


def results(function, y, gate, norm, out):
    z = function(y, gate, norm, out)
    dz = torch.linspace(-1, 1, z.numel(), dtype=z.dtype).sin().view_as(z)
    return [z, *torch.autograd.grad(z, [y, gate, norm.weight, norm.bias, out.weight], dz)]


def plain(y, gate, norm, out):
    return out(norm(y) * F.silu(gate))


@pytest.mark.parametrize("rows", [1, 4, 9, 18, 256])
def test_any_number_of_blocks(monkeypatch, tensors, rows):
    monkeypatch.setattr(module, "ROWS", rows)
    for ours, expected in zip(results(gated_projection, *tensors), results(plain, *tensors), strict=True):
        torch.testing.assert_close(ours, expected)


def test_gradcheck(monkeypatch, tensors):
    monkeypatch.setattr(module, "ROWS", 4)
    y, gate, norm, out = tensors
    leaves = (y.flatten(0, 1), gate.flatten(0, 1), norm.weight, norm.bias, out.weight)
    assert torch.autograd.gradcheck(lambda *t: GatedProjection.apply(*t, norm.eps), leaves)
    assert torch.autograd.gradgradcheck(lambda *t: GatedProjection.apply(*t, norm.eps), leaves)


def test_what_is_kept_for_the_backward(tensors):
    """Nothing of y's size is saved except y and the gate."""
    y, gate, norm, out = tensors
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        gated_projection(y, gate, norm, out)
    assert {t.data_ptr() for t in kept if t.numel() == y.numel()} == {y.data_ptr(), gate.data_ptr()}


@pytest.mark.parametrize("how", ["autocast", "forward mode", "vmap"])
def test_other_observers_see_the_operators_themselves(monkeypatch, tensors, how):
    monkeypatch.setattr(GatedProjection, "forward", None)
    y, gate, norm, out = tensors
    if how == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            assert gated_projection(y.float(), gate.float(), norm.float(), out.float()).dtype == torch.bfloat16
        return
    call = torch.func.vmap(lambda y, gate: gated_projection(y, gate, norm, out))
    if how == "vmap":
        torch.testing.assert_close(call(torch.stack([y, -y]), torch.stack([gate, gate]))[0], plain(*tensors))
        return
    one = torch.ones_like(y)
    _, tangent = torch.func.jvp(lambda y: gated_projection(y, gate, norm, out), (y,), (one,))
    torch.testing.assert_close(tangent, torch.func.jvp(lambda y: plain(y, gate, norm, out), (y,), (one,))[1])


def test_hooks_are_called(tensors):
    y, gate, norm, out = tensors
    seen = []
    norm.register_forward_hook(lambda *_: seen.append("norm"))
    out.register_forward_pre_hook(lambda *_: seen.append("out"))
    gated_projection(y, gate, norm, out)
    assert seen == ["norm", "out"]
