"""Compiles the Triton kernels for a GPU that need not exist, in a process where Triton is not an interpreter.

    python triton_compiler.py TARGET FOLDER VERSION     TARGET is sm_80 or sm_90, VERSION the Triton that must be found

Reads requests, a JSON object a line, and answers each with the name of the files that it wrote to FOLDER: NAME.ptx,
NAME.cubin and NAME.json, which holds the kernel's name, its warps, its shared memory and the types of its parameters.
"""

import hashlib
import importlib
import json
import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "triton_aot"))

import torch
import triton
from compile_triton import TARGETS, NoGpu
from triton import language
from triton.runtime.jit import MockTensor

from vmddpm_kernels.backends.triton.launch import OPTIONS


class Unaligned(MockTensor):
    """A tensor that is not 16-byte aligned."""

    @staticmethod
    def data_ptr() -> int:
        return 1


def argument(described):
    kind, value = described
    if kind == "tensor":
        dtype, aligned = value
        return (MockTensor if aligned else Unaligned)(getattr(torch, dtype))
    if kind == "dtype":
        return getattr(language, value)
    return value


def compiled(request, folder):
    module = importlib.import_module(request["module"])
    kernel = getattr(module, request["kernel"])
    options = {name: argument(a) for name, a in request["options"].items()}
    result = kernel.warmup(grid=(1,), **options, **OPTIONS)
    metadata = {
        "kernel": request["kernel"], "warps": result.metadata.num_warps, "shared": result.metadata.shared,
        "signature": result.src.signature,
    }  # fmt: skip
    ptx = result.asm["ptx"]
    # Results are named by the hash of their PTX, so that equal ones share files.
    name = f"{request['kernel']}-{hashlib.sha256(ptx.encode()).hexdigest()[:20]}"
    contents = {"ptx": ptx.encode(), "cubin": result.asm["cubin"], "json": json.dumps(metadata).encode()}
    for suffix, data in contents.items():
        partial = folder / f"{name}.{suffix}.{os.getpid()}"
        partial.write_bytes(data)
        partial.replace(folder / f"{name}.{suffix}")
    return name


def main(target, folder, version):
    assert triton.__version__ == version, f"Python imports Triton {triton.__version__}, not {version}"
    triton.runtime.driver.set_active(NoGpu(TARGETS[target]))
    # Other writes to standard output must not get between the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        try:
            answer = {"name": compiled(json.loads(line), Path(folder))}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
