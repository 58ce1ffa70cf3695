"""Compiles the CUDA sources to cubins for several architectures; a GPU is not needed.

The cubins are in build/sass/ and are recompiled only when an included file or the command has changed.
"""

import fcntl
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc"
BUILD = ROOT / "build" / "sass"
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
WORKERS = 2

# The options of csrc/CMakeLists.txt that affect device code, as in a Release build with CMake's defaults.
FLAGS = ("-std=c++17", "-O3", "-DNDEBUG")


class Unavailable(Exception):
    """A tool is not installed; the message names it and where it was searched."""


@dataclass(frozen=True)
class Resources:
    """ptxas's report on one kernel, or on a function that it did not inline."""

    architecture: int
    mangled: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int

    @property
    def name(self) -> str:
        return kernel_name(self.mangled)

    @property
    def local_bytes(self) -> int:
        return self.stack + self.spill_stores + self.spill_loads


@dataclass(frozen=True)
class Cubin:
    source: Path
    architecture: int
    path: Path
    log: Path
    ptx: Path  # the cubin's source


@cache
def find_nvcc() -> str:
    installed = sorted(Path("/usr/local").glob("cuda*/bin"))
    for candidate in (os.environ.get("CUDACXX"), "nvcc", *(str(folder / "nvcc") for folder in reversed(installed))):
        if candidate and (found := shutil.which(candidate)):
            return found
    raise Unavailable("no nvcc in CUDACXX, on PATH or in /usr/local/cuda*/bin")


@cache
def find_ptxas() -> str:
    nvcc_folder = Path(find_nvcc()).resolve().parent
    if found := shutil.which("ptxas", path=str(nvcc_folder)) or shutil.which("ptxas"):
        return found
    raise Unavailable(f"no ptxas in {nvcc_folder} or on PATH (it comes with nvcc)")


@cache
def supported() -> tuple[int, ...]:
    """The ARCHITECTURES that the installed nvcc supports."""
    listed = subprocess.run([find_nvcc(), "--list-gpu-code"], check=True, capture_output=True, text=True).stdout.split()
    return tuple(architecture for architecture in ARCHITECTURES if f"sm_{architecture}" in listed)


def cuda_sources() -> list[Path]:
    return sorted(SOURCES.glob("*/*.cu"))


def build(architectures: Iterable[int] | None = None, sources: Iterable[Path] | None = None) -> list[Cubin]:
    """Compile each source for each architecture (default: all nvcc supports) to a cubin and PTX with line numbers."""
    chosen = supported() if architectures is None else tuple(architectures)
    files = cuda_sources() if sources is None else list(sources)
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(lambda job: _cubin(*job), [(file, code) for code in chosen for file in files]))


def resources(cubin: Cubin) -> list[Resources]:
    return parse_log(cubin.architecture, cubin.log.read_text())


def parse_log(architecture: int, log: str) -> list[Resources]:
    """Parse `ptxas -v`, which prints a function's stack frame and spills before its registers."""
    pattern = re.compile(
        r"Function properties for (?P<name>\S+)\s+"
        r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
        r"(?:\s+ptxas info\s*: Used (?P<registers>\d+) registers(?P<rest>[^\n]*))?"
    )
    found = []
    for match in pattern.finditer(log):
        shared = re.search(r"(\d+)(?:\+\d+)? bytes smem", match["rest"] or "")
        figures = (int(match[group] or 0) for group in ("registers", "stack", "stores", "loads"))
        found.append(Resources(architecture, match["name"], *figures, shared=int(shared[1]) if shared else 0))
    return found


@cache
def kernel_name(mangled: str) -> str:
    """The demangled name with its template arguments, without namespaces, return type and parameters."""
    if not mangled.startswith("_Z"):
        return mangled
    demangler = shutil.which("c++filt") or shutil.which("cu++filt", path=str(Path(find_nvcc()).parent))
    if demangler is None:
        raise Unavailable("no c++filt on PATH (it comes with binutils)")
    name = subprocess.run([demangler, mangled], check=True, capture_output=True, text=True).stdout.strip()
    name = re.sub(r"\(anonymous namespace\)::|vmddpm::|gpu::", "", name)
    depth = 0
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            name = name[:i]
            break
    return name.removeprefix("void ")


def _cubin(source: Path, architecture: int) -> Cubin:
    base = BUILD / source.relative_to(SOURCES) if source.is_relative_to(SOURCES) else BUILD / "other" / source.name
    stem = base.with_suffix(f".sm_{architecture}")
    cubin = Cubin(source, architecture, Path(f"{stem}.cubin"), Path(f"{stem}.log"), Path(f"{stem}.ptx"))
    dependencies = Path(f"{stem}.d")
    include = f"-I{SOURCES / 'common' / 'gpu'}"
    command = [find_nvcc(), *FLAGS, include, f"-arch=sm_{architecture}", "-lineinfo", "-ptx", str(source)]
    assembler = [find_ptxas(), "-v", "-lineinfo", f"-arch=sm_{architecture}"]
    signature = f"{shlex.join(command)} && {shlex.join(assembler)}"
    cubin.path.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{stem}.lock").open("w") as lock:  # only one of several processes compiles
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _fresh(cubin, dependencies, signature):
            _compile(cubin, dependencies, command, assembler, signature)
    return cubin


def _compile(cubin: Cubin, dependencies: Path, command: list[str], assembler: list[str], signature: str) -> None:
    files = (cubin.path, cubin.ptx, dependencies)
    partial, partial_ptx, partial_dependencies = partials = [Path(f"{path}.partial") for path in files]
    started = time.time()
    _run([*command, "-MD", "-MF", str(partial_dependencies), "-o", str(partial_ptx)])
    said = _run([*assembler, str(partial_ptx), "-o", str(partial)])
    for written, file in zip(partials, files):
        os.replace(written, file)
    # The log is put in place last, and its date vouches for all files. It is dated to the start, so that a file edited
    # during compilation counts as newer.
    partial_log = Path(f"{cubin.log}.partial")
    partial_log.write_text(f"{signature}\n{said}")
    os.utime(partial_log, (started, started))
    os.replace(partial_log, cubin.log)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}")
    return done.stdout


def _fresh(cubin: Cubin, dependencies: Path, signature: str) -> bool:
    if not all(path.exists() for path in (cubin.path, cubin.ptx, cubin.log, dependencies)):
        return False
    if cubin.log.read_text().partition("\n")[0] != signature:
        return False
    made = cubin.log.stat().st_mtime
    included = shlex.split(dependencies.read_text().replace("\\\n", " ").partition(" : ")[2])
    return bool(included) and all(Path(file).exists() and Path(file).stat().st_mtime < made for file in included)
