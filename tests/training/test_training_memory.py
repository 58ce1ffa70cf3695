"""The memory of a training run, computed by hand, and the suggested options if it is not enough."""

import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from vmddpm.cli import main
from vmddpm.data import DataConfig
from vmddpm.diffusion import DiffusionConfig
from vmddpm.errors import InputError
from vmddpm.model import VMDDPM, ModelConfig
from vmddpm.model.unet import UNetConfig
from vmddpm.training import RunConfig, TrainingConfig, memory
from vmddpm.training.memory import available, check_fits, predict

CPU = torch.device("cpu")
SMALL = {"base_channels": 8, "norm_groups": 4, "d_state": 4, "sampling": (2,), "channel_multipliers": (1,),
         "layers_per_stage": 1}  # fmt: skip


@pytest.fixture(autouse=True)
def only_step_memory(monkeypatch):
    """Predict the memory of a step alone: the program grows during the tests, and SCRATCH exceeds small models."""
    monkeypatch.setattr(memory, "_program", lambda device: 0)
    monkeypatch.setattr(memory, "SCRATCH", 0)


def config(side=16, **training):
    return RunConfig(
        model=ModelConfig(**SMALL, spatial_dims=3), diffusion=DiffusionConfig(timesteps=100),
        data=DataConfig(spatial_dims=3, spacing=1, size=side), training=TrainingConfig(batch_size=8, **training),
    )  # fmt: skip


def test_weights_are_counted_four_times():
    weights = sum(p.numel() for p in VMDDPM(config().model).parameters())
    assert predict(config(), CPU).weights == 4 * 4 * weights  # float32: weights, EMA and two moments


def test_what_a_step_keeps_of_one_convolution():
    """A network whose tensors can be counted by hand."""

    class SineNetwork(torch.nn.Module):
        def __init__(self, _):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(5))

        def forward(self, x, t, order_key=None):
            return (x * self.w[0]).sin() * self.w[1]

    run, volume = config(), 4 * 8 * 16**3  # bytes of the batch
    patched = pytest.MonkeyPatch()
    patched.setattr(memory, "build_network", lambda _: SineNetwork(None))
    try:
        step = predict(run, CPU).step - 4 * volume  # without the input batches
    finally:
        patched.undo()
    # The backward pass starts with x, the noise, x w, its sine and the prediction in memory. It adds the gradient of
    # the prediction, its products with the sine and with w, and, before these are freed, the gradient of x w.
    assert 5 * volume < step < 10 * volume
    assert step < predict(replace(run, training=replace(run.training, batch_size=16)), CPU).step / 1.9


def test_memory_falls_with_micro_batches_and_recomputing():
    whole = predict(config(), CPU)
    small = [predict(config(micro_batch_size=n), CPU) for n in (4, 2, 1)]
    recomputed = predict(config(activation_checkpointing=True), CPU)
    steps = [whole.step, *(m.step for m in small)]
    assert steps == sorted(steps, reverse=True)
    assert steps[2] < 0.5 * steps[0]
    assert recomputed.step < 0.95 * whole.step
    assert {m.weights for m in (whole, *small, recomputed)} == {whole.weights}
    assert predict(config(), CPU, processes=2).step < 0.6 * whole.step


def test_memory_grows_with_the_voxels():
    sides = (8, 16, 32)
    steps = [predict(config(side), CPU).step for side in sides]
    slopes = [math.log(b / a) / math.log(8) for a, b in pairwise(steps)]
    assert 0.9 < slopes[1] < 1.1


def test_images_and_the_unet_have_a_prediction_too():
    unet = RunConfig(
        system="unet", unet=UNetConfig(widths=(8, 16), attention=(False, True), norm_groups=4),
        data=DataConfig(size=16), diffusion=DiffusionConfig(timesteps=100),
    )  # fmt: skip
    assert predict(unet, CPU).step > 0
    images = RunConfig(model=ModelConfig(**SMALL), data=DataConfig(size=16), diffusion=DiffusionConfig(timesteps=100))
    assert predict(images, CPU).step > predict(replace(images, data=DataConfig(size=8)), CPU).step


def test_too_little_memory_is_refused_with_what_makes_it_fit():
    need = predict(config(), CPU)
    with pytest.raises(InputError, match=r"GB are available; set training\.micro_batch_size to 4, which needs") as no:
        check_fits(config(), CPU, have=need.total - 1)
    size = int(re.search(r"micro_batch_size to (\d+)", str(no.value))[1])
    assert check_fits(config(micro_batch_size=size), CPU, have=need.total - 1).total < need.total
    with pytest.raises(InputError, match=r"use a smaller data\.size, a narrower or coarser model"):
        check_fits(config(micro_batch_size=1), CPU, have=1)
    assert check_fits(config(), CPU, have=need.total) == need


def test_recomputing_comes_where_micro_batches_are_not_enough():
    run = config(32, micro_batch_size=1)
    least = predict(replace(run, training=replace(run.training, activation_checkpointing=True)), CPU)
    between = (predict(run, CPU).total + least.total) // 2
    with pytest.raises(InputError, match=r"set training\.activation_checkpointing to true, which needs about"):
        check_fits(run, CPU, have=between)


def test_a_run_that_does_not_fit_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "available", lambda device: 10)
    command = ["train", "--config", "demo-3d", "--data.root", str(tmp_path), "--run", str(tmp_path / "run")]
    small = ["--model.base_channels", "8", "--model.sampling", "[2]", "--model.channel_multipliers", "[1]",
             "--training.batch_size", "1", "--training.activation_checkpointing", "true"]  # fmt: skip
    assert main([*command, *small, "--training.device", "cpu"]) == 1
    assert "GB are available; use a smaller data.size" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_is_there_is_known_here():
    have = available(CPU)
    assert have is None or 0 < have < 2**50
    assert available(torch.device("meta")) is None


def test_recomputing_changes_no_gradient():
    torch.manual_seed(0)
    model = VMDDPM(config().model).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x, t, found = torch.randn(2, 1, 16, 16, 16), torch.tensor([3, 70]), []
    for recompute in (False, True):
        model.recompute = recompute
        model.zero_grad()
        model(x, t, order_key=(1, 2)).square().mean().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found))
