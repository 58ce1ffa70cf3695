"""Builds the C++/CUDA extension `vmddpm_kernels._native` with CMake and Ninja; everything else is in pyproject.toml.

Nothing here needs torch: the extension takes plain pointers, so one binary serves every torch version.
Environment: VMDDPM_CUDA=0 leaves CUDA out, VMDDPM_CUDA=1 makes a missing nvcc an error,
VMDDPM_CUDA_ARCHS="80;90" names the GPU architectures.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCE = Path(__file__).resolve().parent / "csrc"


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        # pip's isolated build environment puts cmake and ninja beside its python; so does a venv.
        env = dict(os.environ, PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
        options = [
            # A build folder outlives the environment that pip made for it, which CMake would look for ninja in.
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja', path=env['PATH']) or 'ninja'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}",
            f"-DVMDDPM_CUDA={os.environ.get('VMDDPM_CUDA', 'AUTO')}",
            f"-DVMDDPM_CUDA_ARCHS={os.environ.get('VMDDPM_CUDA_ARCHS', '')}",
        ]
        configure = ["cmake", "-S", str(SOURCE), "-B", str(build), "-G", "Ninja", *options]
        subprocess.run(configure, check=True, env=env)
        subprocess.run(["cmake", "--build", str(build)], check=True, env=env)


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
