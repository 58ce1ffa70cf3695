"""GAN training: losses by their definitions, resuming bit for bit, run folders, samples."""

import copy
import math
import os
import signal
from dataclasses import replace

import pytest
import torch
from gan_cases import gan_config, real_slices

from vmddpm.baselines.config import GANConfig
from vmddpm.baselines.losses import cutmix_loss, cutmix_mask, discriminator_loss, generator_loss
from vmddpm.baselines.networks import Generator
from vmddpm.data import DataError
from vmddpm.diffusion import DiffusionConfig
from vmddpm.generate import generate
from vmddpm.model.unet import UNetConfig
from vmddpm.samples import read_samples
from vmddpm.seeding import mix_seed
from vmddpm.training import RunError, RunFolder, TrainingError, gan_learner, train
from vmddpm.training.batches import images_at
from vmddpm.training.checkpoints import Checkpoints
from vmddpm.training.gan_learner import LATENTS, GANLearner, inputs_at
from vmddpm.training.ranks import Ranks

GANS = ("dcgan", "sagan", "unetgan")


@pytest.fixture(scope="module")
def images():
    return real_slices(16, 7)


def weights(folder):
    return {kind: Generator.from_pretrained(str(folder.weights(kind))).state_dict() for kind in ("ema", "raw")}


def assert_same(a, b):
    for kind in ("ema", "raw"):
        assert a[kind].keys() == b[kind].keys()
        assert all(torch.equal(a[kind][name], b[kind][name]) for name in a[kind])


class Stop(Exception):
    pass


def train_until(step, cfg, images, folder, monkeypatch):
    """Train like a process that is killed at the start of a step."""
    def killed(dataset, at, config, rows):
        if at == step:
            raise Stop
        return inputs_at(dataset, at, config, rows)

    with monkeypatch.context() as patch:
        patch.setattr(gan_learner, "inputs_at", killed)
        with pytest.raises(Stop):
            train(cfg, images, folder, progress=False)


@pytest.mark.parametrize(("system", "killed_at"), [("dcgan", 5), ("sagan", 5), ("unetgan", 1), ("unetgan", 2)])
def test_a_stopped_run_ends_in_the_same_weights(system, killed_at, images, tmp_path, monkeypatch):
    uninterrupted, stopped = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "stopped")
    train(gan_config(system), images, uninterrupted, progress=False)
    train_until(killed_at, gan_config(system), images, stopped, monkeypatch)
    torch.rand(100)  # other users of random numbers do not matter
    train(gan_config(system), images, stopped, progress=False)
    assert_same(weights(uninterrupted), weights(stopped))
    losses = [[(m["step"], m["loss"], m["discriminator_loss"]) for m in f.metrics()] for f in (uninterrupted, stopped)]
    assert losses[0] == losses[1]
    assert [step for step, _, _ in losses[0]] == [1, 2, 3, 4, 5, 6]
    assert {p.name for p in (uninterrupted.path / "samples").iterdir()} == {"step-00000003.png", "step-00000006.png"}
    assert (uninterrupted.path / "loss.png").exists()


def test_a_finished_run_can_be_made_longer(images, tmp_path):
    whole, extended = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "extended")
    for folder, steps in ((whole, 6), (extended, 3), (extended, 6)):
        train(gan_config("dcgan", steps=steps), images, folder, progress=False)
    assert_same(weights(whole), weights(extended))


class ActionAfterReads:
    """A data set that runs an action after a number of reads in training, which first reads each image once."""

    def __init__(self, images, after, action):
        self.images, self.left, self.action = images, len(images) + after, action

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        self.left -= 1
        if self.left == 0:
            self.action()
        return self.images[i]


