"""Muon against torch's and against singular values in float64; its choice of weights; interrupted runs with it."""

import pytest
import torch
from test_training_options import IMAGES, distance, trained
from test_training_run import assert_same_weights, config, train_until, weights
from torch import nn

from vmddpm.demo import demo_config
from vmddpm.devices import fast_in_bfloat16
from vmddpm.model.unet import UNet, UNetConfig
from vmddpm.training import RunFolder
from vmddpm.training import learner as learner_module
from vmddpm.training.learner import autocast
from vmddpm.training.muon import NEWTON_SCHULZ, ROUNDS, Muon, orthogonal
from vmddpm.training.networks import build_network
from vmddpm.training.optimizers import hidden_matrices


def random_weights(*shapes, seed=0):
    source = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=source)) for shape in shapes]


def steps_of(optimizer, weights, count=3):
    """Take steps with gradients that depend only on the number of values."""
    for step in range(count):
        for weight in weights:
            source = torch.Generator().manual_seed(step * 100 + weight.numel())
            weight.grad = torch.randn(weight.shape, generator=source)
        optimizer.step()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
def test_matrices_step_as_by_torchs_muon():
    shapes = (8, 12), (12, 8), (8, 12), (16, 16), (3, 40)
    ours, theirs = random_weights(*shapes), random_weights(*shapes)
    steps_of(Muon(ours, 0.01, dtype=torch.bfloat16), ours)
    steps_of(torch.optim.Muon(theirs, 0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"), theirs)
    for one, other, start in zip(ours, theirs, random_weights(*shapes)):
        moved = (other - start).abs().mean()
        assert (one - other).abs().max() < 0.01 * moved  # bfloat16 sums, in another order for two stepped together
        assert moved > 0.003  # three steps of about a fifth of the learning rate


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 7), (1, 5)])
def test_a_step_has_the_singular_values_of_the_polynomial(shape):
    """U p(S) V^T from float64 singular values, with the polynomial applied to each."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / (s.norm() + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(ROUNDS):
        s = a * s + b * s**3 + c * s**5
    expected = u @ s.diag() @ v
    found = orthogonal(matrix.float()[None])[0]
    assert (found - expected).abs().max() < 1e-5
    assert s.min() > 0.5
    assert s.max() < 1.3


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_kernels_and_stacks_step_as_their_matrices(memory):
    kernel, stack = random_weights((6, 4, 3, 3), (3, 6, 5))
    kernel.data = kernel.data.contiguous(memory_format=memory)
    volume = nn.Parameter(kernel.detach().clone().view(6, 4, 3, 3, 1))
    separate = [
        nn.Parameter(kernel.detach().clone().reshape(6, 36)), *(nn.Parameter(m.clone()) for m in stack.detach())
    ]  # fmt: skip
    stacked = [kernel, stack, volume]
    gradient = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    of_stack = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(4))
    kernel.grad, volume.grad, stack.grad = gradient.clone(), gradient.view(6, 4, 3, 3, 1).clone(), of_stack.clone()
    for weight, part in zip(separate, (gradient.view(6, 36), *of_stack)):
        weight.grad = part.clone()
    before = [weight.detach().clone() for weight in stacked]
    Muon(stacked, 0.1).step()
    Muon(separate, 0.1).step()
    assert (kernel.view(6, 36) if memory is torch.contiguous_format else kernel.reshape(6, 36)).allclose(separate[0])
    assert volume.view(6, 4, 3, 3).allclose(kernel)
    assert stack.allclose(torch.stack(separate[1:]))
    assert all((weight - old).abs().mean() > 0.01 for weight, old in zip(stacked, before))


def test_what_is_no_matrix_is_refused():
    with pytest.raises(ValueError, match=r"shape \(4,\); Muon takes matrices"):
        Muon([nn.Parameter(torch.zeros(4))], 0.1)
    with pytest.raises(ValueError, match="Muon takes weights, not dict"):
        Muon([{"params": [nn.Parameter(torch.zeros(4, 4))]}], 0.1)
    with pytest.raises(ValueError, match="must be at least 0, got -1"):
        Muon([nn.Parameter(torch.zeros(4, 4))], -1)


def test_a_weight_without_a_gradient_stays():
    with_, without = random_weights((3, 4), (3, 4))
    kept = without.detach().clone()
    with_.grad = torch.ones(3, 4)
    optimizer = Muon([with_, without], 0.1)
    optimizer.step()
    assert torch.equal(without, kept)
    assert optimizer.step(lambda: 2.5) == 2.5


def test_the_matrices_between_features_are_taken():
    for network in (build_network(demo_config(1)), build_network(demo_config(1, "demo-3d"))):
        taken = {id(weight) for weight in hidden_matrices(network)}
        named = dict(network.named_parameters())
        rest = {name for name, weight in named.items() if id(weight) not in taken}
        matrices = {name for name in rest if named[name].dim() > 1}
        ends = {"encoder.0.down.weight", "projection.2.weight"}
        assert ends <= matrices
        tails = {name.rsplit("csm.", 1)[-1] for name in matrices - ends}
        assert tails == {"A_log", "D", "dt_bias", "conv.weight"}  # decay rates, and one filter per channel
    unet = UNet(UNetConfig(widths=(8, 16), attention=(False, True), norm_groups=4))
    taken = {id(weight) for weight in hidden_matrices(unet)}
    rest = {name for name, weight in unet.named_parameters() if weight.dim() > 1 and id(weight) not in taken}
    assert rest == {"network.conv_in.weight", "network.conv_out.weight"}


@pytest.mark.parametrize("options", [{}, {"precision": "fp16"}, {"precision": "auto"}])
def test_a_run_that_was_stopped_ends_in_the_same_weights(tmp_path, monkeypatch, options):
    options = {"optimizer": "muon", **options}
    whole = trained(tmp_path / "whole", **options)
    train_until(3, config(sample_every=0, **options), IMAGES, RunFolder(tmp_path / "stopped"), monkeypatch)
    assert_same_weights(weights(whole), weights(trained(tmp_path / "stopped", **options)))
    assert distance(whole, trained(tmp_path / "adam")) > 1e-3


def test_auto_is_bf16_where_it_is_fast(monkeypatch):
    cpu = torch.device("cpu")
    for fast, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(learner_module, "fast_in_bfloat16", lambda device, fast=fast: fast)
        with autocast(cpu, "auto"):
            assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == expected


def test_fast_bfloat16_follows_the_processors_flags(monkeypatch):
    cpu = torch.device("cpu")
    for flags, expected in (({"avx512_bf16": True}, True), ({"avx512_f": True, "amx_bf16": False}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags, raising=False)
        assert fast_in_bfloat16(cpu) is expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not fast_in_bfloat16(cpu)
