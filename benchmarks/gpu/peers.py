"""The rivals, built from their own sources where those lie in benchmarks/peers/, which git ignores:

    git clone https://github.com/MzeroMiko/VMamba benchmarks/peers/VMamba
    git clone https://github.com/state-spaces/mamba benchmarks/peers/mamba

Of VMamba, kernels/selective_scan and classification/models/{csm_triton,csms6s}.py are used; of mamba,
csrc/selective_scan and mamba_ssm. A file REVISION in either folder, if there is one, is copied into the results.
`python3 -m benchmarks.gpu.peers` compiles what is there into build/peers/ for the GPU of this machine (or sm_90), a
minute or two on 16 cores; nothing is installed. What is missing is reported as missing.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

import torch

from benchmarks.rivals import BUILDS, MAMBA_EXTENSION, SOURCES, VMAMBA_EXTENSION

HERE = Path(__file__).resolve().parent
# As in the setup.py of both projects.
NVCC_FLAGS = [
    "-O3",
    "--use_fast_math",
    "--expt-relaxed-constexpr",
    "--expt-extended-lambda",
    *(f"-U__CUDA_NO_{name}__" for name in ("HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_OPERATORS")),
    *(f"-U__CUDA_NO_{name}__" for name in ("BFLOAT16_CONVERSIONS", "BFLOAT162_OPERATORS", "BFLOAT162_CONVERSIONS")),
]
# Complex states take longer to compile than all the rest, and nothing here uses them.
COMPLEX_STUB = """
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>
#include <c10/util/complex.h>
#include <cuda_runtime.h>
#include "selective_scan.h"
using complex_t = c10::complex<float>;
template <typename input_t, typename weight_t>
void selective_scan_fwd_cuda(SSMParamsBase&, cudaStream_t) { TORCH_CHECK(false, "built without complex states"); }
template <typename input_t, typename weight_t>
void selective_scan_bwd_cuda(SSMParamsBwd&, cudaStream_t) { TORCH_CHECK(false, "built without complex states"); }
"""


def cuda_home() -> Path:
    """Where nvcc says its toolkit is: the nvcc on PATH may be a script that only calls it."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    said = subprocess.run([nvcc, "--dryrun", "nothing.cu"], capture_output=True, text=True).stderr
    top = next((line.split("TOP=")[1] for line in said.splitlines() if "TOP=" in line), "/usr/local/cuda")
    return Path(top.strip()).resolve()


def headers_of_wheels() -> list[Path]:
    """CUDA headers that came with torch, for a toolkit that was installed without its libraries' headers."""
    return sorted((Path(torch.__file__).parents[1] / "nvidia").glob("cu*/include"))


def write_if_changed(path: Path, text: str) -> Path:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return path


def split(sources: list[Path], folder: Path) -> tuple[list[Path], list[str]]:
    """One file for each explicit instantiation, so that they compile side by side; the complex ones are left out and
    returned as text."""
    files, left_out = [], []
    for source in sources:
        lines = source.read_text().splitlines()
        includes = [line for line in lines if line.startswith("#include")]
        for i, line in enumerate(line for line in lines if line.startswith("template void")):
            if "complex_t" in line:
                left_out.append(line)
            else:
                files.append(write_if_changed(folder / f"{source.stem}_{i}.cu", "\n".join([*includes, line, ""])))
    return files, left_out


def compile_extension(name: str, sources: list[Path], includes: list[Path]) -> None:
    from torch.utils import cpp_extension

    folder = BUILDS / name
    last = [flag for path in headers_of_wheels() for flag in ("-idirafter", str(path))]
    (folder / "lock").unlink(missing_ok=True)  # left by a build that was ended; the next would wait for it
    (folder / "built").unlink(missing_ok=True)
    cpp_extension.load(
        name,
        [str(s) for s in sources],
        extra_cflags=["-O3", *last],
        extra_cuda_cflags=[*NVCC_FLAGS, "-include", str(HERE / "cub_shim.h"), *(f"-Xcompiler={flag}" for flag in last)],
        extra_ldflags=[f"-L{cuda_home() / 'targets' / 'x86_64-linux' / 'lib'}"],
        extra_include_paths=[str(i) for i in includes],
        build_directory=str(folder),
        with_cuda=True,
    )
    (folder / "built").touch()


def build_vmamba() -> None:
    source = SOURCES / "VMamba" / "kernels" / "selective_scan" / "csrc" / "selective_scan"
    oflex = source / "cusoflex"
    folder = BUILDS / VMAMBA_EXTENSION
    folder.mkdir(parents=True, exist_ok=True)
    files, _ = split(sorted(oflex.glob("*.cu")), folder)
    compile_extension(VMAMBA_EXTENSION, [oflex / "selective_scan_oflex.cpp", *files], [source, oflex])


def build_mamba() -> None:
    source = SOURCES / "mamba" / "csrc" / "selective_scan"
    folder = BUILDS / MAMBA_EXTENSION
    folder.mkdir(parents=True, exist_ok=True)
    files, complex_lines = split(sorted(source.glob("*.cu")), folder)
    stub = write_if_changed(folder / "complex_stub.cu", "\n".join([COMPLEX_STUB, *complex_lines, ""]))
    compile_extension(MAMBA_EXTENSION, [source / "selective_scan.cpp", *files, stub], [source])


def build() -> None:
    """Compiles what lies in benchmarks/peers/; says what happened to each."""
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
    os.environ["CUDA_HOME"] = str(cuda_home())
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", f"{capability[0]}.{capability[1]}")
    os.environ.setdefault("MAX_JOBS", str(os.cpu_count()))
    for name, function in (("VMamba", build_vmamba), ("mamba", build_mamba)):
        if not (SOURCES / name).is_dir():
            print(f"{name}: no sources in {SOURCES / name}", flush=True)
            continue
        start = time.perf_counter()
        try:
            function()
            print(f"{name}: built in {time.perf_counter() - start:.0f} s", flush=True)
        except Exception as error:  # the other one is still worth having
            print(f"{name}: failed after {time.perf_counter() - start:.0f} s: {error}", flush=True)


if __name__ == "__main__":
    build()
