"""The tasks that are killed: each writes to a folder, confirms progress, and checks the folder afterwards."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from vmddpm.data import DataConfig, layouts
from vmddpm.data.prepare import prepare_store
from vmddpm.data.store import is_store, read_store
from vmddpm.diffusion import DiffusionConfig
from vmddpm.files import remove_leftovers
from vmddpm.model import VMDDPM, ModelConfig
from vmddpm.samples import Samples, read_samples
from vmddpm.study import Study
from vmddpm.study.answers import AnswerLog, Submission
from vmddpm.study.folder import StudyError
from vmddpm.training import RunConfig, RunFolder, TrainingConfig, train
from vmddpm.training.checkpoints import Checkpoints
from vmddpm.training.errors import RunError

Confirm = Callable[[str], None]
STEPS, ANSWERS, PICTURES = (2, 3, 4, 5), 12, 4
MODEL = {"channel_multipliers": (1, 2), "sampling": (2, 2), "norm_groups": 4, "d_state": 2, "layers_per_stage": 1}


@dataclass(frozen=True)
class Workload:
    """A task.

    Attributes:
        name: its name in the table of docs/durability.md.
        begin: prepares the folder.
        run: is killed; confirms progress by calling its second argument.
        check: checks the folder, given the confirmed words.
    """

    name: str
    begin: Callable[[Path], object]
    run: Callable[[Path, Confirm], object]
    check: Callable[[Path, list[str]], object]


def newest(confirmed: list[str]) -> int:
    """The last confirmed number; -1 if none."""
    return max((int(word.rpartition(":")[2]) for word in confirmed), default=-1)


# A checkpoint


def example_state(step):
    return {"model": {"weight": torch.full((3000,), float(step))}, "seconds": 1.5}


def save_checkpoints(folder, confirm):
    for step in STEPS:
        Checkpoints(folder / "checkpoints").save(step, example_state(step))
        confirm(str(step))


def check_checkpoints(folder, confirmed):
    found = Checkpoints(folder / "checkpoints").newest()  # a warning of a damaged one is an error here
    assert found["step"] >= max(1, newest(confirmed))
    assert torch.equal(found["model"]["weight"], torch.full((3000,), float(found["step"])))
    remove_leftovers(folder)
    assert {path.name[:5] for path in (folder / "checkpoints").iterdir()} == {"step-"}


# Weights and their configuration


@cache
def network(number):
    torch.manual_seed(number)
    return VMDDPM(ModelConfig(base_channels=(8, 16)[number % 2], **MODEL))


def save_weights(folder, confirm):
    for number in (1, 2):
        for kind in ("raw", "ema"):
            RunFolder(folder).save_weights(kind, network(number))
            confirm(f"{kind}:{number}")


def begin_weights(folder):
    for kind in ("raw", "ema"):
        RunFolder(folder).save_weights(kind, network(0))


def check_weights(folder, confirmed):
    run = RunFolder(folder)
    for kind in ("raw", "ema"):
        run.check_weights(kind)
        config = json.loads((run.weights(kind) / "config.json").read_text())
        found = load_file(run.weights(kind) / "model.safetensors")
        same = [
            number for number in range(3) if config["base_channels"] == network(number).config.base_channels
            and all(torch.equal(found[name], value) for name, value in network(number).state_dict().items())
        ]  # fmt: skip
        assert len(same) == 1
        assert same[0] >= max(0, newest([word for word in confirmed if word.startswith(kind)]))
        names = {"README.md", "config.json", "model.safetensors", "model.sha256"}
        assert {path.name for path in run.weights(kind).iterdir()} == names


def without_exchange(work):
    """The task on a file system that cannot exchange two names atomically."""
    def run(folder, confirm):
        with patch("vmddpm.files._exchange", return_value=False):
            work(folder, confirm)

    return run


# A whole run, continued


def run_config(steps):
    options = {"batch_size": 2, "steps": steps, "log_every": 1, "checkpoint_every": 9, "sample_every": 0,
               "sample_steps": 1, "device": "cpu"}  # fmt: skip
    return RunConfig(ModelConfig(base_channels=8, **MODEL), DiffusionConfig(timesteps=20), DataConfig(size=8),
                     TrainingConfig(**options))  # fmt: skip


def train_to(folder, steps):
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1
    train(run_config(steps), images, RunFolder(folder / "run"), progress=False)


def check_run(folder, confirmed):
    run = RunFolder(folder / "run")
    run.check(run_config(2))
    saved = Checkpoints(run.path / "checkpoints").newest()
    assert saved["step"] >= max(1, newest(confirmed))
    for kind in ("ema", "raw"):
        assert run.load_model(kind).config == run_config(1).model
    assert all(line["loss"] > 0 for line in run.metrics())


# Blocks of samples


def blocks(file_format):
    def begin(folder):
        Samples(folder / "out", 8, 3, file_format).create_or_resume({"seed": 0})

    def work(folder, confirm):
        samples = Samples(folder / "out", 8, 3, file_format)
        for block in samples.blocks:
            samples.write(block, some_pixels(block))
            confirm(str(block.stop))
        samples.finish()
        confirm("99")

    def check(folder, confirmed):
        """Resuming makes the images of an undisturbed call and does not repeat confirmed ones."""
        samples = Samples(folder / "out", 8, 3, file_format)
        samples.create_or_resume({"seed": 0})
        missing = samples.missing()
        assert all(block.stop > newest(confirmed) for block in missing)
        try:
            found = np.concatenate(list(read_samples(folder / "out")))
        except RunError:
            assert newest(confirmed) < 99
            for block in missing:
                samples.write(block, some_pixels(block))
            samples.finish()
            found = np.concatenate(list(read_samples(folder / "out")))
        assert np.array_equal(found, some_pixels(range(8)))

    return begin, work, check


def some_pixels(block):
    return np.stack([np.random.default_rng(index).integers(0, 256, (16, 16, 1), np.uint8) for index in block])


# Answers of a reader


def begin_study(folder):
    """A study of plain pictures, as `create_study` writes it."""
    path = folder / "study"
    (path / "answers").mkdir(parents=True)
    (path / "images").mkdir()
    names = sorted(f"{number:016x}" for number in range(ANSWERS))
    for name in names:
        (path / "images" / f"{name}.png").write_bytes(b"")
    record = {"schema": 1, "title": "", "instructions": "", "images": names, "shuffle": "0" * 64}
    (path / "study.json").write_text(json.dumps(record))


def sent(position):
    return Submission(position, 0, "real", "high", 1.5, "0" * 12, f"{position:016x}")


def answer(folder, confirm):
    for _ in range(3):  # a restarted server reopens its log
        log = AnswerLog(Study.open(folder / "study"), "anna")
        first = log.state()["next"]
        for position in range(first, min(first + 4, ANSWERS)):
            log.add(sent(position))
            confirm(str(position))


def check_answers(folder, confirmed):
    study = Study.open(folder / "study")
    log = AnswerLog(study, "anna")
    following = log.state()["next"]
    assert following > newest(confirmed)
    for position in range(following, ANSWERS):
        log.add(sent(position))
    rows = [json.loads(line) for line in study.log("anna").read_text().splitlines()]
    assert [row["submission"] for row in rows] == [f"{position:016x}" for position in range(ANSWERS)]


# A store


def begin_pictures(folder):
    (folder / "scans").mkdir()
    for number in range(PICTURES):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16), np.uint8)
        Image.fromarray(pixels).save(folder / "scans" / f"{number}.png")


def prepare(folder, confirm):
    config = DataConfig(root=str(folder / "scans"), size=16, min_foreground=0.0)
    prepare_store(layouts.folder(folder / "scans", config), config, folder / "stores" / "mine", made_from={},
                  progress=False)  # fmt: skip
    confirm("0")


def check_store(folder, confirmed):
    if not is_store(folder / "stores" / "mine"):
        assert not confirmed
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that it starts again
            prepare(folder, lambda word: None)
    assert {path.name for path in (folder / "stores" / "mine").iterdir()} == {
        "images.npy", "manifest.jsonl", "store.json"
    }  # fmt: skip
    images, slices, _ = read_store(folder / "stores" / "mine")
    assert len(slices) == PICTURES
    assert all(images[i].any() for i in range(PICTURES))  # reading compares checksums


# The study's other files


def secrets(folder, confirm):
    from vmddpm.study.readers import register
    from vmddpm.study.sessions import EndedSessions, session_secret

    study = Study.open(folder / "study")
    secret = session_secret(study)
    confirm(f"{secret}:0")
    for number, reader in enumerate(("anna", "ben"), 1):
        confirm(f"{register(study, [reader])[reader]}:{number}")
    sessions = EndedSessions(study)
    for number in range(3, 6):
        sessions.end(f"{number:032x}")
        confirm(f"{number:032x}:{number}")


def check_secrets(folder, confirmed):
    from vmddpm.study.readers import is_password
    from vmddpm.study.sessions import EndedSessions, session_secret

    study = Study.open(folder / "study")
    sessions = EndedSessions(study)
    for word in confirmed:
        text, number = word.split(":")
        if number == "0":
            assert session_secret(study) == text
        elif int(number) < 3:
            assert is_password(study, ("anna", "ben")[int(number) - 1], text)
        else:
            assert text in sessions
    try:
        session_secret(study)
    except StudyError:
        raise AssertionError("no server would start") from None


WORKLOADS = [
    Workload("checkpoint", lambda folder: Checkpoints(folder / "checkpoints").save(1, example_state(1)),
             save_checkpoints, check_checkpoints),
    Workload("weights and their configuration", begin_weights, save_weights, check_weights),
    Workload("the same, where names cannot be exchanged", begin_weights, without_exchange(save_weights),
             check_weights),
    Workload("a continued run", lambda folder: train_to(folder, 1),
             lambda folder, confirm: [train_to(folder, 2), confirm("2")], check_run),
    Workload("blocks of samples, npy", *blocks("npy")),
    Workload("blocks of samples, png", *blocks("png")),
    Workload("answer log", begin_study, answer, check_answers),
    Workload("prepared store", begin_pictures, prepare, check_store),
    Workload("passwords, sessions and their key", begin_study, secrets, check_secrets),
]  # fmt: skip
