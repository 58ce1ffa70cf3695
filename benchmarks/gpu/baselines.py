"""Builds the baselines from their sources in benchmarks/third_party/, which git ignores:

    git clone https://github.com/MzeroMiko/VMamba /somewhere/VMamba
    git clone https://github.com/state-spaces/mamba /somewhere/mamba
    python benchmarks/gpu/baselines.py --collect /somewhere/VMamba /somewhere/mamba    # copies the needed files, 0.3 MB
    python benchmarks/gpu/baselines.py [VMamba | mamba]                                # compiles them

`--collect` copies the needed files and the revisions of the clones to benchmarks/third_party/ and lists missing files;
a machine with a GPU needs only these. The last command compiles them into build/third_party/ for the GPU of this
machine (or sm_90) and installs nothing. It compiles only what is measured: float32 and bfloat16, real states.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.baselines import BUILDS, MAMBA_EXTENSION, SOURCES, VMAMBA_EXTENSION
from benchmarks.gpu.machine import cuda_tool
from vmddpm.files import atomic_folder

HERE = Path(__file__).resolve().parent
# The flags of both projects' setup.py.
NVCC_FLAGS = [
    "-O3",
    "--use_fast_math",
    "--expt-relaxed-constexpr",
    "--expt-extended-lambda",
    *(f"-U__CUDA_NO_{name}__" for name in ("HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_OPERATORS")),
    *(f"-U__CUDA_NO_{name}__" for name in ("BFLOAT16_CONVERSIONS", "BFLOAT162_OPERATORS", "BFLOAT162_CONVERSIONS")),
]
# The needed files; each pattern must match at least one.
FILES = {
    "VMamba": [
        "LICENSE",
        "kernels/selective_scan/csrc/selective_scan/*.h",
        "kernels/selective_scan/csrc/selective_scan/*.cuh",
        *(f"kernels/selective_scan/csrc/selective_scan/cusoflex/*.{kind}" for kind in ("cpp", "cu", "cuh", "h")),
        "classification/models/csm_triton.py",
        "classification/models/csms6s.py",
    ],
    "mamba": [
        "LICENSE",
        *(f"csrc/selective_scan/*.{kind}" for kind in ("cpp", "cu", "cuh", "h")),
        "mamba_ssm/ops/__init__.py",
        "mamba_ssm/ops/selective_scan_interface.py",
        "mamba_ssm/ops/triton/__init__.py",
        "mamba_ssm/ops/triton/layer_norm.py",
        "mamba_ssm/utils/__init__.py",
        "mamba_ssm/utils/determinism.py",
        "mamba_ssm/utils/torch.py",
    ],
}
MARKERS = {"VMamba": "kernels/selective_scan", "mamba": "mamba_ssm"}  # a folder that identifies a clone
# Unused here: complex states and half precision, which take most of the time to compile, and gradients in bfloat16 of
# VMamba's results, which are float32.
LEFT_OUT = ("complex_t", "at::Half", "at::BFloat16, float, at::BFloat16")
STUB = """
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>
#include <c10/util/complex.h>
#include <cuda_runtime.h>
#include "selective_scan{oflex}.h"
using complex_t = c10::complex<float>;
template <{parameters}>
void selective_scan_fwd_cuda(SSMParamsBase&, cudaStream_t) {{ TORCH_CHECK(false, "not built for this type"); }}
template <{parameters}>
void selective_scan_bwd_cuda(SSMParamsBwd&, cudaStream_t) {{ TORCH_CHECK(false, "not built for this type"); }}
"""


def collect(folders: list[Path], into: Path = SOURCES) -> list[str]:
    """Copy FILES from clones, replacing earlier copies. Returns a line for each missing file. Raises ValueError for a
    folder that is a clone of neither project."""
    clones = {}
    for folder in folders:
        name = next((name for name, marker in MARKERS.items() if (folder / marker).is_dir()), None)
        if name is None:
            raise ValueError(f"{folder}: no clone of VMamba or mamba: it has no {' or '.join(MARKERS.values())}")
        clones[name] = folder
    missing = []
    for name, patterns in FILES.items():
        if name not in clones:
            if not (into / name).is_dir():
                missing.append(f"{name}: no clone of it was given")
            continue
        found = {pattern: sorted(clones[name].glob(pattern)) for pattern in patterns}
        missing += [f"{name}: no {pattern} in {clones[name]}" for pattern, paths in found.items() if not paths]
        replace(into / name, clones[name], [path for paths in found.values() for path in paths])
    return missing


def replace(folder: Path, clone: Path, paths: list[Path]) -> None:
    with atomic_folder(folder) as new:
        for path in paths:
            target = new / path.relative_to(clone)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        (new / "REVISION").write_text(f"{revision(clone)}\n")


def revision(clone: Path) -> str:
    if (clone / ".git").exists():
        command = ["git", "-C", str(clone), "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout.strip()
    return (clone / "REVISION").read_text().strip() if (clone / "REVISION").exists() else "unknown"


def cuda_home() -> Path:
    """The folder of the CUDA toolkit, as nvcc reports it: the nvcc on PATH may be a script that calls another one."""
    output = subprocess.run([cuda_tool("nvcc"), "--dryrun", "nothing.cu"], capture_output=True, text=True).stderr
    top = next((line.split("TOP=")[1] for line in output.splitlines() if "TOP=" in line), "/usr/local/cuda")
    return Path(top.strip()).resolve()


def headers_of_wheels() -> list[Path]:
    """CUDA headers from torch's wheels, for a toolkit without the headers of its libraries."""
    import torch

    return sorted((Path(torch.__file__).parents[1] / "nvidia").glob("cu*/include"))


