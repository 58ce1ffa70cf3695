"""The CUDA kernels on the emulated GPU: under AddressSanitizer and ThreadSanitizer, and with other thread orders."""

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
    done = build.run_sanitized(sanitizer, arguments, settings, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


def test_planted_race_is_reported():
    """Without the barrier before a walk, threads read tiles that other threads are still writing."""
    if reason := build.missing("thread"):
        pytest.skip(reason)
    text = (build.ROOT / "csrc" / "selective_scan" / "fwd.cu").read_text()
    planted = text.replace("    barrier();\n    pixels.fetch(tile + 2)", "    pixels.fetch(tile + 2)")
    assert planted != text
    source = build.planted_source("thread")
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(planted)
    module = build.build("thread", "planted")
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "test_cuda_branches.py"), "-k", "slices"]
    done = build.run_sanitized("thread", arguments, {"VMDDPM_EMULATION_MODULE": str(module)}, timeout=900)
    assert done.returncode == build.REPORTED, done.stdout[-3000:]
    assert "data race" in done.stderr
    assert "fwd.cu" in done.stderr
