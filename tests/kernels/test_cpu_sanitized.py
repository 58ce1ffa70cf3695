"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, and without the compiler's vector types."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import emulation_build as build
import pytest

HERE = Path(__file__).resolve().parent
BUILD = build.ROOT / "build" / "planted_cpu"
SANITIZED = "-DVMDDPM_SANITIZE=address,undefined"
BASELINE, PLAIN = "-DVMDDPM_BASELINE_ONLY=ON", "-DVMDDPM_PLAIN_VECTORS=ON"

# Every branch of the kernels; the whole suite, which takes minutes, runs in the nightly.
QUICK = ["test_scan_behaviour.py", "test_cross_scan.py", "-k", "not instruction_set and not adjoint"]


def built(name: str, *options: str) -> Path:
    """The extension with these options of csrc/CMakeLists.txt, in a folder of its own; built again where needed."""
    import pybind11

    folder = BUILD / name
    folder.mkdir(parents=True, exist_ok=True)
    always = [
        "-DVMDDPM_CUDA=0",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={folder}",
    ]
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build._run(["cmake", "-S", str(build.ROOT / "csrc"), "-B", str(folder), "-G", "Ninja", *always, *options])
        build._run(["cmake", "--build", str(folder)])
    return next(folder.glob("_native*.so"))


def run(module: Path, sanitizer: str, tests: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    arguments = ["-m", "pytest", "-q", "-p", "planted_cpu", "-p", "no:cacheprovider"]
    paths = [str(HERE / word) if word.endswith(".py") else word for word in tests]
    search = os.pathsep.join([str(build.ROOT), str(build.ROOT / "tests"), str(HERE)])
    environment = {"VMDDPM_PLANTED": str(module), "PYTHONPATH": search, "OMP_NUM_THREADS": "2", **env}
    return build.sanitized(sanitizer, [*arguments, *paths], environment, timeout=3600)


def check(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert "100%" in done.stdout


def test_no_report():
    if reason := build.missing("address"):
        pytest.skip(reason)
    check(run(built("sanitized", SANITIZED, BASELINE), "address", QUICK))


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_no_report_in_the_whole_suite(isa):
    if reason := build.missing("address"):
        pytest.skip(reason)
    tests = ["test_scan_accuracy.py", "test_scan_behaviour.py", "test_cross_scan.py", "-k", "not instruction_set"]
    done = run(built("sanitized_all", SANITIZED), "address", tests, VMDDPM_CPU_ISA=isa)
    if "is not available here" in done.stdout + done.stderr:
        pytest.skip(f"this processor has no {isa}")
    check(done)


@pytest.mark.slow
def test_plain_vectors():
    """What compilers without vector types get."""
    if reason := build.missing("none"):
        pytest.skip(reason)
    tests = ["test_scan_accuracy.py", *QUICK]
    check(run(built("plain", PLAIN, BASELINE), "none", tests))
