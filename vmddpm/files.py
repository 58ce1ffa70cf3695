"""Atomic writes of files and folders, and locks.

A file is written under a temporary name in the same folder, flushed to the disk and renamed; then the folder is
flushed. After a crash or a power cut the path has the old content or the new one, and content that was reported as
written is on the disk. A temporary name contains the machine and the process, so that leftovers of killed processes can
be told from files that are being written.
"""

import ctypes
import errno
import fcntl
import hashlib
import os
import platform
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from vmddpm.errors import VmddpmError

_WRITER = re.compile(r"\.([0-9a-f]{12})-(\d+)-[0-9a-f]{8}\.tmp(\.|$)")
_ABANDONED_AFTER = 24 * 3600  # seconds after which a file of another machine counts as abandoned
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


class LockedError(VmddpmError, RuntimeError):
    """Another process holds a lock.

    Attributes:
        holder: the process, as it describes itself.
        advice: what to do if that process has ended; empty if the system frees its lock.
    """

    def __init__(self, path: Path, holder: str, advice: str = "") -> None:
        super().__init__(f"{path} is locked by {holder}{advice}")
        self.holder, self.advice = holder, advice


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it is flushed to the disk and replaces `path`."""
    make_folder(path.parent)
    temporary = temporary_name(path)
    try:
        yield temporary
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, mode: int = 0o777) -> Iterator[Path]:
    """Yield a temporary folder to fill; on success it is flushed to the disk and replaces the folder `path`.

    If the system cannot exchange two names (network file systems, systems other than Linux), the previous folder is
    missing for a moment; during that moment `whole_folder` finds a copy of it.
    """
    make_folder(path.parent)
    temporary = temporary_name(path)
    temporary.mkdir(mode)
    try:
        yield temporary
        _flush_all(temporary)
        if not path.exists():
            os.rename(temporary, path)
        elif not _exchange(temporary, path):
            _keep_copy(path)
            away = temporary_name(path)
            os.rename(path, away)
            os.rename(temporary, path)
            os.rename(away, temporary)
        flush(path.parent)
        shutil.rmtree(_copy_of(path), ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename a file of the same folder to `path`; after the return this survives a power cut."""
    flush(temporary)
    os.replace(temporary, path)
    flush(path.parent)


def make_folder(path: Path) -> None:
    """Make the folder and its missing parents, and flush their names to the disk."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    flush(path.parent)


def flush(path: Path) -> None:
    """Flush the bytes of a file, or the names in a folder, to the disk, so that they survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some file systems cannot flush folders
            raise
    finally:
        os.close(descriptor)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names atomically; False if the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    current_folder, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if renameat2(current_folder, os.fsencode(first), current_folder, os.fsencode(second), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(second))


def whole_folder(path: Path) -> Path:
    """The folder `path`, or the copy of it if a killed process was replacing it."""
    return path if path.exists() or not _copy_of(path).is_dir() else _copy_of(path)


def _copy_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.before")


def _keep_copy(path: Path) -> None:
    """Make a copy of a folder, with hard links if possible, and flush it to the disk."""
    temporary = temporary_name(path)
    try:
        shutil.copytree(path, temporary, copy_function=_link)
        _flush_all(temporary)
        shutil.rmtree(_copy_of(path), ignore_errors=True)
        os.rename(temporary, _copy_of(path))
        flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _link(source: str, to: str) -> None:
    try:
        os.link(source, to)
    except OSError:  # a file system without links
        shutil.copy2(source, to)


def _flush_all(path: Path) -> None:
    """Flush a folder and all its contents to the disk."""
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            flush(Path(folder, name))
        flush(Path(folder))


def temporary_name(path: Path) -> Path:
    """A hidden name in the folder of `path`, with its suffix, that no other process on any machine uses."""
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp{path.suffix}")


@cache
def _machine() -> str:
    """Twelve hexadecimal digits for the scope of process IDs: this machine, or this container."""
    words = [platform.node()]
    for path in ("/etc/machine-id", "/proc/self/ns/pid"):
        try:
            words.append(os.readlink(path) if path.startswith("/proc") else Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            words.append("")
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:12]


def remove_leftovers(folder: Path, *, shared: bool = False) -> None:
    """Remove temporary files and folders of killed processes.

    Args:
        shared: other processes may be writing there. Then files of living processes of this machine stay, and files
            that another machine changed within a day.
    """
    for path in [*folder.rglob(".*.tmp"), *folder.rglob(".*.tmp.*")]:
        if not (shared and _is_being_written(path)):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def remove_abandoned(paths: Iterable[Path]) -> None:
    """Remove the temporary files of killed processes among `paths`."""
    for path in paths:
        if _WRITER.search(path.name) and not _is_being_written(path):
            path.unlink(missing_ok=True)


def is_temporary(name: str, of: str) -> bool:
    """Whether `temporary_name` made this name for a file `of`."""
    return name.startswith(f".{of}.") and _WRITER.match(name, len(of) + 1) is not None


def _is_being_written(path: Path) -> bool:
    writer = _WRITER.search(path.name)
    if writer is None:
        return False
    if writer[1] == _machine():
        return _is_alive(int(writer[2]))
    try:
        return time.time() - path.stat().st_mtime < _ABANDONED_AFTER
    except FileNotFoundError:
        return False


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's
        return True
    return True


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Lock the file `path` for this process; the system frees the lock when the process ends.

    On a file system without locks, a file PATH.held with the name of the process is used instead. A killed process
    leaves it behind: a process on the same machine detects this, on another machine a person must remove the file.

    Raises:
        LockedError: if another process holds it.
        OSError: if the file cannot be written.
    """
    with open(path, "a+", encoding="utf-8", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise LockedError(path, file.read().partition("\n")[0] or "another process") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            with _exclusive_file(path.with_name(f"{path.name}.held")):
                yield
            return
        file.truncate(0)
        file.write(_holder())
        file.flush()
        yield


def _holder() -> str:
    return f"process {os.getpid()} on {platform.node()}"


@contextmanager
def _exclusive_file(path: Path) -> Iterator[None]:
    while True:
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(f"{_holder()}\n{_machine()}-{os.getpid()}")
            break
        except FileExistsError:
            holder, _, writer = path.read_text(encoding="utf-8", errors="replace").partition("\n")
            machine, _, process = writer.partition("-")
            if machine == _machine() and process.isdecimal() and not _is_alive(int(process)):
                path.unlink(missing_ok=True)
                continue
            raise LockedError(
                path,
                holder or "another process",
                f"; its file system has no locks: if that process has ended, remove {path}",
            ) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
