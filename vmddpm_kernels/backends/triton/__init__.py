"""The operators as Triton kernels, for every GPU that Triton serves, and on the CPU under Triton's interpreter.

Nothing here imports Triton before one of the four operators is first used."""

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

# As torch names them; AMD GPUs are "cuda" there.
GPUS = ("cuda", "xpu")


def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def available() -> tuple[bool, str]:
    if find_spec("triton") is None:
        return False, "Triton is not installed; `pip install triton`"
    if interpreted():
        triton = sys.modules.get("triton")
        if triton is not None and isinstance(triton.language.sum, triton.JITFunction):
            return False, "Triton was imported before TRITON_INTERPRET=1 was set; set it before the program starts"
        return True, "Triton, interpreted on the CPU"
    for name in GPUS:
        gpu = torch.get_device_module(name)
        if gpu.is_available():
            return True, f"Triton, {gpu.get_device_name()}"
    return False, "torch finds no GPU; set TRITON_INTERPRET=1 before the program starts to run it, slowly, on the CPU"


def __getattr__(name: str) -> Any:
    modules = {
        "scan_routes": "cross_scan",
        "merge_routes": "cross_scan",
        "checkpoint_shape": "selective_scan",
        "selective_scan_forward": "selective_scan",
        "selective_scan_backward": "selective_scan",
    }
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{modules[name]}"), name)
