"""Training runs: bit-exact resuming, run folders that are never overwritten, and the files of a run."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vmddpm.data import DataConfig, SliceDataset
from vmddpm.data.remarks import Remark
from vmddpm.diffusion import DiffusionConfig
from vmddpm.model import VMDDPM, ModelConfig
from vmddpm.training import RunConfig, RunError, RunFolder, TrainingConfig, TrainingError, diffusion_learner, train
from vmddpm.training.batches import inputs_at
from vmddpm.training.checkpoints import Checkpoints
from vmddpm.training.learner import update_ema
from vmddpm.training.trainer import learning_rate_at

MODEL = {"base_channels": 8, "channel_multipliers": (1, 2), "sampling": (2, 2), "norm_groups": 4, "d_state": 2,
         "layers_per_stage": 1}  # fmt: skip


def config(**training):
    options = {"batch_size": 3, "learning_rate": 1e-3, "steps": 6, "log_every": 1, "checkpoint_every": 2,
               "sample_every": 3, "sample_count": 2, "sample_steps": 2, "device": "cpu", **training}  # fmt: skip
    return RunConfig(ModelConfig(**MODEL), DiffusionConfig(timesteps=20), DataConfig(size=8), TrainingConfig(**options))


@pytest.fixture
def images():
    return torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1


def weights(folder):
    return {kind: VMDDPM.from_pretrained(str(folder.weights(kind))).state_dict() for kind in ("ema", "raw")}


def assert_same_weights(a, b):
    for kind in ("ema", "raw"):
        assert a[kind].keys() == b[kind].keys()
        assert all(torch.equal(a[kind][name], b[kind][name]) for name in a[kind])


def environment():
    """The environment for processes that import these tests and the tested packages."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


class Stop(Exception):
    pass


def train_until(step, cfg, images, folder, monkeypatch):
    """Train like a process that is killed at the start of a step."""
    real = inputs_at

    def inputs(dataset, at, cfg, rows):
        if at == step:
            raise Stop
        return real(dataset, at, cfg, rows)

    with monkeypatch.context() as patch:
        patch.setattr(diffusion_learner, "inputs_at", inputs)
        with pytest.raises(Stop):
            train(cfg, images, folder, progress=False)


@pytest.mark.parametrize("killed_at", [0, 1, 2, 3, 5])
def test_a_stopped_run_ends_in_the_same_weights(images, tmp_path, monkeypatch, killed_at):
    whole, stopped = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "stopped")
    train(config(), images, whole, progress=False)
    train_until(killed_at, config(), images, stopped, monkeypatch)
    torch.rand(100)  # other users of random numbers do not matter
    train(config(), images, stopped, progress=False)
    assert_same_weights(weights(whole), weights(stopped))
    losses = [[(m["step"], m["loss"]) for m in folder.metrics()] for folder in (whole, stopped)]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_can_be_made_longer(images, tmp_path):
    whole, extended = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "extended")
    train(config(steps=6), images, whole, progress=False)
    train(config(steps=3), images, extended, progress=False)
    train(config(steps=6), images, extended, progress=False)
    assert_same_weights(weights(whole), weights(extended))


def test_a_run_that_logs_no_step_has_no_loss_curve(images, tmp_path):
    folder = RunFolder(tmp_path / "run")
    train(config(steps=1, log_every=2, sample_every=0), images, folder, progress=False)
    assert not (tmp_path / "run" / "loss.png").exists()


def test_remarks_of_images_that_are_gone_do_not_stay(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.training(config()):
        folder.begin(config(), 0, [Remark("a.png", "error", "cut short")])
        assert "a.png" in folder.remarks_path.read_text()
        folder.begin(config(), 0)
    assert not folder.remarks_path.exists()


def test_what_a_run_leaves_behind(images, tmp_path):
    folder = RunFolder(tmp_path / "run")
    model = train(config(), images, folder, progress=False)
    assert folder.load_config() == config()
    assert (tmp_path / "run" / "samples" / "step-00000003.png").exists()
    assert Image.open(tmp_path / "run" / "samples" / "step-00000006.png").size == (18, 8)
    assert Image.open(tmp_path / "run" / "loss.png").size[0] > 100
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    last = folder.metrics()[-1]
    assert set(last) == {"step", "loss", "gradient_norm", "learning_rate", "images_per_second", "seconds", "skipped",
                         "peak_memory_mib"}  # fmt: skip
    assert last["peak_memory_mib"] > 100
    checkpoints = sorted(path.name[:13] for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert checkpoints == ["step-00000004", "step-00000006"]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), weights(folder)["ema"].values()))
    assert not [p for p in (tmp_path / "run").rglob("*") if "tmp" in p.name]


