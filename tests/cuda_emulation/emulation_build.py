"""Builds the emulation, plain or with a sanitizer, and runs Python with the result.

An instrumented module needs the sanitizer's runtime loaded before Python itself: `sanitized` does that.
"""

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "emulation"
SANITIZERS = ("none", "address", "thread")

# Exit code after a sanitizer's report.
REPORTED = 66

# Names the sanitizer that Python runs under; `sanitized` sets it.
_CURRENT = "VMDDPM_EMULATION_SANITIZER"

_OPTIONS = {
    # Python and torch keep memory until exit, which is no leak of ours. Local variables stay on the stacks, whose
    # size is known.
    "address": ("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=0"),
    # Python and torch are not instrumented, so reports about them would be false.
    "thread": ("TSAN_OPTIONS", "ignore_noninstrumented_modules=1:detect_deadlocks=0:atexit_sleep_ms=0"),
}


def build(sanitizer: str = os.environ.get(_CURRENT, "none"), target: str = "_native") -> Path:
    """Build, if out of date, the `_native` module, the `selftest` program or the `selftest_library`; returns its path.

    The default sanitizer is the one this Python runs under. `planted` is the `_native` module with `planted_source`
    instead of csrc/selective_scan/fwd.cu."""
    folder = BUILD / sanitizer
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _configure(sanitizer, folder)
        _run(["cmake", "--build", str(folder), "--target", target])
    module = f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    files = {
        "_native": module,
        "planted": f"planted/{module}",
        "selftest": "selftest",
        "selftest_library": "libselftest_library.so",
        "emulator_archive": "libemulator_archive.a",
    }
    return folder / files[target]


def planted_source(sanitizer: str) -> Path:
    """The path for a faulty fwd.cu, to be written before `planted` is built."""
    return BUILD / sanitizer / "planted" / "fwd.cu"


def load(path: Path) -> ModuleType:
    """Load the extension module at the path as `_native`."""
    spec = importlib.util.spec_from_file_location("_native", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_sanitized(
    sanitizer: str,
    argv: Sequence[str | Path],
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `python argv...` so that it can load modules built with the sanitizer.

    After a report the process exits with REPORTED, and the report is at the end of stderr even if Python redirected it.
    """
    # Set for Python only, because ThreadSanitizer may refuse a program that starts it.
    preload = ["env", "LD_PRELOAD=" + " ".join(map(str, _runtimes(sanitizer)))]
    return run(sanitizer, [*preload, sys.executable, *argv], {_CURRENT: sanitizer, **(env or {})}, timeout)


def run(
    sanitizer: str,
    command: Sequence[str | Path],
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program built with the sanitizer, as `sanitized` runs Python."""
    prefix = ["setarch", "-R"] if sanitizer == "thread" and _address_space_is_randomised() else []
    words = [*prefix, *map(str, command)]
    # One thread: the sanitizer cannot see the synchronisation of torch's threads.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    with tempfile.TemporaryDirectory() as folder:
        if sanitizer in _OPTIONS:
            name, options = _OPTIONS[sanitizer]
            environment[name] = f"exitcode={REPORTED}:log_path={folder}/report:{options}"
        result = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
        reports = [path.read_text(errors="replace") for path in sorted(Path(folder).glob("report*"))]
    return subprocess.CompletedProcess(words, result.returncode, result.stdout, "".join([result.stderr, *reports]))


def missing(sanitizer: str) -> str:
    """Why this machine cannot build and run with the sanitizer; empty if it can."""
    if sys.platform != "linux":
        return "the emulation runs on Linux"
    lacks = [name for name in ("cmake", "ninja", _compiler()) if _find(name) is None]
    if importlib.util.find_spec("pybind11") is None:
        lacks.append("pybind11")
    if not lacks:
        lacks = [path.name for path in _runtimes(sanitizer) if not path.exists()]
    return f"not installed: {', '.join(lacks)}" if lacks else ""


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _configure(sanitizer: str, folder: Path) -> None:
    """Runs once per compiler and Python; ninja handles all other changes."""
    import pybind11

    options = [
        f"-DSANITIZER={sanitizer}",
        f"-DCMAKE_CXX_COMPILER={_compiler()}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    done = folder / "configured"
    if done.exists() and done.read_text() == "\n".join(options):
        return
    (folder / "CMakeCache.txt").unlink(missing_ok=True)
    _run(["cmake", "-S", str(HERE), "-B", str(folder), "-G", "Ninja", *options])
    done.write_text("\n".join(options))


def _search() -> str:
    """PATH with this Python's folder first, where pip puts cmake and ninja."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def _find(program: str) -> str | None:
    return shutil.which(program, path=_search())


def _run(command: list[str]) -> None:
    # The sanitizer that Python runs under must not apply to the compiler.
    env = {name: value for name, value in {**os.environ, "PATH": _search()}.items() if name != "LD_PRELOAD"}
    words = [_find(command[0]) or command[0], *command[1:]]
    result = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")


def _runtimes(sanitizer: str) -> list[Path]:
    """The libraries to preload. AddressSanitizer looks up the function that throws exceptions in libstdc++."""
    names = {"none": [], "address": ["libasan.so", "libstdc++.so"], "thread": ["libtsan.so"]}[sanitizer]
    paths = []
    for name in names:
        found = subprocess.run([_compiler(), f"-print-file-name={name}"], check=True, capture_output=True, text=True)
        paths.append(Path(found.stdout.strip()).resolve())
    return paths


def _address_space_is_randomised() -> bool:
    """Whether the kernel may map memory where older ThreadSanitizers do not expect any."""
    bits = Path("/proc/sys/vm/mmap_rnd_bits")
    return bits.exists() and int(bits.read_text()) > 28
