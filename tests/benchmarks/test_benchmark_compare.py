"""Slower code is told from a noisy machine: on made-up times whose noise and drift are known."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.compare import changes

ROOT = Path(__file__).parents[2]
OURS = [f"ours {i}" for i in range(40)]
CONTROLS = ["attention", "copy", "mamba.py", "VMamba", "mamba_ssm", "matmul", "conv"]


def run(seed, slower=(), by=1.0, drift=1.0, noise=0.04, jitter=0.03):
    """A result file: every time has noise within the run, and moved a little as a whole since the last one."""
    g = random.Random(seed)
    times = []
    for name in OURS + CONTROLS:
        true = 1e-3 * (1 + len(name)) * drift * (by if name in slower else 1.0) * math.exp(g.gauss(0, jitter))
        rounds = sorted(true * math.exp(g.gauss(0, noise)) for _ in range(21))
        key = {"suite": "s", "case": "c", "direction": "forward", "contender": name, "ours": name.startswith("ours")}
        times.append(key | {"median": rounds[10], "p20": rounds[4], "p80": rounds[16]})
    machine = {"device": "some-cpu", "torch": "2.13", "threads": 2}
    return {"machine": machine, "times": times}


def slower(a, b):
    return {c.key[3] for c in changes(a, b) if c.slower}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("drift", [0.7, 1.0, 1.3])
def test_two_runs_of_the_same_code(seed, drift):
    assert slower(run(seed), run(1000 + seed, drift=drift)) == set()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("drift", [0.7, 1.0, 1.3])
def test_one_kernel_half_as_slow_again(seed, drift):
    assert slower(run(seed), run(1000 + seed, ["ours 7"], 1.5, drift)) == {"ours 7"}


def test_faster_code_is_no_regression():
    found = {c.key[3]: c for c in changes(run(0, ["ours 7"], 1.5), run(1))}
    assert found["ours 7"].faster
    assert not any(c.slower for c in found.values())


def test_a_rival_that_became_slower_is_not_ours():
    assert slower(run(0), run(1, ["attention"], 1.5)) == set()


def test_a_noisy_time_needs_a_greater_change():
    a, b = run(0, noise=0.4), run(1, ["ours 7"], 1.5, noise=0.4)
    assert slower(a, b) == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"machine": {"device": "other", "torch": "2.13", "threads": 2}}, "device is 'some-cpu' in A and 'other' in B"),
        ({"machine": {"device": "some-cpu", "torch": "2.4", "threads": 2}}, "torch is '2.13' in A"),
        ({"times": []}, "no time in common"),
    ],
)
def test_runs_that_cannot_be_compared(change, message):
    with pytest.raises(ValueError, match=message):
        list(changes(run(0), run(1) | change))


@pytest.mark.parametrize(
    ("planted", "status", "said"), [((), 0, "0 slower"), (("ours 7",), 1, "SLOWER s c forward ours 7")]
)
def test_command(tmp_path, planted, status, said):
    files = tmp_path / "a.json", tmp_path / "b.json"
    for path, data in zip(files, (run(0), run(1, planted, 1.5))):
        path.write_text(json.dumps(data))
    command = [sys.executable, "-m", "benchmarks.compare", *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert said in done.stdout