def test_ctrl_c_and_data_that_disappear_save_what_was_trained(images, tmp_path):
    def raise_error():
        raise DataError("image 3 cannot be read any more")

    run = gan_config("dcgan", checkpoint_every=100, sample_every=0)
    whole = RunFolder(tmp_path / "whole")
    train(run, images, whole, progress=False)
    for name, action, error in (
        ("interrupt", lambda: os.kill(os.getpid(), signal.SIGINT), KeyboardInterrupt),
        ("terminate", lambda: os.kill(os.getpid(), signal.SIGTERM), KeyboardInterrupt),
        ("gone", raise_error, DataError),
    ):
        folder = RunFolder(tmp_path / name)
        with pytest.raises(error):
            train(run, ActionAfterReads(images, 9, action), folder, progress=False)
        assert 0 < Checkpoints(folder.path / "checkpoints").newest()["step"] < 6
        train(run, images, folder, progress=False)
        assert_same(weights(whole), weights(folder))


def test_steps_that_are_not_finite_are_skipped_and_at_last_given_up(images, tmp_path):
    images = torch.stack(images)
    images[2] = math.nan
    folder = RunFolder(tmp_path / "some")
    train(gan_config("dcgan", batch_size=2, sample_every=0), images, folder, progress=False)
    assert 0 < folder.metrics()[-1]["skipped"] < 6
    with pytest.raises(TrainingError, match="not finite for 50 steps"):
        train(gan_config("dcgan", steps=100), images * math.nan, RunFolder(tmp_path / "all"), progress=False)


def test_other_data_are_refused(images, tmp_path):
    train(gan_config("dcgan", steps=1), images, RunFolder(tmp_path), progress=False)
    with pytest.raises(TrainingError, match="image 6 differs from the one the run began with"):
        train(gan_config("dcgan"), [*images[:6], images[0]], RunFolder(tmp_path), progress=False)


def test_gradients_of_parts_against_torch_alone(images):
    """Two parts of two images: each turn's gradient is the mean over the parts, which are normalised separately."""
    config = gan_config("dcgan", micro_batch_size=2)
    learner = GANLearner(config, Ranks(0, 1, torch.device("cpu")))
    generator, discriminator = copy.deepcopy(learner.raw), copy.deepcopy(learner.discriminator)
    inputs = learner.inputs_at(images, 0, range(4))
    assert learner.step(inputs, 0, 1e-3).finite
    assert any(not torch.equal(p, q) for p, q in zip(discriminator.parameters(), learner.discriminator.parameters()))

    def gradient(network, loss_of):
        halves = [torch.autograd.grad(loss_of(rows), list(network.parameters())) for rows in (slice(0, 2), slice(2, 4))]
        return [(a + b) / 2 for a, b in zip(*halves)]

    bce = torch.nn.functional.binary_cross_entropy_with_logits

    def judged(rows):
        real, fake = discriminator(inputs.real[rows])[0], discriminator(generator(inputs.first[rows]).detach())[0]
        return bce(real, torch.ones(2)) + bce(fake, torch.zeros(2))

    def drawn(rows):  # with the updated discriminator
        return bce(learner.discriminator(generator(inputs.second[rows]))[0], torch.ones(2))

    for network, loss_of, found in ((discriminator, judged, learner.discriminator), (generator, drawn, learner.raw)):
        for expected, parameter in zip(gradient(network, loss_of), found.parameters()):
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-7)


def test_a_part_that_is_the_whole_batch_changes_nothing(images, tmp_path):
    for name, size in (("whole", None), ("part", 4)):
        config = gan_config("unetgan", steps=2, sample_every=0, micro_batch_size=size)
        train(config, images, RunFolder(tmp_path / name), progress=False)
    assert_same(weights(RunFolder(tmp_path / "whole")), weights(RunFolder(tmp_path / "part")))


