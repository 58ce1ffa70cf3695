"""The public types: mypy's verdict on correct and wrong uses of the package, with torch's own types."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RIGHT = """
import torch
from torch import Tensor
from vmddpm_kernels import BackendStatus, backends, cross_scan, cross_selective_scan, routes, selective_scan
from vmddpm_kernels.compat.mamba_ssm import selective_scan_fn

x = torch.zeros(1, 4, 2)
y: Tensor = cross_selective_scan(x, x, x, x, x, table=routes(2, 2))
z, state = cross_selective_scan(x, x, x, x, x, table=routes(2, 2), return_last_state=True)
u: Tensor = selective_scan(x, x, x, x, x)
s: Tensor = cross_selective_scan(x, x, x, x, x, table=routes(2, 2), dt_proj=x)
t: Tensor = selective_scan(x, x, x, x, x, dt_proj=x)
v, last = selective_scan(x, x, x, x, x, return_last_state=True)
w: Tensor = selective_scan_fn(x, x, x, x, x, None, None, None, True)
statuses: dict[str, BackendStatus] = backends()
shapes: tuple[torch.Size, ...] = (z.shape, state.shape, v.shape, last.shape, routes(2, 2).shape, cross_scan(x).shape)
"""
WRONG = {
    "x.no_such_method()": "attr-defined",
    "torch.not_a_function(x)": "attr-defined",
    "size: str = x.shape[0]": "assignment",
    "pair: tuple[Tensor, Tensor] = cross_selective_scan(x, x, x, x, x, table=routes(2, 2))": "assignment",
}


def mypy(tmp_path, code):
    (tmp_path / "probe.py").write_text(code)
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache"), "--strict"]
    command = [sys.executable, "-m", "mypy", *options, str(tmp_path / "probe.py")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout


@pytest.fixture(autouse=True)
def _installed():
    pytest.importorskip("mypy")


def test_right_uses_have_no_error(tmp_path):
    assert "Success" in mypy(tmp_path, RIGHT)


def test_each_wrong_use_is_an_error(tmp_path):
    said = mypy(tmp_path, RIGHT + "\n".join(WRONG) + "\n").splitlines()
    errors = [line for line in said if ": error:" in line]
    first = RIGHT.count("\n") + 1
    assert [line.partition(": error:")[0].rpartition(":")[2] for line in errors] == [str(first + i) for i in range(4)]
    assert [line.rpartition("[")[2].rstrip("]") for line in errors] == list(WRONG.values())
