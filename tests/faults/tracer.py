"""Stops a function before each system call that changes a folder, to simulate a kill or a power cut there.

The function runs in a fork of this process, under ptrace; a seccomp filter picks the calls, so that everything else
runs at full speed. x86-64 Linux only.
"""

import ctypes
import os
import platform
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# System call -> kinds of its arguments: "f" a descriptor, "p" a path, "dp" a folder's descriptor and a path in it.
CALLS = {
    1: ("write", "f"), 18: ("pwrite64", "f"), 20: ("writev", "f"), 296: ("pwritev", "f"), 40: ("sendfile", "f"),
    74: ("fsync", "f"), 75: ("fdatasync", "f"), 77: ("ftruncate", "f"), 91: ("fchmod", "f"), 285: ("fallocate", "f"),
    2: ("open", "p"), 76: ("truncate", "p"), 82: ("rename", "pp"), 83: ("mkdir", "p"), 84: ("rmdir", "p"),
    85: ("creat", "p"), 86: ("link", "pp"), 87: ("unlink", "p"), 88: ("symlink", ".p"), 90: ("chmod", "p"),
    257: ("openat", "dp"), 258: ("mkdirat", "dp"), 263: ("unlinkat", "dp"), 264: ("renameat", "dpdp"),
    265: ("linkat", "dpdp"), 268: ("fchmodat", "dp"), 316: ("renameat2", "dpdp"), 326: ("copy_file_range", "..f"),
}  # fmt: skip
_TRACEME, _CONT, _GETREGS, _SETOPTIONS = 0, 7, 12, 0x4200
_OPTIONS = 0x100000 | 0x80 | 0x02 | 0x04 | 0x08  # EXITKILL, TRACESECCOMP, TRACEFORK, TRACEVFORK, TRACECLONE
_SECCOMP_STOP, _ALL_CHILDREN = 7, 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


@dataclass(frozen=True)
class Call:
    """A system call that is about to be made.

    Attributes:
        name: the system call.
        paths: absolute paths that it changes.
        content, offset: the bytes of a write and their position.
    """

    name: str
    paths: tuple[Path, ...]
    content: bytes = b""
    offset: int = 0


def can_trace() -> bool:
    """Whether processes can be traced here."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    try:
        return traced(lambda confirm: None, Path("/nowhere"), lambda call, confirmed: None) == (0, [])
    except OSError:
        return False


def traced(
    work: Callable[[Callable[[str], None]], object], folder: Path, stop: Callable[[Call, list[str]], int | None]
) -> tuple[int, list[str]]:
    """Run work(confirm), and call stop(call, confirmed) before each system call that changes something below `folder`.

    Args:
        work: calls confirm(word) when it would report to a user that something is done.
        stop: gets the words confirmed so far; returns a signal to send, or None. After SIGKILL the call is not made.

    Returns:
        The exit status, or minus the signal that ended the process, and all confirmed words.
    """
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    folder = Path(os.path.realpath(folder))
    child = os.fork()
    if child == 0:
        os._exit(_traced(work, writing))
    os.close(writing)
    confirmed = ""
    try:
        os.waitpid(child, 0)
        _ptrace(_SETOPTIONS, child, _OPTIONS)
        _ptrace(_CONT, child, 0)
        while True:
            process, status = os.waitpid(-1, _ALL_CHILDREN)
            if not os.WIFSTOPPED(status):
                if process == child:
                    with suppress(BlockingIOError):
                        confirmed += os.read(reading, 1 << 16).decode()
                    return os.waitstatus_to_exitcode(status), confirmed.split()
                continue
            event, number = status >> 16, os.WSTOPSIG(status)
            if event == _SECCOMP_STOP and (call := _call(process, folder)):
                with suppress(BlockingIOError):
                    confirmed += os.read(reading, 1 << 16).decode()
                sent = stop(call, confirmed.split())
                if sent:
                    os.kill(child, sent)
            passed_on = 0 if event or number in (signal.SIGTRAP, signal.SIGSTOP) else number
            with suppress(ProcessLookupError):  # it was killed
                _ptrace(_CONT, process, passed_on)
    finally:
        os.close(reading)


def _traced(work: Callable[[Callable[[str], None]], object], writing: int) -> int:
    try:
        _ptrace(_TRACEME, 0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSTOP)
        program = [(0x20, 0, 0, 0)]  # load the number of the call
        for index, number in enumerate(CALLS):
            program.append((0x15, len(CALLS) - index, 0, number))  # equal: jump to the last instruction
        program += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x7FF00000)]  # allow; stop for the tracer
        filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
        description = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(filters))
        if _libc.prctl(38, 1, 0, 0, 0) or _libc.prctl(22, 2, description, 0, 0):  # NO_NEW_PRIVS, SECCOMP
            return 99
        work(lambda word: os.write(writing, f"{word}\n".encode()))
        return 0
    except BaseException:
        traceback.print_exc()
        return 1


def _ptrace(request: int, process: int, data: object) -> None:
    if _libc.ptrace(request, process, None, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _call(process: int, folder: Path) -> Call | None:
    """The call that the process is about to make; None if it changes nothing below the folder."""
    buffer = ctypes.create_string_buffer(27 * 8)
    _ptrace(_GETREGS, process, ctypes.addressof(buffer))
    registers = struct.unpack("27Q", buffer)
    number, values = registers[15], [registers[i] for i in (14, 13, 12, 7, 9, 8)]
    name, kinds = CALLS[number]
    paths, base = [], os.readlink(f"/proc/{process}/cwd")
    for kind, value in zip(kinds, values):
        if kind == "f":
            paths.append(_opened(process, value))
        elif kind == "d":
            base = os.readlink(f"/proc/{process}/cwd") if value & 0xFFFFFFFF == 0xFFFFFF9C else _opened(process, value)
        elif kind == "p":
            path = os.path.join(base, os.fsdecode(_string(process, value)))
            paths.append(os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)))
    flags = values[2] if name == "openat" else values[1]
    if name in ("open", "openat") and not flags & (os.O_CREAT | os.O_TRUNC):
        return None
    inside = tuple(Path(path) for path in paths if Path(path).is_relative_to(folder))
    if not inside:
        return None
    content, offset = b"", 0
    if name in ("write", "pwrite64"):
        content = _memory(process, values[1], values[2])
        with open(f"/proc/{process}/fdinfo/{values[0]}") as file:
            about = dict(line.split(":", 1) for line in file if ":" in line)
        offset = values[3] if name == "pwrite64" else int(about["pos"])
        if int(about["flags"], 8) & os.O_APPEND:
            offset = inside[0].stat().st_size
    return Call(name, inside, content, offset)


def _opened(process: int, descriptor: int) -> str:
    return os.readlink(f"/proc/{process}/fd/{descriptor & 0xFFFFFFFF}")


def _memory(process: int, address: int, size: int) -> bytes:
    with open(f"/proc/{process}/mem", "rb", buffering=0) as file:
        file.seek(address)
        return file.read(size)


def _string(process: int, address: int) -> bytes:
    found = b""
    while b"\0" not in found:
        found += _memory(process, address + len(found), 4096 - (address + len(found)) % 4096)  # a page at a time
    return found.partition(b"\0")[0]
