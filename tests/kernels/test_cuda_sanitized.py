"""The CUDA kernels on the emulated GPU: under AddressSanitizer and ThreadSanitizer, and with threads in any order."""

import shutil
from pathlib import Path

import emulation_build as build
import pytest

HERE = Path(__file__).resolve().parent
# name: sanitizer, settings of the emulation.
RUNS = {
    "threads in reverse": ("none", {"VMDDPM_EMULATION_ORDER": "reverse"}),
    "threads in random order": ("none", {"VMDDPM_EMULATION_ORDER": "random:1"}),
    "address": ("address", {}),
    "races in a block": ("thread", {"VMDDPM_EMULATION_RACES": "threads"}),
    "races of blocks": ("thread", {"VMDDPM_EMULATION_RACES": "blocks"}),
}


@pytest.mark.parametrize("name", RUNS)
def test_no_report(name):
    sanitizer, settings = RUNS[name]
    if reason := build.missing(sanitizer):
        pytest.skip(reason)
    build.build(sanitizer)
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "test_cuda_branches.py")]
    done = build.sanitized(sanitizer, arguments, settings, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


def test_planted_race_is_reported(tmp_path, monkeypatch):
    """Without the barrier before a walk, threads read tiles that others still write."""
    if reason := build.missing("thread"):
        pytest.skip(reason)
    sources = tmp_path / "csrc"
    shutil.copytree(build.ROOT / "csrc", sources)
    kernel = sources / "selective_scan" / "fwd.cu"
    text = kernel.read_text()
    planted = text.replace("    barrier();\n    pixels.fetch(tile + 2)", "    pixels.fetch(tile + 2)")
    assert planted != text
    kernel.write_text(planted)
    folder = tmp_path / "build"
    build.build("thread", folder=folder, kernels=sources)
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "test_cuda_branches.py"), "-k", "slices"]
    done = build.sanitized("thread", arguments, {"VMDDPM_EMULATION_FOLDER": str(folder)}, timeout=900)
    assert done.returncode == build.REPORTED, done.stdout[-3000:]
    assert "data race" in done.stderr
    assert "fwd.cu" in done.stderr
