"""A pytest plugin, `-p planted_cpu`: tests run only on the CPU kernels, from the extension module named by the
environment variable VMDDPM_PLANTED instead of the installed one."""

import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "cuda_emulation"))

import emulated
import emulation_build

from vmddpm_kernels.backends import extension

extension.native = emulation_build.load(Path(os.environ["VMDDPM_PLANTED"]))
# The remaining tests need no emulated GPU.
emulation_build.build = lambda: None
emulation_build.load = lambda path: None
emulated.use_emulation = lambda *_: None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for module in {item.module for item in items}:
        compiled = getattr(module, "COMPILED", {})
        for name in [name for name, backend in compiled.items() if backend == "cuda"]:
            del compiled[name]
    items[:] = [item for item in items if not any(other in item.name for other in ("cuda", "triton", "[reference"))]
