import sys
from pathlib import Path

import pytest

sys.path.extend(
    str(Path(__file__).parents[1] / folder) for folder in ("kernels", "cuda_emulation", "cuda_sass", "triton_aot")
)

import emulation_build
from ptx_tools import require_nvcc


@pytest.fixture(autouse=True)
def _poisoned(poisoned_memory):
    """Run every kernel test on poisoned memory."""


@pytest.fixture(scope="session")
def emulated_native():
    return emulation_build.load(emulation_build.build())


@pytest.fixture
def run_ptx(monkeypatch, request):
    """use(backend, architecture, multiprocessors, shared_bytes) makes the backend run its PTX on CPU tensors. Skips if
    there is no nvcc."""

    def use(backend, architecture, multiprocessors=132, shared_bytes=227 * 1024, **options):
        if backend == "triton":
            import triton_kernels

            request.getfixturevalue("interpreter")
            return triton_kernels.use_ptx(monkeypatch, architecture, **options)
        require_nvcc(architecture)
        import cuda_kernels

        native = request.getfixturevalue("emulated_native")
        return cuda_kernels.use_ptx(monkeypatch, native, architecture, multiprocessors, shared_bytes, **options)

    return use
