"""What OpenMP's runtime is told about threads that wait, by its own account (OMP_DISPLAY_ENV)."""

import os
import re
import subprocess
import sys

import pytest

from vmddpm.cli.waiting import sleep_while_waiting


@pytest.mark.parametrize(
    ("chosen", "spins"), [({}, "0"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_waiting_threads_sleep_unless_the_user_chose(chosen, spins):
    own = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")}
    program = "from vmddpm.cli.waiting import sleep_while_waiting as f; f(); import torch"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                           env={**own, **chosen, "OMP_DISPLAY_ENV": "verbose"}).stderr  # fmt: skip
    found = re.findall(r"GOMP_SPINCOUNT = '(\w+)'", shown)
    if not found:
        pytest.skip("torch uses another OpenMP runtime than GNU's here")
    assert found[0] == spins if spins else int(found[0]) > 1_000_000


def test_a_runtime_that_is_loaded_is_left_alone(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    assert "torch" in sys.modules
    sleep_while_waiting()
    assert "OMP_WAIT_POLICY" not in os.environ
