"""The wait policy that OpenMP's runtime gets, as it reports it (OMP_DISPLAY_ENV)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vmddpm.cli.waiting import sleep_while_waiting


@pytest.mark.parametrize(
    ("chosen", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_waiting_threads_sleep_unless_the_user_chose(chosen, spins):
    own = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")}
    runtimes = list(Path(torch.__file__).parent.glob("lib/libgomp*"))
    if not runtimes:
        pytest.skip("torch brings another OpenMP runtime than GNU's here")
    # Loads only the runtime, because torch takes seconds.
    program = "import ctypes, sys; from vmddpm.cli.waiting import *; sleep_while_waiting(); ctypes.CDLL(sys.argv[1])"
    output = subprocess.run([sys.executable, "-c", program, runtimes[0]], capture_output=True, text=True, check=True,
                           env={**own, **chosen, "OMP_DISPLAY_ENV": "verbose"}).stderr  # fmt: skip
    found = re.findall(r"GOMP_SPINCOUNT = '(\w+)'", output)
    assert found[0] == spins if spins else int(found[0]) > 1_000_000


def test_a_runtime_that_is_loaded_is_left_alone(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    assert "torch" in sys.modules
    sleep_while_waiting()
    assert "GOMP_SPINCOUNT" not in os.environ
