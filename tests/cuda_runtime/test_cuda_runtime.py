"""The launches of csrc/common/gpu/runtime.h on a simulated CUDA runtime: one-time attributes, stream capture, and the
attribution of errors. Each case runs in its own process, because a process prepares a kernel only once."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
CASES = re.findall(r'^ +\{"(\w+)", \1\},$', (HERE / "cases.cpp").read_text(), flags=re.MULTILINE)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path_factory.mktemp("cuda_runtime") / "cases"
    options = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
    folders = [f"-I{HERE}", f"-I{CSRC / 'common' / 'gpu'}"]
    subprocess.run([compiler, *options, *folders, str(HERE / "cases.cpp"), "-o", str(program)], check=True)
    return program


@pytest.mark.parametrize("name", CASES)
def test_case(cases, name):
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_LAUNCH_BLOCKING"}
    done = subprocess.run([cases, name], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout or done.stderr


def test_no_case_is_left_out(cases):
    assert subprocess.run([cases], capture_output=True, text=True, check=True).stdout.split() == CASES
    assert len(CASES) == len(re.findall(r"^void \w+\(\) \{$", (HERE / "cases.cpp").read_text(), flags=re.MULTILINE))
