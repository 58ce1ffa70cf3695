"""Micro-batches, half precision, torch.compile, and stop requests or lost data in mid-run."""

import os
import signal
from dataclasses import replace
from datetime import datetime

import pytest
import torch
from test_training_run import assert_same_weights, config, train_until, weights

from vmddpm.data import DataError
from vmddpm.diffusion import DiffusionConfig
from vmddpm.training import RunError, RunFolder, train
from vmddpm.training.checkpoints import Checkpoints
from vmddpm.training.report import Report, duration

IMAGES = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1


def trained(path, images=IMAGES, **options):
    folder = RunFolder(path)
    train(config(sample_every=0, **options), images, folder, progress=False)
    return folder


def distance(a, b):
    """The norm of the difference of two runs' weights, relative to the norm of the weights."""
    a, b = (torch.cat([v.flatten() for v in weights(folder)["raw"].values()]).double() for folder in (a, b))
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_parts_of_a_batch_train_as_the_whole(tmp_path, size):
    whole = trained(tmp_path / "whole", batch_size=5)
    parts = trained(tmp_path / "parts", batch_size=5, micro_batch_size=size)
    assert distance(parts, whole) < 1e-6
    assert distance(trained(tmp_path / "start", batch_size=5, steps=0), whole) > 1e-3
    losses = [[m["loss"] for m in folder.metrics()] for folder in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_and_resumes_bit_for_bit(tmp_path, monkeypatch, precision):
    whole = trained(tmp_path / "whole", precision=precision)
    train_until(3, config(precision=precision, sample_every=0), IMAGES, RunFolder(tmp_path / "stopped"), monkeypatch)
    stopped = trained(tmp_path / "stopped", precision=precision)
    assert_same_weights(weights(whole), weights(stopped))
    assert all(v.dtype == torch.float32 and v.isfinite().all() for v in weights(whole)["raw"].values())
    assert 0 < distance(whole, trained(tmp_path / "fp32")) < 0.02


def test_the_scale_of_the_loss_finds_itself(tmp_path):
    """float16's largest number is 65504, so some gradients of 2^16 times the loss overflow."""
    run = config(steps=12, precision="fp16", checkpoint_every=1, keep_checkpoints=20, sample_every=0)
    run = replace(run, diffusion=DiffusionConfig(timesteps=20, prediction_type="v_prediction"))
    folder = RunFolder(tmp_path)
    train(run, 30 + IMAGES, folder, progress=False)  # far from [-1, 1]: the error of the first step is about 900
    scales = [torch.load(path)["scaler"]["scale"] for path in Checkpoints(tmp_path / "checkpoints").paths()]
    skipped = [m["skipped"] for m in folder.metrics()]
    assert 0 < skipped[-1] < 12
    assert scales == [2.0 ** (16 - n) for n in skipped]


class ActionAfterReads:
    """A data set that runs an action after a number of reads in training, which first reads each image once."""

    def __init__(self, after, action):
        self.left, self.action = len(IMAGES) + after, action

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, i):
        self.left -= 1
        if self.left == 0:
            self.action()
        return IMAGES[i]


def test_the_bar_has_no_end_before_the_time_is_known(tmp_path):
    options = config(steps=1_000_000, minutes=2.0, batch_size=1).training
    with Report(RunFolder(tmp_path), options, 0, 0.0, torch.device("cpu"), False) as report:
        assert report.bar.total is None
        report.step(5, 2.0, {"loss": 1.0, "gradient_norm": 1.0})
        assert report.bar.total == 300  # 2.5 steps a second for two minutes
    with Report(RunFolder(tmp_path), options, 100, 60.0, torch.device("cpu"), False) as report:
        assert report.bar.total == 200
    with Report(RunFolder(tmp_path), config(steps=50).training, 0, 0.0, torch.device("cpu"), False) as report:
        assert report.bar.total == 50