@pytest.mark.parametrize("system", [*GANS, "unet"])
def test_samples_of_a_run(system, images, tmp_path):
    """`vmddpm sample` writes the same files every time and with any block size."""
    folder = RunFolder(tmp_path / "run")
    config = gan_config(system, steps=2, sample_every=0)
    if system == "unet":
        unet = UNetConfig(widths=(8, 16), attention=(False, True), layers_per_stage=1, norm_groups=4)
        config = replace(config, unet=unet)
    train(config, images, folder, progress=False)
    assert folder.load_config() == config
    options = {"sampler": "ddim", "steps": 2, "device": "cpu", "progress": False, "batch_size": 4}
    generate(folder.path, tmp_path / "a", 6, **options)
    generate(folder.path, tmp_path / "b", 3, **options)
    generate(folder.path, tmp_path / "b", 6, **options)
    a, b = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "ab")
    assert a == b
    assert len({a[f"{i:06d}.png"] for i in range(6)}) == 6
    with pytest.raises(ValueError, match="has no scans"):
        generate(folder.path, tmp_path / "c", 2, ordered=True, **options)


def test_another_system_is_another_run(images, tmp_path):
    train(gan_config("dcgan", steps=1), images, RunFolder(tmp_path), progress=False)
    with pytest.raises(RunError, match="system is 'dcgan' there and 'sagan' here"):
        train(gan_config("sagan", steps=1), images, RunFolder(tmp_path), progress=False)
    with pytest.raises(RunError, match=r"gan\.latent_dim is 12 there and 5 here"):
        train(gan_config("dcgan", gan={"latent_dim": 5}), images, RunFolder(tmp_path), progress=False)


