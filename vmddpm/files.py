"""Files and folders that are either whole or not there, whatever ends the process, the disk or the power.

There is one way to write: under a temporary name in the same folder; then the bytes go to the disk, the name is
changed, and the folder goes to the disk. A power cut leaves the old content or the new one, and what a caller was told
is written stays written. A temporary name says who writes there, so that what a killed process left behind can be told
from what another one is writing.
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
_FORGOTTEN = 24 * 3600  # seconds after which nobody on another machine is still writing a file
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


class LockedError(VmddpmError, RuntimeError):
    """Another process holds a lock.

    Attributes:
        holder: who it says it is.
        advice: what to do if it has ended all the same; empty where the system frees its lock.
    """

    def __init__(self, path: Path, holder: str, advice: str = "") -> None:
        super().__init__(f"{path} is held by {holder}{advice}")
        self.holder, self.advice = holder, advice


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path to write to; on success its content is on the disk, in the place of `path`."""
    make_folder(path.parent)
    temporary = temporary_name(path)
    try:
        yield temporary
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, mode: int = 0o777) -> Iterator[Path]:
    """A temporary folder to fill; on success all that is in it is on the disk, in the place of the folder `path`.

    Where the system cannot exchange two names (network file systems, systems other than Linux) a folder that was there
    is away for a moment; a copy of it, which `whole_folder` finds, is there until it is back.
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
    """Renames a file of the same folder; when this returns, its content has the name `path` even after a power cut."""
    flush(temporary)
    os.replace(temporary, path)
    flush(path.parent)


def make_folder(path: Path) -> None:
    """The folder and those above it, as far as they are missing, on the disk."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    flush(path.parent)


def flush(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on the disk: they outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some file systems have no names to wait for
            raise
    finally:
        os.close(descriptor)


def _exchange(first: Path, second: Path) -> bool:
    """Each gets the other's name, in one step; False if the system or the file system knows no such step."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if renameat2(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(second))


def whole_folder(path: Path) -> Path:
    """The folder `path` or, if a killed process was putting another in its place, the copy that it kept."""
    return path if path.exists() or not _copy_of(path).is_dir() else _copy_of(path)


def _copy_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.before")


def _keep_copy(path: Path) -> None:
    """The files of a folder under a second name, on the disk."""
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
    """A folder with all that is in it."""
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            flush(Path(folder, name))
        flush(Path(folder))


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path`, with its suffix, that no other process on any machine uses."""
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp{path.suffix}")


@cache
def _machine() -> str:
    """Twelve digits for where process numbers mean what they mean here: this machine, or this container on it."""
    words = [platform.node()]
    for path in ("/etc/machine-id", "/proc/self/ns/pid"):
        try:
            words.append(os.readlink(path) if path.startswith("/proc") else Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            words.append("")
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:12]


def remove_leftovers(folder: Path, *, shared: bool = False) -> None:
    """Removes what killed processes were writing, files and folders.

    Args:
        shared: others may be writing there now. What a living process of this machine writes stays then, and what
            another machine has changed within a day.
    """
    for path in [*folder.rglob(".*.tmp"), *folder.rglob(".*.tmp.*")]:
        if not (shared and _is_being_written(path)):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def remove_abandoned(paths: Iterable[Path]) -> None:
    """Of files, removes those that a killed process was writing, and no others."""
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
        return time.time() - path.stat().st_mtime < _FORGOTTEN
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
    """Holds the file `path` for this process; the system frees the lock of a process that ends, however it ends.

    Where the file system has no locks, a file PATH.held that names the process stands in for one. A process that was
    killed leaves it behind: the next one on the same machine sees that, on another machine a person must.

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
            with _held(path.with_name(f"{path.name}.held")):
                yield
            return
        file.truncate(0)
        file.write(_holder())
        file.flush()
        yield


def _holder() -> str:
    return f"process {os.getpid()} on {platform.node()}"


@contextmanager
def _held(path: Path) -> Iterator[None]:
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
                path, holder or "another process", f"; its file system has no locks: if that has ended, remove {path}"
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
