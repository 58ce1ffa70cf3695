"""Writes are atomic, killed writes are recovered, and one process at a time locks a folder."""

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vmddpm import files
from vmddpm.files import (
    LockedError,
    atomic_folder,
    atomic_write,
    flush,
    lock,
    make_folder,
    remove_leftovers,
    temporary_name,
    whole_folder,
    write_text,
)


@pytest.fixture
def synced(monkeypatch):
    """Records synced paths, in order."""
    paths, fsync = [], os.fsync

    def spy(descriptor):
        paths.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    return paths


def test_bytes_then_names_go_to_the_disk(tmp_path, synced):
    write_text(tmp_path / "new" / "folder" / "a.txt", "a")
    temporary = synced.pop(2)
    assert temporary.startswith(str(tmp_path / "new" / "folder" / ".a.txt."))
    assert synced == [str(tmp_path), str(tmp_path / "new"), str(tmp_path / "new" / "folder")]
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["a.txt"]


def test_temporary_names_are_those_of_one_writer(tmp_path, monkeypatch):
    own = [temporary_name(tmp_path / "a.png") for _ in range(100)]
    assert len(set(own)) == 100
    assert all(path.name.startswith(".a.png.") and path.suffix == ".png" for path in own)
    files._machine.cache_clear()
    monkeypatch.setattr("platform.node", lambda: "elsewhere")
    foreign = temporary_name(tmp_path / "a.png")
    files._machine.cache_clear()
    assert foreign.name.split(".")[3].split("-")[0] != own[0].name.split(".")[3].split("-")[0]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchanged", "renamed twice"])
