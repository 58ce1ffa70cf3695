import os
import sys
from pathlib import Path

import pytest

from vmddpm_kernels import backends

sys.path.append(str(Path(__file__).resolve().parents[1] / "cuda_emulation"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "ptx"))

import emulation_build as build
from emulated import EMPTY, FILLED, use_emulation
from ptx_tools import require_nvcc


@pytest.fixture(autouse=True)
def _poisoned(poisoned_memory):
    """Run every kernel test on poisoned memory."""


@pytest.fixture(scope="session")
def emulated_native():
    """The CUDA kernels compiled for the emulated GPU of tests/cuda_emulation."""
    planted = os.environ.get("VMDDPM_EMULATION_MODULE")  # a faulty module, set by test_cuda_sanitized.py
    return build.load(Path(planted) if planted else build.build())


@pytest.fixture(params=[EMPTY, FILLED], ids=["segments", "sequences"])
def emulated_gpu(request, monkeypatch, emulated_native):
    """backend="cuda" on CPU tensors."""
    use_emulation(monkeypatch, emulated_native, request.param)


PTX = ("cuda-ptx", "triton-ptx")  # each kernel takes seconds to compile; tests/ptx runs a selection every time


@pytest.fixture(
    params=["cpu", "cuda", "triton", "reference", *(pytest.param(name, marks=pytest.mark.slow) for name in PTX)]
)
def backend(request, monkeypatch):
    """Every backend, `cuda` on an emulated GPU, `triton` under its interpreter, and both from their PTX for sm_90."""
    name, _, ptx = request.param.partition("-")
    if name in ("cuda", "triton"):  # convolutions and single steps of `cuda` use Triton
        request.getfixturevalue("interpreter")
    if name == "cuda":
        native = request.getfixturevalue("emulated_native")
        if ptx:
            require_nvcc(90)
            import cuda_kernels

            cuda_kernels.use_ptx(monkeypatch, native, 90)
        else:
            use_emulation(monkeypatch, native)
    elif ptx:
        import triton_kernels

        triton_kernels.use_ptx(monkeypatch, 90)
    status = backends()[name]
    if not status.active:
        pytest.fail(f"backend {name} must work where the tests run: {status.detail}")
    return name


@pytest.fixture(params=["cpu", "cuda"])
def compiled_backend(request, monkeypatch):
    """Every backend but the reference, `cuda` on an emulated GPU."""
    if request.param == "cuda":
        use_emulation(monkeypatch, request.getfixturevalue("emulated_native"))
    return request.param
