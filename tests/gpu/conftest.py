"""The tests of this folder need a CUDA device. With VMDDPM_GPU_TESTS=rehearse they run on small sizes through the CPU
kernels instead: that tests the tests."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernels"))  # the oracle

from gpu_cases import BACKENDS, REHEARSAL, why_not_here


@pytest.fixture(autouse=True, params=BACKENDS)
def _on_a_device(request, monkeypatch, poisoned_memory):
    """Every test here runs on a CUDA device, through each backend that has one, and on poisoned memory."""
    if reason := why_not_here(request.param):
        pytest.skip(reason)
    monkeypatch.setenv("VMDDPM_BACKEND", request.param)


@pytest.fixture
def cuda():
    """For what has no counterpart on a CPU: graphs, streams, the allocator's figures."""
    if REHEARSAL:
        pytest.skip("nothing to rehearse without a CUDA device")
