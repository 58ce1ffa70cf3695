"""Builds the wheels of one architecture or both into dist/: `python wheels/build_wheels.py x86_64 aarch64`.

A wheel is named manylinux_2_28: it runs with glibc 2.28 and later, and needs neither a compiler nor a libstdc++ of the
compiler's age. A compiler links against the glibc of its own system, so the symbols of 2.28 come from Zig, which has
them for every version; the compiler itself stays GCC. The x86_64 wheel has the CUDA kernels (VMDDPM_CUDA=0 leaves them
out, VMDDPM_CUDA_ARCHS names the architectures), the aarch64 wheel is cross-compiled and has the CPU kernels.
OpenMP's runtime is not put into a wheel: torch brings libgomp.so.1, and two of them would each start their threads.
`make wheels` sets up the environment that this runs in. It stops at the first wheel that auditwheel, twine or the check
of symbols refuses.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "wheels"
DIST = ROOT / "dist"
GLIBC = "2.28"
POLICY = f"manylinux_{GLIBC.replace('.', '_')}"
COMPILERS = {"x86_64": "g++", "aarch64": "aarch64-linux-gnu-g++"}
PACKAGES = {"x86_64": "g++", "aarch64": "g++-aarch64-linux-gnu"}  # of Debian
LIBRARIES = ("libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1")


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """What a command printed; ends the program with the last lines of one that fails."""
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **(env or {})},
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        end = "\n".join(done.stdout.splitlines()[-60:])
        sys.exit(f"{end}\n{' '.join(str(part) for part in command)}: exit status {done.returncode}")
    return done.stdout


def glibc_symbols(arch: str) -> Path:
    """A folder that a linker finds glibc 2.28 in: libraries with its symbols and no code."""
    folder = WORK / f"glibc-{GLIBC}" / arch
    if (folder / "libc.so").exists():
        return folder
    with TemporaryDirectory(dir=WORK) as scratch:
        program = Path(scratch, "empty.c")
        program.write_text("int main(void) { return 0; }\n")
        cache = {"ZIG_GLOBAL_CACHE_DIR": f"{scratch}/zig", "ZIG_LOCAL_CACHE_DIR": f"{scratch}/zig"}
        target = f"{arch}-linux-gnu.{GLIBC}"
        run(sys.executable, "-m", "ziglang", "cc", "-target", target, program, "-o", f"{scratch}/empty", env=cache)
        made = list(Path(scratch, "zig").rglob("libc.so.6"))
        if len(made) != 1:
            sys.exit(f"Zig made {len(made)} files libc.so.6, not one: use the ziglang of wheels/requirements.txt")
        new = Path(scratch, "new")
        new.mkdir()
        for library in LIBRARIES:
            shutil.copy(made[0].with_name(library), new)
            (new / f"{library.split('.so')[0]}.so").symlink_to(library)
        # -lc alone is to find what later versions of glibc have in libc.so.6, the loader's __tls_get_addr, and atexit,
        # which is linked in.
        loader = "ld-linux-x86-64.so.2" if arch == "x86_64" else "ld-linux-aarch64.so.1"
        static, loader = (
            run(COMPILERS[arch], f"-print-file-name={name}").strip() for name in ("libc_nonshared.a", loader)
        )
        others = " ".join(str(folder / library) for library in LIBRARIES[2:])
        (new / "libc.so").unlink()
        (new / "libc.so").write_text(f"GROUP ( {folder / 'libc.so.6'} {static} AS_NEEDED ( {others} {loader} ) )\n")
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    return folder


def build(arch: str) -> Path:
    """The wheel of `arch` as setuptools names it, linked with glibc 2.28's symbols."""
    raw = WORK / "raw" / arch
    for stale in (raw, *ROOT.glob("build/lib.*"), *ROOT.glob("build/bdist.*")):
        shutil.rmtree(stale, ignore_errors=True)
    env = {"VMDDPM_GLIBC": str(glibc_symbols(arch)), "VMDDPM_CUDA": os.environ.get("VMDDPM_CUDA") or "1"}
    if arch != platform.machine():
        # The headers are those of the Python that runs this: on 64-bit Linux they say the same for either architecture.
        suffix = sysconfig.get_config_var("EXT_SUFFIX").replace(platform.machine(), arch)
        env |= {"_PYTHON_HOST_PLATFORM": f"linux-{arch}", "SETUPTOOLS_EXT_SUFFIX": suffix, "VMDDPM_CUDA": "0"}
        env |= {"CMAKE_TOOLCHAIN_FILE": str(ROOT / "wheels" / f"{arch}.cmake")}
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", raw, env=env)
    (wheel,) = raw.glob("*.whl")
    return wheel


def check_symbols(wheel: Path) -> None:
    """End the program where the extension of a wheel needs a symbol that nobody names a version of and that is not
    Python's: one that this glibc lacks, which auditwheel takes for any library's."""
    with TemporaryDirectory() as scratch, zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".so")]
        table = run("readelf", "--dyn-syms", "--wide", archive.extract(name, scratch))
    found = re.findall(r" (GLOBAL|WEAK) +DEFAULT +UND +(\S+)", table)
    unknown = [symbol for bind, symbol in found if bind == "GLOBAL" and not re.match(r"_?Py|\S+@", symbol)]
    if unknown or not found:
        sys.exit(
            f"{wheel.name} needs symbols that glibc {GLIBC} does not have: {', '.join(unknown) or 'none was read'}"
        )


def audited(wheel: Path, arch: str) -> Path:
    """The wheel under the name of POLICY, once auditwheel finds that it keeps to that; else ends the program."""
    folder = WORK / "audited" / arch
    shutil.rmtree(folder, ignore_errors=True)
    # Only "auto" takes a wheel of another architecture than this machine's. It finds the oldest policy that fits.
    audit = [sys.executable, "-m", "auditwheel", "repair", "--plat", "auto", "--only-plat"]
    run(*audit, "--exclude", "libgomp.so.1", "--wheel-dir", folder, wheel)
    (found,) = folder.glob("*.whl")
    version = re.search(rf"-manylinux_(\d+)_(\d+)_{arch}\.whl$", found.name)
    if not version or tuple(map(int, version.groups())) > tuple(map(int, GLIBC.split("."))):
        sys.exit(f"auditwheel finds that the wheel is {found.name}, which needs more than glibc {GLIBC}")
    run(sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", f"{POLICY}_{arch}", found)
    (named,) = folder.glob("*.whl")
    return named


def main(archs: list[str]) -> None:
    for arch in archs:
        if arch not in COMPILERS:
            sys.exit(f"no wheel is built for {arch!r}: name one of {', '.join(COMPILERS)}")
        if not shutil.which(COMPILERS[arch]):
            sys.exit(f"no {COMPILERS[arch]} was found: install Debian's {PACKAGES[arch]}, or leave out {arch}")
    WORK.mkdir(parents=True, exist_ok=True)
    DIST.mkdir(exist_ok=True)
    for arch in archs:
        begun = time.monotonic()
        wheel = build(arch)
        check_symbols(wheel)
        named = audited(wheel, arch)
        run(sys.executable, "-m", "twine", "check", "--strict", named)
        named.replace(DIST / named.name)
        size = (DIST / named.name).stat().st_size / 1e6
        print(f"dist/{named.name}: {size:.1f} MB, {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(COMPILERS))
