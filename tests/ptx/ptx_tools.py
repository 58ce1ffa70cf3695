"""Checks that nvcc, which makes the CUDA kernels' PTX, is installed."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "cuda_sass"))

import compile as nvcc


def require_nvcc(architecture: int) -> None:
    """Skip the test if nvcc is missing or does not support the architecture."""
    try:
        if architecture not in nvcc.supported():
            pytest.skip(f"this nvcc does not know sm_{architecture}")
    except nvcc.Unavailable as reason:
        pytest.skip(str(reason))
