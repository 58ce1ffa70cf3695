"""The tests of this folder need a CUDA device. VMDDPM_GPU_TESTS=rehearse runs them on small sizes through the CPU
kernels instead, to test the tests."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernels"))  # the oracle

from gpu_cases import BACKENDS, REHEARSAL, reason_to_skip


@pytest.fixture(autouse=True, params=BACKENDS)
def _use_device(request, monkeypatch, poisoned_memory):
    """Run every test on a CUDA device, through each backend for it, on poisoned memory."""
    if reason := reason_to_skip(request.param):
        pytest.skip(reason)
    monkeypatch.setenv("VMDDPM_BACKEND", request.param)


@pytest.fixture
def cuda():
    """For tests without a CPU counterpart: graphs, streams, allocator statistics."""
    if REHEARSAL:
        pytest.skip("nothing to rehearse without a CUDA device")
