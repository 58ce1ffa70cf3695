"""`benchmarks.compare` on this machine: two runs of the same code are the same, and a kernel made to take 1.5 times as
long is found, alone. What other programs disturb too much is left out, and measured again if nothing remains."""

import time
from unittest import mock

import pytest

from benchmarks import test_cross_scan
from benchmarks.compare import changes
from benchmarks.contenders import attention, fused
from benchmarks.contest import Contest
from benchmarks.gpu.machine import describe
from benchmarks.problem import FORWARD, Case, Problem
from benchmarks.results import Results
from vmddpm_kernels.backends import cpu

SHAPES = (Case(2, 32, 32, 192, 16), Case(2, 32, 32, 192, 1), Case(1, 64, 64, 128, 4))
SCANS = {"ours": fused, "attention": attention}
COPIES = {name: test_cross_scan.SCANS[name] for name in ("ours", "copy")}
ATTEMPTS = 3
SUITES = {"scan": (SCANS, Problem.draw), "copies": (COPIES, test_cross_scan.draw)}


def measured(device, peers):
    results = Results(describe(device), "quick")
    for suite, (makers, draw) in SUITES.items():
        for case in SHAPES:
            contest = Contest(makers, list(makers), case, FORWARD, device, peers, draw=draw)
            contest.record(suite, results, *contest.measure(0.5, 20), work=lambda _: None)
    return results.data


def half_as_slow_again(kernel):
    def planted(*args, **options):
        begun = time.perf_counter()
        result = kernel(*args, **options)
        end = begun + 1.5 * (time.perf_counter() - begun)
        while time.perf_counter() < end:
            pass
        return result

    return planted


def judged(before, after):
    """suite -> whether its times became slower, of those that could be judged."""
    found = {suite: [c for c in changes(before, after) if c.key[0] == suite and not c.too_noisy] for suite in SUITES}
    return {suite: {c.slower for c in of_suite} for suite, of_suite in found.items()}


def test_compare(device, peers, measuring):
    if not measuring:
        pytest.skip("a matter of time: with --benchmark")
    if device != "cpu":
        pytest.skip("a kernel is slowed down by its caller, which a GPU does not wait for")
    kernel = half_as_slow_again(cpu.selective_scan_forward)
    for _ in range(ATTEMPTS):
        before, after = measured(device, peers), measured(device, peers)
        with mock.patch.object(cpu, "selective_scan_forward", kernel):
            planted = measured(device, peers)
        same, slower = judged(before, after), judged(before, planted)
        assert all(found <= {False} for found in same.values())
        assert slower["scan"] <= {True}
        assert slower["copies"] <= {False}
        if slower["scan"]:
            return
    pytest.skip(f"other programs left nothing to judge in {ATTEMPTS} attempts")
