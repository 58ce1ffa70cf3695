"""Baselines compute the same results as our operators, or are excluded."""

from functools import partial

import pytest
import torch

from benchmarks.baselines import Baselines
from benchmarks.harness import Harness
from benchmarks.implementations import IMAGES, SEQUENCES, _sequence
from benchmarks.problem import BOTH, FORWARD, Case

plain_scans = pytest.importorskip("benchmarks.plain_scans", exc_type=ImportError)


@pytest.mark.parametrize("states", [plain_scans.step_loop, plain_scans.by_associative_scan, plain_scans.by_scan])
@pytest.mark.parametrize("case", [Case(2, 0, 1, 64, 16), Case(2, 0, 5, 64, 1), Case(2, 0, 4, 64, 3, torch.bfloat16)])
def test_scans_in_plain_pytorch(case, states):
    run = partial(plain_scans.selective_scan, states)
    makers = {"ours": SEQUENCES["ours"], "plain": lambda problem, *_: _sequence(problem, run)}
    Harness(makers, list(makers), case, BOTH, "cpu", Baselines()).check("plain")


def test_pipeline_around_the_scan():
    name = "plain PyTorch, our scan"
    Harness(IMAGES, [name], Case(2, 3, 5, 64, 4), BOTH, "cpu", Baselines()).check(name)


def test_baselines_that_fail_take_no_part():
    def raising(*tensors):
        raise RuntimeError("does not compile\nat all")

    makers = {
        "ours": SEQUENCES["ours"],
        "wrong": lambda problem, *_: _sequence(problem, lambda u, *_: u.clone()),
        "raising": lambda problem, *_: _sequence(problem, raising),
    }
    harness = Harness(makers, list(makers), Case(2, 0, 4, 64, 1), FORWARD, "cpu", Baselines())
    harness.drop_failing()
    assert list(harness.implementations) == ["ours"]
    assert harness.missing["wrong"].startswith("AssertionError in scan 4 B2 D64 N1 float32: wrong is ")
    assert harness.missing["raising"] == "RuntimeError in scan 4 B2 D64 N1 float32: does not compile"
