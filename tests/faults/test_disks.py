"""Full and read-only disks, and file systems without locks: a clear error, and all earlier files are kept."""

import errno
import fcntl
import hashlib
import shutil
import signal
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from tracer import can_trace, traced
from workloads import MODEL, begin_study, run_config, sent, train_to

from vmddpm.cli import main
from vmddpm.data import DataConfig, DataError, layouts
from vmddpm.data.prepare import prepare_store
from vmddpm.model import VMDDPM, ModelConfig
from vmddpm.samples import Samples
from vmddpm.study import Study, StudyError
from vmddpm.study.answers import AnswerLog
from vmddpm.study.server import serve
from vmddpm.training import RunError, RunFolder
from vmddpm.training.checkpoints import Checkpoints


def contents(folder):
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*") if path.is_file() and path.name != "lock"}  # fmt: skip


def fill(disk):
    """Fill the disk almost completely."""
    with open(disk / "filling", "wb", buffering=0) as file:
        while shutil.disk_usage(disk).free:
            file.write(bytes(4096))


def test_weights_that_do_not_fit_leave_the_old_ones(small_disk):
    run, model = RunFolder(small_disk), VMDDPM(ModelConfig(base_channels=8, **MODEL))
    run.save_weights("ema", model)
    before = contents(small_disk / "weights")
    fill(small_disk)
    with pytest.raises(RunError, match=r"weights/ema cannot be written .*; make room there"):
        run.save_weights("ema", model)
    assert contents(small_disk / "weights") == before
    assert sorted(path.name for path in (small_disk / "weights").iterdir()) == ["ema"]


def test_a_run_on_a_full_or_read_only_disk_continues_when_there_is_room(small_disk):
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    train_to(small_disk, 1)
    run = small_disk / "run"
    kept = contents(run / "checkpoints")
    fill(small_disk)
    with pytest.raises(RunError, match=r"cannot be written .*[Mm]ake room"):
        train_to(small_disk, 2)
    assert contents(run / "checkpoints") == kept
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises((RunError, OSError), match="Read-only file system"):
        train_to(small_disk, 2)
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    (small_disk / "filling").unlink()
    train_to(small_disk, 2)
    assert RunFolder(run).load_model("ema").config == run_config(1).model


@pytest.mark.parametrize("form", ["png", "npy"])
def test_sampling_continues_when_there_is_room(small_disk, form):
    samples = Samples(small_disk / "out", 6, 2, form)
    samples.create_or_resume({"seed": 0})
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1200, 1200, 1), np.uint8)
    samples.write(samples.blocks[0], pixels)
    with pytest.raises(RunError, match=r"images 2 to 3 cannot be written \(.*\); make room there"):
        samples.write(samples.blocks[1], pixels)
    assert samples.missing() == samples.blocks[1:]
    assert not [path for path in (small_disk / "out").iterdir() if ".tmp" in path.name]


def test_a_store_that_does_not_fit_is_none(small_disk, tmp_path):
    (tmp_path / "scans").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (1024, 1024), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "scans" / f"{number}.png")
    config = DataConfig(root=str(tmp_path / "scans"), size=1024, min_foreground=0.0)
    with pytest.raises(DataError, match=r"the store cannot be written .*; make room there"):
        prepare_store(layouts.folder(tmp_path / "scans", config), config, small_disk / "store", made_from={},
                      progress=False)  # fmt: skip
    assert list((small_disk / "store").iterdir()) == []


def test_answers_are_stored_again_when_the_disk_is_writable_again(small_disk):
    begin_study(small_disk)
    log = AnswerLog(Study.open(small_disk / "study"), "anna")
    log.add(sent(0))
    fill(small_disk)
    ben = AnswerLog(Study.open(small_disk / "study"), "ben")
    with pytest.raises(OSError, match="No space left"):
        ben.add(sent(0))
    (small_disk / "filling").unlink()
    for one in (log, ben):
        one.add(sent(one.state()["next"]))
    for reader, stored in (("anna", 2), ("ben", 1)):
        assert AnswerLog(Study.open(small_disk / "study"), reader).state()["next"] == stored


def test_a_write_that_cannot_be_undone_is_undone_by_the_next_one(tmp_path, monkeypatch):
    """fsync fails, then truncation: the line stays in the file unconfirmed, and must not be written twice."""
    begin_study(tmp_path)
    study = Study.open(tmp_path / "study")
    log = AnswerLog(study, "anna")
    log.add(sent(0))

    def broken(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", broken)
        real_open = open

        class NoTruncation:
            def __init__(self, file):
                self.file = file

            def __getattr__(self, name):
                return broken if name == "truncate" else getattr(self.file, name)

            def __enter__(self):
                return self

            def __exit__(self, *failure):
                self.file.close()

        patched.setattr("builtins.open", lambda *a, **k: NoTruncation(real_open(*a, **k)))
        with pytest.raises(OSError, match="Input/output error"):
            log.add(sent(1))
    assert study.log("anna").read_bytes().count(b"\n") == 2
    log.add(sent(1))
    assert study.log("anna").read_bytes().count(b"\n") == 2
    assert AnswerLog(study, "anna").state()["next"] == 2


def test_a_log_that_was_cut_short_is_not_written_to(tmp_path):
    begin_study(tmp_path)
    study = Study.open(tmp_path / "study")
    log = AnswerLog(study, "anna")
    log.add(sent(0))
    study.log("anna").write_bytes(b"")
    with pytest.raises(StudyError, match="truncated by another program"):
        log.add(sent(1))


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    message = r"is being trained by process .*; wait .*if that process has ended, remove .*held"
    with RunFolder(tmp_path / "run").training(run_config(2)), pytest.raises(RunError, match=message):
        train_to(tmp_path, 2)
    with RunFolder(tmp_path / "run").training(run_config(2)):
        assert (tmp_path / "run" / "lock.held").exists()
    assert not (tmp_path / "run" / "lock.held").exists()
    begin_study(tmp_path)
    served = []
    monkeypatch.setattr("uvicorn.run", lambda *arguments, **options: served.append(main(["study", "serve", where])))
    where = str(tmp_path / "study")
    serve(where, "127.0.0.1", 1)
    assert served == [1]  # called inside the first
    assert "is being served already by process" in capsys.readouterr().err
    assert not (tmp_path / "study" / "server.lock.held").exists()


@pytest.mark.skipif(not can_trace(), reason="processes cannot be traced here")
def test_a_stop_request_while_a_checkpoint_is_written_waits_for_it(tmp_path):
    """SIGTERM during a write of the checkpoint and of the weights: the run saves and ends as after Ctrl-C."""
    torch.set_num_threads(1)
    for at in (3, 18):
        folder, count = tmp_path / str(at), 0
        folder.mkdir()
        train_to(folder, 1)

        def stop(call, confirmed, at=at):
            nonlocal count
            inside = any({"checkpoints", "weights"} & set(path.parts) for path in call.paths)
            count += inside
            return signal.SIGTERM if inside and count == at + 1 else None

        def work(confirm, folder=folder):
            try:
                train_to(folder, 200)
            except KeyboardInterrupt:
                confirm("stopped")

        assert traced(work, folder, stop) == (0, ["stopped"])
        assert 2 <= Checkpoints(folder / "run" / "checkpoints").newest()["step"] < 30
        assert RunFolder(folder / "run").load_model("raw")
        assert not [path for path in (folder / "run").rglob("*") if ".tmp" in path.name]
