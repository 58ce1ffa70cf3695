"""Runs in their own processes, as a user starts them, with kills and other faults."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from nibabel.testing import data_path
from safetensors.torch import load_file
from test_training_run import environment

from vmddpm.samples import read_samples
from vmddpm.training import RunFolder

GAN = """
gan: {latent_dim: 12, base_channels: 8, attention_size: 8, cutmix_warmup_steps: 3}
data: {size: 16, min_foreground: 0.05, frames: first}
training: {steps: 10, batch_size: 6, learning_rate: 0.0002, log_every: 1, checkpoint_every: 3, sample_every: 5,
           sample_count: 2, device: cpu}
"""
SMALL = """
model: {base_channels: 8, channel_multipliers: [1, 2], sampling: [2, 2], norm_groups: 4, d_state: 2}
diffusion: {timesteps: 20}
data: {size: 16, min_foreground: 0.05, frames: first}
training: {steps: 50, batch_size: 6, learning_rate: 0.001, log_every: 1, checkpoint_every: 3, sample_every: 10,
           sample_count: 2, sample_steps: 2, device: cpu}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a configuration and an uninterrupted run of it."""
    runs = tmp_path_factory.mktemp("faults")
    (runs / "small.yaml").write_text(SMALL)
    (runs / "gan.yaml").write_text(GAN)
    completed(train(runs, "whole"))
    return runs


def train(runs, name, *options, ranks=1, config="small.yaml"):
    launcher = ["-m", "vmddpm.cli"]
    if ranks > 1:
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        launcher = ["-m", *torchrun, *launcher[:1], "--", *launcher[1:]]
    config, root = runs / config, data_path / "example4d.nii.gz"
    return start(runs, launcher, "train", "--config", config, "--data.root", root, "--run", runs / name, *options)


def start(runs, launcher, *arguments):
    command = [sys.executable, *launcher, *map(str, arguments)]
    quiet = {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(runs / "cache")}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**environment(), **quiet})  # fmt: skip


def completed(process, code=0):
    out, error = process.communicate(timeout=900)
    assert process.returncode == code, error
    return out, error


def weights(folder):
    return [load_file(folder / "weights" / kind / "model.safetensors") for kind in ("ema", "raw")]


def assert_same_run(a, b):
    for first, second in zip(weights(a), weights(b)):
        assert all(first[name].equal(second[name]) for name in first)
    losses = [[(m["step"], m["loss"]) for m in RunFolder(folder).metrics()] for folder in (a, b)]
    assert losses[0] == losses[1]
    pictures = [{p.name: p.read_bytes() for p in (folder / "samples").iterdir()} for folder in (a, b)]
    assert pictures[0] == pictures[1]
    assert not [path for path in b.rglob("*") if ".tmp" in path.name]


def wait_until(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def reaches(folder, step):
    return lambda: any(m["step"] == step for m in RunFolder(folder).metrics())


def children(process):
    """The child processes, in order of rank."""
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        return sorted(map(int, file.read().split()))


def kill_repeatedly(folder, start_again, kills, rng):
    """Kill a run several times at random moments, each at a later step; then let it finish."""
    for step in sorted(rng.sample(range(1, 50), kills)):
        process = start_again()
        wait_until(reaches(folder, step), process)
        time.sleep(rng.uniform(0, 0.1))  # in the middle of a step, or of a checkpoint
        process.kill()
        process.communicate()
    return completed(start_again())


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_training_that_is_killed_ends_in_the_same_weights(runs, kills):
    name = f"killed-{kills}"
    kill_repeatedly(runs / name, lambda: train(runs, name), kills, random.Random(kills))
    assert_same_run(runs / "whole", runs / name)


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_sampling_that_is_killed_ends_in_the_same_images(runs, kills):
    blocks = 4 * kills + 2
    options = ("sample", "--run", runs / "whole", "--images", 4 * blocks - 1, "--batch-size", 4, "--sampler", "ddpm",
               "--format", "npy", "--device", "cpu")  # fmt: skip
    completed(start(runs, ["-m", "vmddpm.cli"], *options, "--out", runs / f"images-whole-{kills}"))
    out, rng = runs / f"images-{kills}", random.Random(kills)
    for count in sorted(rng.sample(range(1, blocks), kills)):
        process = start(runs, ["-m", "vmddpm.cli"], *options, "--out", out)
        wait_until(lambda count=count: len(list(out.glob("images-*.npy"))) >= count, process)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.communicate()
    completed(start(runs, ["-m", "vmddpm.cli"], *options, "--out", out))
    made = [{p.name: p.read_bytes() for p in folder.iterdir()} for folder in (runs / f"images-whole-{kills}", out)]
    assert made[0] == made[1]


@pytest.mark.slow
def test_memory_stays_the_same_over_fifty_thousand_images(runs):
    """Peak memory of the whole command; the images are 12.8 MB."""
    peaks = []
    for count in (2_000, 50_000):
        out = runs / f"many-{count}"
        code = (
            "import resource, sys; from vmddpm.cli import main\n"
            "assert main(sys.argv[1:]) == 0\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
        )
        options = ("--run", runs / "whole", "--images", count, "--batch-size", 200, "--sampler", "ddim", "--steps", 1,
                   "--format", "npy", "--device", "cpu", "--out", out)  # fmt: skip
        printed, _ = completed(start(runs, ["-c", code], "sample", *options))
        peaks.append(float(printed))
        assert sum(len(block) for block in read_samples(out)) == count
    print(f"peak memory in MiB: {peaks}")
    assert peaks[1] - peaks[0] < 8


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_many_processes_train_as_one_and_survive_the_death_of_one(runs, ranks):
    """Several processes share the same batches. Gradients are summed in another order, so weights differ by rounding;
    after a kill and a restart they have the same bits."""
    many, killed = f"many-{ranks}", f"many-killed-{ranks}"
    completed(train(runs, many, ranks=ranks))
    for one, other in zip(weights(runs / "whole"), weights(runs / many)):
        difference = sum((one[name] - other[name]).double().square().sum() for name in one)
        assert difference.sqrt() < 1e-6 * sum(one[name].double().square().sum() for name in one).sqrt()
    losses = [[m["loss"] for m in RunFolder(runs / name).metrics()] for name in ("whole", many)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)

    process = train(runs, killed, ranks=ranks)
    wait_until(reaches(runs / killed, 17), process)
    os.kill(children(process)[1], signal.SIGKILL)
    completed(process, code=1)
    completed(train(runs, killed, ranks=ranks))
    assert_same_run(runs / many, runs / killed)


@pytest.mark.slow
def test_a_gan_that_is_killed_ends_in_the_same_weights(runs):
    options = ("--system", "unetgan", "--training.steps", 50)
    completed(train(runs, "gan-whole", *options, config="gan.yaml"))
    kill_repeatedly(runs / "gan-killed", lambda: train(runs, "gan-killed", *options, config="gan.yaml"), 4,
                           random.Random(5))  # fmt: skip
    assert_same_run(runs / "gan-whole", runs / "gan-killed")


@pytest.mark.slow
@pytest.mark.parametrize(("system", "ranks"), [("dcgan", 2), ("sagan", 3), ("unetgan", 2)])
def test_many_processes_train_a_gan_as_one_and_survive_the_death_of_one(runs, system, ranks):
    """A bias before batch normalisation has a gradient of 0 up to rounding, which Adam turns into full steps. Weights
    may differ by such steps, losses may not."""
    def start_again(name, ranks):
        return train(runs, name, "--system", system, ranks=ranks, config="gan.yaml")

    one, many, killed = f"{system}-one", f"{system}-many", f"{system}-killed"
    completed(start_again(one, 1))
    completed(start_again(many, ranks))
    losses = [[(m["loss"], m["discriminator_loss"]) for m in RunFolder(runs / n).metrics()] for n in (one, many)]
    assert len(losses[0]) == 10
    for ours, theirs in zip(*losses):
        assert theirs == pytest.approx(ours, rel=1e-5)
    for a, b in zip(weights(runs / one), weights(runs / many)):
        difference = sum((a[name] - b[name]).double().square().sum() for name in a)
        assert difference.sqrt() < 2e-4 * sum(a[name].double().square().sum() for name in a).sqrt()

    process = start_again(killed, ranks)
    wait_until(reaches(runs / killed, 4), process)
    os.kill(children(process)[1], signal.SIGKILL)
    completed(process, code=1)
    completed(start_again(killed, ranks))
    assert_same_run(runs / many, runs / killed)


def test_ctrl_c_saves_says_how_to_continue_and_ends(runs):
    process = train(runs, "stopped", "--training.checkpoint_every", 100)
    wait_until(reaches(runs / "stopped", 7), process)
    process.send_signal(signal.SIGINT)
    out, error = completed(process, code=130)
    assert "stopped and saved at step" in out + error
    assert "Traceback" not in error
    assert RunFolder(runs / "stopped").load_model("ema")
