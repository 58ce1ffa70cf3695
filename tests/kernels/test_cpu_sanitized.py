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
SANITIZED = ["-DVMDDPM_SANITIZE=address,undefined", "-DCMAKE_STRIP="]  # line numbers in reports
PLAIN = ["-DVMDDPM_PLAIN_VECTORS=ON", "-DVMDDPM_BASELINE_ONLY=ON"]

SUITE = [
    "test_scan_accuracy.py", "test_scan_behaviour.py", "test_cross_scan.py", "test_images.py",
    "test_causal_conv1d.py", "test_state_update.py",
]  # fmt: skip
# All tests but one that starts Python with the installed kernels, and tests of compilers, which take minutes under a
# sanitizer; in two halves, for two processes at once.
ALL = "not instruction_set and not opcheck and not compilers"
HALVES = {"images": f"{ALL} and cross_selective", "rest": f"{ALL} and not cross_selective"}


def built(name: str, *options: str) -> Path:
    """Build, if out of date, the extension with these options of csrc/CMakeLists.txt, in its own folder."""
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


def python(module: Path, sanitizer: str, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `python argv...` on this module with two threads that sleep while waiting, to leave processors to others."""
    environment = {
        "VMDDPM_PLANTED": str(module),
        "PYTHONPATH": os.pathsep.join([str(build.ROOT), str(build.ROOT / "tests"), str(HERE)]),
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "passive",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        **env,
    }
    return build.run_sanitized(sanitizer, argv, environment, timeout=3600)


def passes(module: Path, sanitizer: str, files: list[str], chosen: str, **env: str) -> None:
    # UndefinedBehaviorSanitizer writes to stderr and ends the process, so pytest's captured output would be lost.
    options = ["-q", "-p", "planted_cpu", "-p", "no:cacheprovider", "--capture=sys", "-k", chosen]
    done = python(module, sanitizer, "-m", "pytest", *options, *(str(HERE / name) for name in files), **env)
    if "is not available here" in done.stdout + done.stderr:
        pytest.skip(f"this processor has no {env['VMDDPM_CPU_ISA']}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert "100%" in done.stdout


@pytest.fixture(scope="session")
def run_sanitized() -> Path:
    if reason := build.missing("address"):
        pytest.skip(reason)
    return built("address_undefined", *SANITIZED)


@pytest.mark.parametrize("half", HALVES)
def test_no_report_of_scans(run_sanitized, half):
    passes(run_sanitized, "address", SUITE[:1], HALVES[half], VMDDPM_CPU_ISA="baseline")


def test_no_report_on_the_best_instruction_set(run_sanitized):
    passes(run_sanitized, "address", SUITE[1:], ALL)


@pytest.mark.slow
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_no_report(run_sanitized, isa, half):
    passes(run_sanitized, "address", SUITE, HALVES[half], VMDDPM_CPU_ISA=isa)


FAULTS = {
    # y has memory for only 4 of 9 steps.
    "overflow on address": (
        "x, delta, A, B = (torch.rand(s) for s in ((1, 9, 5), (1, 4, 9, 5), (4, 5, 2), (1, 4, 9, 2)))\n"
        "inputs = ScanInputs(x, delta, -A, B, B)\n"
        "y = ScanOutputs(torch.empty(1, 4, 5), None, None)\n"
        "n.scan_forward(inputs, ScanOptions(), inputs.sizes(), y, 1)"
    ),
    "signed integer overflow": "n.scan_plan(ScanSizes(2**60, 4, 9, 5, 1, False, False))",
}


@pytest.mark.parametrize("report", FAULTS)
def test_a_fault_is_reported(run_sanitized, report):
    script = f"""
import planted_cpu, torch
from vmddpm_kernels.scan_inputs import ScanInputs, ScanOptions, ScanSizes
from vmddpm_kernels.backends.extension import ScanOutputs, native as n
{FAULTS[report]}
"""
    done = python(run_sanitized, "address", "-c", script)
    assert done.returncode != 0
    assert report in done.stderr
    assert "cpu.cpp:" in done.stderr


@pytest.mark.slow
def test_operators_on_any_arguments(run_sanitized):
    """Forward and backward, with tensors that change in between."""
    passes(run_sanitized, "address", ["test_fuzz_operators.py"], "any_operator_call", HYPOTHESIS_PROFILE="nightly")


@pytest.mark.slow
def test_plain_vectors():
    """The code for compilers without vector types."""
    if reason := build.missing("none"):
        pytest.skip(reason)
    passes(built("plain", *PLAIN), "none", SUITE, ALL)