def test_a_start_reports_its_speed_and_end_after_ten_steps(tmp_path, capsys):
    options = config(steps=100_030, batch_size=1).training
    with Report(RunFolder(tmp_path), options, 20, 500.0, torch.device("cpu"), True) as report:
        for step in range(21, 41):  # the first step takes a minute, the others two seconds
            report.step(step, 500.0 + 60 + 2 * (step - 21), {"loss": 1.0, "gradient_norm": 1.0})
        output = capsys.readouterr().out.removeprefix("continues from step 20\n")
        assert output.startswith("2 s a step, 2.3 days left: it ends about ")  # 100,000 steps
        now = datetime(2026, 2, 28, 12)
        assert "2026-03-02 19:33" in report.remaining_time(30, 578.0, 2.0, now)
        assert "not in this century" in report.remaining_time(30, 578.0, 1e5, now)
    report.options = config(steps=100_030, minutes=20.0).training
    assert "10 minutes left: it ends about 2026-02-28 12:10" in report.remaining_time(30, 578.0, 2.0, now)
    assert "20 seconds left" in report.remaining_time(100_020, 578.0, 2.0, now)


def test_durations_are_printed_in_the_largest_unit_that_fits_twice():
    found = [duration(seconds) for seconds in (0, 119, 120, 7199, 7200, 172_799, 172_800, 3.2e8)]
    minutes, hours, days = ["2.0 minutes", "120 minutes"], ["2.0 hours", "48 hours"], ["2.0 days", "3,704 days"]
    assert found == ["0 seconds", "119 seconds", *minutes, *hours, *days]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_how_to_continue(tmp_path, capsys, number):
    handler = signal.getsignal(number)
    whole = trained(tmp_path / "whole", checkpoint_every=100)
    stopping = ActionAfterReads(8, lambda: os.kill(os.getpid(), number))
    stopped = RunFolder(tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        train(config(checkpoint_every=100, sample_every=0), stopping, stopped, progress=False)
    step = Checkpoints(stopped.path / "checkpoints").newest()["step"]
    assert 0 < step < 6
    assert f"stopped and saved at step {step}; run the same command again to go on" in capsys.readouterr().out
    train(config(checkpoint_every=100, sample_every=0), IMAGES, stopped, progress=False)
    assert_same_weights(weights(whole), weights(stopped))
    assert signal.getsignal(number) == handler


def test_data_that_disappear_end_the_run_with_its_work_saved(tmp_path):
    def raise_error():
        raise DataError("images.npy: image 3 cannot be read any more")

    whole = trained(tmp_path / "whole", checkpoint_every=100)
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(DataError, match="image 3 cannot be read any more; the run is saved at step 3"):
        train(config(checkpoint_every=100, sample_every=0), ActionAfterReads(11, raise_error), folder, progress=False)
    assert Checkpoints(folder.path / "checkpoints").newest()["step"] == 3  # three images a step
    train(config(checkpoint_every=100, sample_every=0), IMAGES, folder, progress=False)
    assert_same_weights(weights(whole), weights(folder))


def test_a_full_disk_ends_the_run_with_its_last_checkpoint_intact(small_disk, tmp_path):
    """Another program leaves less space than a checkpoint needs, or none."""
    run = small_disk / "run"
    trained(run, steps=2)
    for left, words in ((100_000, r"step 4 cannot be .* step-00000002-.* is intact"), (0, "cannot be written")):
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        (small_disk / "ballast").write_bytes(b"\0" * (free - left))
        with pytest.raises(RunError, match=words):
            trained(run, steps=4)
        assert Checkpoints(run / "checkpoints").newest()["step"] == 2
        (small_disk / "ballast").unlink()
    trained(run, steps=4)
    assert_same_weights(weights(RunFolder(run)), weights(trained(tmp_path / "whole", steps=4)))


@pytest.mark.slow
def test_compiled_training(tmp_path):
    compiled = trained(tmp_path / "compiled", compile="default")
    assert 0 < distance(compiled, trained(tmp_path / "eager")) < 1e-4
    assert_same_weights(weights(compiled), weights(trained(tmp_path / "again", compile="default")))