def test_what_gans_cannot_do_is_refused_before_work(images, tmp_path, monkeypatch):
    with pytest.raises(TrainingError, match="has no image"):
        train(gan_config("dcgan"), [], RunFolder(tmp_path / "run"))
    for options in ({"compile": "default"}, {"precision": "fp16"}, {"optimizer": "muon"}):
        with pytest.raises(TrainingError, match=f"training.{next(iter(options))}"):
            train(gan_config("dcgan", **options), images, RunFolder(tmp_path / "run"))
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(TrainingError, match="batch_size is 4; with dcgan and a micro_batch_size it must be a multiple"):
        train(gan_config("dcgan", micro_batch_size=1), images, RunFolder(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_inputs_belong_to_images(images):
    """Latents are uniform on [-1, 1] and new for each turn and step; images are the same as for any other system."""
    config = gan_config("unetgan", gan={"latent_dim": 1000})
    a, b = inputs_at(images, 3, config), inputs_at(images, 4, config)
    assert torch.equal(a.real, images_at(images, 3, config.training))
    stacked = torch.cat([a.first, a.second, b.first, b.second])
    assert stacked.shape == (16, 1000)
    assert len({row.sum().item() for row in stacked}) == 16
    assert stacked.min() >= -1
    assert stacked.max() < 1
    assert stacked.mean().abs() < 0.02
    assert stacked.square().mean() == pytest.approx(1 / 3, rel=0.03)
    source = torch.Generator().manual_seed((mix_seed(0, LATENTS) + 3 * 4 + 1) & 0xFFFFFFFF)
    assert torch.equal(a.first[1], torch.rand(1000, generator=source) * 2 - 1)
    assert torch.equal(inputs_at(images, 3, config).mask, a.mask)


def test_losses_by_definition():
    bce, hinge = GANConfig(), GANConfig(loss="hinge")
    real, fake = (torch.tensor([0.5, -2.0]),), (torch.tensor([1.0, -0.3]),)

    def p(x):
        return 1 / (1 + math.exp(-x))

    expected = -(math.log(p(0.5)) + math.log(p(-2.0))) / 2 - (math.log(1 - p(1.0)) + math.log(1 - p(-0.3))) / 2
    assert discriminator_loss(real, fake, bce).item() == pytest.approx(expected, rel=1e-6)
    assert generator_loss(fake, bce).item() == pytest.approx(-(math.log(p(1.0)) + math.log(p(-0.3))) / 2, rel=1e-6)
    assert discriminator_loss(real, fake, hinge).item() == pytest.approx((0.5 + 3.0) / 2 + (2.0 + 0.7) / 2)
    assert generator_loss(fake, hinge).item() == pytest.approx(-0.35)
    pixels = (torch.zeros(2, 1, 4, 4), torch.tensor([0.5, -2.0]))
    assert discriminator_loss(pixels, pixels, bce).item() == pytest.approx(
        (2 * math.log(2) + discriminator_loss(real, real, bce).item()) / 2, rel=1e-6
    )


def test_cutmix_loss_by_loops():
    torch.manual_seed(1)
    answers = [(torch.randn(2, 1, 3, 3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)) for _ in range(3)]
    mask = (torch.rand(2, 1, 3, 3) < 0.5).double()
    mixed, real, fake = answers
    total = 0.0
    for b in range(2):
        total += math.log(1 + math.exp(mixed[1][b])) / 2
        for i in range(3):
            for j in range(3):
                d, m = mixed[0][b, 0, i, j].item(), mask[b, 0, i, j].item()
                target = real[0][b, 0, i, j].item() if m else fake[0][b, 0, i, j].item()
                total += (math.log(1 + math.exp(-d if m else d)) + (d - target) ** 2) / 18
    assert cutmix_loss(mixed, real, fake, mask, GANConfig()).item() == pytest.approx(total, rel=1e-12)


def test_cutmix_masks():
    """A box or its complement, both equally often, with every share of the image."""
    masks = cutmix_mask(4000, 16, torch.Generator().manual_seed(0))
    assert masks.shape == (4000, 1, 16, 16)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert masks.mean() == pytest.approx(0.5, abs=0.02)
    shares = masks.mean((1, 2, 3))
    assert torch.histc(shares, 4, 0, 1).min() > 400
    for mask in masks[:50, 0]:
        inside = 1 - mask if mask[0, 0] and mask[-1, -1] and mask[0, -1] and mask[-1, 0] else mask
        rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
        if len(rows):
            box = inside[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert box.all() or not mask.all()


OVERFIT = {  # steps, and options that differ from `gan_config`
    "dcgan": (3000, {"base_channels": 16, "discriminator_learning_rate": 5e-5}),
    "sagan": (1500, {"base_channels": 16}),
    "unetgan": (2500, {"base_channels": 16, "cutmix": 0.0}),  # CutMix would prevent memorisation
    "unet": (2500, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("system", OVERFIT)
def test_a_batch_is_memorised(system, tmp_path, capsys):
    """16 real slices, 4 mm apart: samples are as close to a slice as its neighbour is, and most slices have one."""
    real = torch.stack(real_slices(32, 16))
    steps, gan = OVERFIT[system]
    gan = {"latent_dim": 64, "attention_size": 16, "cutmix_warmup_steps": 300, **gan}
    config = gan_config(system, 32, gan, steps=steps, batch_size=16, learning_rate=5e-4, cooldown=0.5, flip=False,
                        sample_every=0, log_every=50, checkpoint_every=steps, ema_decay=0.99)  # fmt: skip
    if system == "unet":
        unet = UNetConfig(widths=(16, 32, 64), attention=(False, False, True), layers_per_stage=1, norm_groups=8)
        training = replace(config.training, sample_steps=25, learning_rate=2e-3)
        diffusion = DiffusionConfig(timesteps=100, beta_schedule="squaredcos_cap_v2")
        config = replace(config, unet=unet, training=training, diffusion=diffusion)
    train(config, real, RunFolder(tmp_path / "run"), progress=False)
    generate(tmp_path / "run", tmp_path / "samples", 64, sampler="ddim", steps=25, batch_size=64, progress=False)
    pixels = torch.stack([torch.from_numpy(block[0, ..., 0]) for block in read_samples(tmp_path / "samples")])
    drawn = pixels.float().flatten(1) / 127.5 - 1
    between = torch.cdist(real.flatten(1), real.flatten(1)).fill_diagonal_(math.inf).amin(1) / 32  # root mean square
    nearest = (torch.cdist(drawn, real.flatten(1)) / 32).min(1)
    with capsys.disabled():
        print(f"\n{system}: {nearest.values.median():.3f} from the nearest real slice (median), which are "
              f"{between.median():.3f} apart; {len(nearest.indices.unique())} of 16 drawn")  # fmt: skip
    assert nearest.values.median() < between.median()
    assert len(nearest.indices.unique()) >= 10