def write_if_changed(path: Path, text: str) -> Path:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return path


def split(sources: list[Path], folder: Path) -> tuple[list[Path], list[str]]:
    """Write a file for each explicit instantiation, so that they compile in parallel; those with types LEFT_OUT are
    returned as lines instead."""
    files, left_out = [], []
    for source in sources:
        lines = source.read_text().splitlines()
        includes = [line for line in lines if line.startswith("#include")]
        for i, line in enumerate(line for line in lines if line.startswith("template void")):
            if any(types in line for types in LEFT_OUT):
                left_out.append(line)
            else:
                files.append(write_if_changed(folder / f"{source.stem}_{i}.cu", "\n".join([*includes, line, ""])))
    return files, left_out


def compile_extension(name: str, sources: list[Path], includes: list[Path]) -> None:
    from torch.utils import cpp_extension

    folder = BUILDS / name
    last = [flag for path in headers_of_wheels() for flag in ("-idirafter", str(path))]
    (folder / "lock").unlink(missing_ok=True)  # left by a killed build; the next would wait for it
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
    stub = STUB.format(oflex="_oflex", parameters="int rows, typename input_t, typename weight_t, typename output_t")
    build_extension(VMAMBA_EXTENSION, oflex, oflex / "selective_scan_oflex.cpp", stub, [source, oflex])


def build_mamba() -> None:
    source = SOURCES / "mamba" / "csrc" / "selective_scan"
    stub = STUB.format(oflex="", parameters="typename input_t, typename weight_t")
    build_extension(MAMBA_EXTENSION, source, source / "selective_scan.cpp", stub, [source])


def build_extension(name: str, kernels: Path, bindings: Path, stub: str, includes: list[Path]) -> None:
    folder = BUILDS / name
    folder.mkdir(parents=True, exist_ok=True)
    files, left_out = split(sorted(kernels.glob("*.cu")), folder)
    stubs = write_if_changed(folder / "left_out.cu", "\n".join([stub, *left_out, ""]))
    compile_extension(name, [bindings, *files, stubs], includes)


BUILDERS: dict[str, Callable[[], None]] = {"VMamba": build_vmamba, "mamba": build_mamba}


def build(names: list[str]) -> bool:
    """Compile the sources in benchmarks/third_party/, print the outcome of each, and return whether none failed."""
    import torch

    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
    os.environ["CUDA_HOME"] = str(cuda_home())
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", f"{capability[0]}.{capability[1]}")
    os.environ.setdefault("MAX_JOBS", str(os.cpu_count()))
    succeeded = True
    for name in names:
        if not (SOURCES / name).is_dir():
            print(f"{name}: no sources in {SOURCES / name}", flush=True)
            continue
        start = time.perf_counter()
        try:
            BUILDERS[name]()
            print(f"{name}: built in {time.perf_counter() - start:.0f} s", flush=True)
        except Exception as error:  # the other one may still compile
            succeeded = False
            print(f"{name}: failed after {time.perf_counter() - start:.0f} s: {error}", flush=True)
    return succeeded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{' or '.join(BUILDERS)}; by default both")
    parser.add_argument("--collect", nargs="+", type=Path, metavar="DIR", help="clones to copy the files from")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(BUILDERS)):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(BUILDERS)}")
    if not options.collect:
        sys.exit(not build(options.names or list(BUILDERS)))
    try:
        missing = collect(options.collect)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for name in FILES:
        files = [path for path in (SOURCES / name).rglob("*") if path.is_file()]
        if files:
            size = sum(path.stat().st_size for path in files) / 1e6
            print(f"{name}: {len(files)} files, {size:.2f} MB, revision {revision(SOURCES / name)}")
    for line in missing:
        print(f"missing: {line}")
    sys.exit(bool(missing))


if __name__ == "__main__":
    main()