def test_training_learns(tmp_path):
    """On one repeated image the loss falls well below 1, the loss of predicting zero."""
    image = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    folder = RunFolder(tmp_path)
    train(config(steps=150, batch_size=8, checkpoint_every=1000, sample_every=0, flip=False), image, folder,
          progress=False)  # fmt: skip
    losses = [m["loss"] for m in folder.metrics()]
    assert sum(losses[:5]) / 5 > 0.7
    assert sum(losses[-20:]) / 20 < 0.4


def test_the_untrained_start_depends_on_the_seed_alone(images, tmp_path):
    torch.manual_seed(1)
    train(config(steps=0), images, RunFolder(tmp_path / "a"), progress=False)
    torch.manual_seed(2)
    train(config(steps=0), images, RunFolder(tmp_path / "b"), progress=False)
    train(config(steps=0, seed=1), images, RunFolder(tmp_path / "c"), progress=False)
    a, b, c = (weights(RunFolder(tmp_path / name)) for name in "abc")
    assert_same_weights(a, b)
    assert any(not torch.equal(a["raw"][n], c["raw"][n]) for n in a["raw"])


def test_ema_against_the_closed_form():
    model, ema = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        ema.weight.fill_(0.0)
        expected = 0.0
        for step in range(40):
            model.weight.fill_(float(step))
            update_ema(ema, model, 0.7, step)
            decay = min(0.7, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * step
    assert ema.weight.item() == pytest.approx(expected, rel=1e-5)


def test_learning_rate():
    options = TrainingConfig(steps=100, learning_rate=1.0, warmup_steps=10, cooldown=0.5)
    rates = [learning_rate_at(options, step, 0.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:51] == [pytest.approx(1.0)] * 42
    assert rates[75] == pytest.approx(0.1 + 0.9 * 0.5)
    by_time = TrainingConfig(steps=1000, minutes=1.0, learning_rate=1.0, cooldown=0.5)
    assert learning_rate_at(by_time, 1, 45.0) == pytest.approx(0.1 + 0.9 * 0.5)
    assert learning_rate_at(TrainingConfig(), 12345, 1e9) == 1e-4


def test_steps_that_are_not_finite_are_skipped_and_counted(images, tmp_path):
    broken = images.clone()
    broken[2] = float("nan")
    folder = RunFolder(tmp_path)
    train(config(steps=6, sample_every=0), broken, folder, progress=False)
    skipped = folder.metrics()[-1]["skipped"]
    assert 0 < skipped < 6
    assert all(torch.isfinite(v).all() for v in weights(folder)["raw"].values())


def test_training_gives_up_when_nothing_is_finite(tmp_path):
    with pytest.raises(TrainingError, match="not finite for 50 steps"):
        train(config(steps=100), torch.full((4, 1, 8, 8), float("nan")), RunFolder(tmp_path), progress=False)


def test_an_empty_data_set_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="no image"):
        train(config(), [], RunFolder(tmp_path / "run"), progress=False)
    assert not (tmp_path / "run").exists()


def content(folder):
    """Every file of a run except the lock, which names the last process."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


def test_other_data_are_refused_whatever_their_number_and_the_run_is_left_alone(images, tmp_path):
    train(config(steps=2), images, RunFolder(tmp_path), progress=False)
    (tmp_path / ".half.tmp").write_bytes(b"what a killed process was writing")
    before, other = content(tmp_path), images.clone()
    other[3, 0, 0, 0] += 1e-6
    for data, words in (
        (images[:6], "has 6 images, but the run began with 7"),
        (other, "image 3 differs from the one the run began with"),
        (images.flip(0), "image 0 differs from the one the run began with, and 5 more do"),
    ):
        with pytest.raises(TrainingError, match=words):
            train(config(steps=4), data, RunFolder(tmp_path), progress=False)
        assert content(tmp_path) == before


def pictures(folder, count):
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def test_other_files_are_named(tmp_path):
    """A folder with as many files, one of them different, is other data; a copy of the folder is the same data."""
    pictures(tmp_path / "scans", 4)
    shutil.copytree(tmp_path / "scans", tmp_path / "copy")

    def data(name):
        return SliceDataset(DataConfig(root=str(tmp_path / name), size=8, cache_dir=str(tmp_path / "cache")))

    train(config(steps=1), data("scans"), RunFolder(tmp_path / "run"), progress=False)
    train(config(steps=2), data("copy"), RunFolder(tmp_path / "run"), progress=False)
    shutil.copy(tmp_path / "scans" / "0.png", tmp_path / "copy" / "2.png")
    with pytest.raises(TrainingError, match=r"image 2 \(.*copy/2\.png, stored 0, frame 0\) differs from the one"):
        train(config(steps=3), data("copy"), RunFolder(tmp_path / "run"), progress=False)


def test_a_run_finds_its_data_from_any_folder(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = config(steps=0)
    train(replace(run, data=replace(run.data, root="scans", cache_dir="cache")), images, RunFolder("run"),
          progress=False)  # fmt: skip
    stored = RunFolder("run").load_config().data
    assert (stored.root, stored.cache_dir) == (str(tmp_path / "scans"), str(tmp_path / "cache"))


def test_too_many_processes_are_refused_before_the_folder_is_made(images, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(TrainingError, match="batch_size is 3; 4 processes need one image each"):
        train(config(), images, RunFolder(tmp_path / "run"), progress=False)
    assert not (tmp_path / "run").exists()


def test_minutes_end_a_run(images, tmp_path):
    train(config(steps=10**6, minutes=0.02, sample_every=0), images, RunFolder(tmp_path), progress=False)
    assert 1 <= Checkpoints(tmp_path / "checkpoints").newest()["step"] < 10**4


def test_another_configuration_is_refused_and_leaves_the_run_alone(images, tmp_path):
    folder = RunFolder(tmp_path / "run")
    train(config(steps=2), images, folder, progress=False)
    before = {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}
    with pytest.raises(RunError, match=r"training\.learning_rate is 0\.001 there and 0\.002 here"):
        train(config(steps=2, learning_rate=2e-3), images, folder, progress=False)
    assert before == {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}


def test_a_folder_of_something_else_is_refused(images, tmp_path):
    (tmp_path / "thesis.docx").write_text("chapter 1")
    with pytest.raises(RunError, match="is not empty and holds no run"):
        train(config(), images, RunFolder(tmp_path), progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.docx"]


def test_a_second_run_on_a_folder_is_refused(images, tmp_path):
    folder = RunFolder(tmp_path / "run")
    holder = (
        "import sys, time; from vmddpm.training import RunFolder; from test_training_run import config\n"
        "with RunFolder(sys.argv[1]).training(config()): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", holder, folder.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match=f"is being trained by process {other.pid} on .*; wait until it ends"):
            train(config(), images, folder, progress=False)
        other.kill()
    train(config(steps=2), images, folder, progress=False)  # a killed process holds no lock


def test_a_run_of_an_older_version_is_refused(images, tmp_path):
    folder = RunFolder(tmp_path / "run")
    train(config(steps=2), images, folder, progress=False)
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(RunError, match="older version"):
        train(config(steps=3), images, folder, progress=False)


def test_what_a_killed_process_was_writing_is_removed(images, tmp_path):
    folder = RunFolder(tmp_path)
    train(config(steps=2), images, folder, progress=False)
    leftovers = [tmp_path / ".config.yaml.7.tmp.yaml", tmp_path / "checkpoints" / ".step-00000004.7.tmp"]
    for path in leftovers:
        path.write_bytes(b"half")
    (tmp_path / "weights" / "ema" / ".abc.tmp").mkdir()
    train(config(steps=3), images, folder, progress=False)
    assert not [path for path in tmp_path.rglob("*") if ".tmp" in path.name]


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path):
    folder = RunFolder(tmp_path)
    folder.metrics_path.write_text(json.dumps({"step": 1}) + '\n{"step": 2, "lo')
    assert folder.metrics() == [{"step": 1}]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {"batch_size": 0}}, "batch_size is 0"),
        ({"training": {"learning_rate": 0.0}}, "learning_rate"),
        ({"training": {"precision": "fp8"}}, "precision"),
        ({"training": {"compile": "fast"}}, "compile"),
        ({"training": {"micro_batch_size": 0}}, "micro_batch_size"),
        ({"training": {"compile": "reduce-overhead", "micro_batch_size": 2}}, "overwrites the gradients"),
        ({"data": {"channels": 3}}, "data.channels is 3 but model.image_channels is 1"),
        ({"data": {"size": 30}}, "multiple of 32"),
        ({"training": {"sample_steps": 7}}, "must divide"),
    ],
)
def test_bad_configurations(changes, words):
    parts = {"data": DataConfig, "training": TrainingConfig}
    with pytest.raises(ValueError, match=words):
        RunConfig(**{name: parts[name](**fields) for name, fields in changes.items()})
