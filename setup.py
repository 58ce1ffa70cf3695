"""Builds the C++/CUDA extension `vmddpm_kernels._native` with CMake and Ninja; everything else is in pyproject.toml.

Nothing here needs torch: the extension takes plain pointers, so one binary serves every torch version.
Environment: VMDDPM_CUDA=0 leaves CUDA out, VMDDPM_CUDA=1 makes a missing nvcc an error, VMDDPM_CUDA=AUTO builds CUDA
where nvcc is. Unset, it is 0 where the torch that is installed beside this build has no CUDA, else AUTO.
VMDDPM_CUDA_ARCHS="80;90" names the GPU architectures. VMDDPM_GLIBC is for wheels (wheels/build_wheels.py).
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import time
from importlib.util import find_spec
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCE = Path(__file__).resolve().parent / "csrc"
CPU = "C++ for the CPU, about two minutes on two cores"
WHAT = {
    "0": f"{CPU}, without CUDA",
    "1": f"{CPU}, and CUDA, some minutes more",
    "AUTO": f"{CPU}, and CUDA, some minutes more, where nvcc is",
}


def torch_without_cuda() -> bool:
    """Whether a torch is installed here that cannot use CUDA kernels; pip's isolated builds see none. It is not
    imported, which takes seconds."""
    found = find_spec("torch")
    version = Path(found.origin).with_name("version.py") if found and found.origin else None
    return bool(version and version.exists() and runpy.run_path(str(version)).get("cuda") is None)


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        # Always the same place: an editable install has a temporary one, in which nothing is up to date.
        glibc = os.environ.get("VMDDPM_GLIBC", "")
        kind = "wheel" if glibc else "native"
        build = SOURCE.parent / "build" / f"{kind}-{sys.implementation.cache_tag}-{self.plat_name}"
        build.mkdir(parents=True, exist_ok=True)
        # pip's isolated build environment puts cmake and ninja beside its python; so does a venv.
        env = dict(os.environ, PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
        cuda = os.environ.get("VMDDPM_CUDA") or ("0" if torch_without_cuda() else "AUTO")
        options = [
            # A build folder outlives the environment that pip made for it, which CMake would look for ninja in.
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja', path=env['PATH']) or 'ninja'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DPython_INCLUDE_DIR={sysconfig.get_path('include')}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}",
            f"-DVMDDPM_CUDA={cuda}",
            f"-DVMDDPM_CUDA_ARCHS={os.environ.get('VMDDPM_CUDA_ARCHS', '')}",
            f"-DVMDDPM_GLIBC={glibc}",
        ]
        configure = ["cmake", "-S", str(SOURCE), "-B", str(build), "-G", "Ninja", *options]
        print(f"compiling the kernels: {WHAT.get(cuda, CPU)}; what is up to date is left alone", flush=True)
        begun = time.monotonic()
        subprocess.run(configure, check=True, env=env)
        subprocess.run(["cmake", "--build", str(build)], check=True, env=env)
        print(f"the kernels took {time.monotonic() - begun:.0f} s", flush=True)


def long_description() -> str:
    """README.md for the package's page, which has none of the files that its links and pictures lead to: the words of a
    link stay, a picture goes."""
    text = (SOURCE.parent / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"^!\[[^]]*\]\((?!https?:)[^)]*\)\n", "", text, flags=re.MULTILINE)
    return re.sub(r"(?<!!)\[([^]]*)\]\((?!https?:|#)[^)]*\)", r"\1", text)


setup(
    long_description=long_description(),
    long_description_content_type="text/markdown",
    ext_modules=[Extension("vmddpm_kernels._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
