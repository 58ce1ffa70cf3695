"""Whether what the PTX of the CUDA kernels is made with is installed."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "cuda_sass"))

import compile as nvcc


def require_nvcc(architecture: int) -> None:
    """Skips the test if nvcc is not there, or does not know the architecture."""
    try:
        if architecture not in nvcc.supported():
            pytest.skip(f"this nvcc does not know sm_{architecture}")
    except nvcc.Unavailable as reason:
        pytest.skip(str(reason))