def test_a_folder_takes_the_place_of_another(tmp_path, monkeypatch, exchange, synced):
    if not exchange:  # as on NFS
        monkeypatch.setattr(files, "_NO_EXCHANGE", ())
        monkeypatch.setattr(sys, "platform", "other")
    for content in ("old", "new"):
        with atomic_folder(tmp_path / "folder", 0o700) as temporary:
            (temporary / "below").mkdir()
            (temporary / "below" / "a.txt").write_text(content)
            (temporary / f"{content}.txt").write_text(content)
            synced.clear()
        names = [path[len(str(temporary)) :] for path in synced if path.startswith(str(temporary))]
        assert sorted(names) == ["", "/below", "/below/a.txt", f"/{content}.txt"]
        assert names.index("/below/a.txt") < names.index("/below") < names.index("")
        assert synced[-1] == str(tmp_path)
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["below", "new.txt"]
    assert (tmp_path / "folder" / "below" / "a.txt").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o700
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "a.txt").write_text(str(1 / 0))
    assert (tmp_path / "folder" / "new.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("links", [True, False])
def test_a_folder_between_two_renames_is_found(tmp_path, monkeypatch, links):
    """A kill between the two renames, on a file system that cannot exchange names."""
    path, rename = tmp_path / "folder", os.rename

    def write(content):
        with atomic_folder(path) as temporary:
            (temporary / "below").mkdir()
            (temporary / "below" / "a.txt").write_text(content)

    def killed(source, to):
        if "new" in (Path(source, "below", "a.txt").read_text() if Path(source).is_dir() else "") and to == path:
            raise KeyboardInterrupt
        rename(source, to)

    def no_links(source, to):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    write("old")
    assert whole_folder(path) == path
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            write("new")
    assert not path.exists()
    remove_leftovers(tmp_path)
    assert (whole_folder(path) / "below" / "a.txt").read_text() == "old"
    write("newer")
    assert (whole_folder(path) / "below" / "a.txt").read_text() == "newer"
    assert [found.name for found in tmp_path.iterdir()] == ["folder"]


def test_a_file_system_that_cannot_flush_folders_is_used_anyway(tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(errno.EINVAL, "Invalid argument")

    (tmp_path / "a").write_text("a")
    monkeypatch.setattr(os, "fsync", refuse)
    flush(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        flush(tmp_path / "a")


def test_leftovers_of_a_killed_process_are_removed_and_files_of_another_kept(tmp_path):
    write = "import sys, time; from pathlib import Path; from vmddpm.files import atomic_write\n"
    write += "with atomic_write(Path(sys.argv[1])) as t:\n"
    write += "    t.write_text('a'); print('written', flush=True); time.sleep(99)"
    command = [sys.executable, "-c", write]
    processes = [subprocess.Popen([*command, tmp_path / name], stdout=subprocess.PIPE,
                                  env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
                 for name in ("dead.txt", "alive.txt")]  # fmt: skip
    try:
        for process in processes:
            assert process.stdout.readline() == b"written\n"
        processes[0].kill()
        processes[0].wait()
        names = {"old.7.tmp": 0, ".old.7.tmp": 0, ".of-an-older-version.7.tmp.png": 0,
                 ".elsewhere.0123456789ab-1-00000000.tmp": 0, ".forgotten.0123456789ab-1-00000000.tmp": 25}  # fmt: skip
        for name, hours in names.items():
            (tmp_path / name).write_text("")
            os.utime(tmp_path / name, (time.time() - 3600 * hours,) * 2)
        (tmp_path / ".folder.7.tmp").mkdir()
        (tmp_path / ".folder.7.tmp" / "a").write_text("")
        remove_leftovers(tmp_path, shared=True)
        assert sorted(path.name.split(".")[1] for path in tmp_path.iterdir() if path.name != "old.7.tmp") == [
            "alive", "elsewhere"
        ]  # fmt: skip
        remove_leftovers(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["old.7.tmp"]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()


HOLD = "import sys, time; from pathlib import Path; from vmddpm.files import lock\n"
HOLD += "{before}\nwith lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(99)"
NO_LOCKS = """
import fcntl, errno
def flock(*arguments):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
"""


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no locks"])
def test_one_process_holds_a_lock_until_it_ends_however_it_ends(tmp_path, monkeypatch, locks):
    if not locks:
        def flock(file, how):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", flock)
    path, code = tmp_path / "lock", HOLD.format(before="" if locks else NO_LOCKS)
    for end in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        process = subprocess.Popen(
            [sys.executable, "-c", code, path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        try:
            assert process.stdout.readline() == b"held\n"
            with pytest.raises(LockedError, match=f"locked by process {process.pid} on") as message, lock(path):
                pass
            assert ("remove" in str(message.value)) != locks
        finally:
            process.send_signal(end)
            process.wait()
            process.stdout.close()
        with lock(path):
            pass
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["lock"]


def test_a_lock_of_another_machine_is_kept_until_a_person_removes_it(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / "lock.held").write_text("process 1 on elsewhere\n0123456789ab-1")
    message = r"process 1 on elsewhere; .* if that process has ended, remove .*lock\.held"
    with pytest.raises(LockedError, match=message), lock(tmp_path / "lock"):
        pass
    (tmp_path / "lock.held").unlink()
    with lock(tmp_path / "lock"), pytest.raises(LockedError), lock(tmp_path / "lock"):
        pass


def test_an_error_of_the_disk_is_no_lock(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"), lock(tmp_path / "lock"):
        pass


def test_nothing_is_left_of_what_could_not_be_written(small_disk):
    write_text(small_disk / "a.txt", "old")
    with pytest.raises(OSError, match="No space left"):
        write_text(small_disk / "a.txt", "x" * 8_000_000)
    with pytest.raises(OSError, match="No space left"), atomic_folder(small_disk / "folder") as temporary:
        (temporary / "a.txt").write_text("x" * 8_000_000)
    assert [path.name for path in small_disk.iterdir()] == ["a.txt"]
    assert (small_disk / "a.txt").read_text() == "old"


def test_a_disk_that_is_read_only_is_an_error_at_once(small_disk):
    make_folder(small_disk / "there")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for write in (lambda: write_text(small_disk / "a.txt", "a"), lambda: make_folder(small_disk / "b")):
        with pytest.raises(OSError, match="Read-only file system"):
            write()
    with pytest.raises(OSError, match="Read-only"), atomic_write(small_disk / "there" / "c") as temporary:
        temporary.write_text("c")
    with pytest.raises(OSError, match="Read-only"), lock(small_disk / "lock"):
        pass
