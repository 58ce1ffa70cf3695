"""The compiled kernels of csrc/: they take pointers, sizes and strides; this file makes them from tensors."""

from importlib import import_module
from typing import Any

_native: Any = None
_problem = ""
try:
    # torch is imported first by the package, so that the extension finds torch's OpenMP runtime already loaded.
    _native = import_module("vmddpm_kernels._native")
except ImportError as error:
    _problem = str(error)


def available() -> tuple[bool, str]:
    if _native is None:
        return False, f"{_problem}; build the extension with `pip install .` in the source tree"
    return True, _native.describe()
