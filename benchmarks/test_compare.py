"""`benchmarks.compare` on this machine: it finds no difference between two runs of the same code, and of a run with one
kernel that takes 1.5 times as long it finds only that kernel. The clock is the CPU time of this test's one thread,
which other programs do not affect; the CPU time of other threads is known only to a few milliseconds."""

import time
from contextlib import contextmanager
from unittest import mock

import pytest
import torch

from benchmarks import test_cross_scan, timing
from benchmarks.compare import changes
from benchmarks.gpu.machine import describe
from benchmarks.harness import Harness
from benchmarks.implementations import attention, fused
from benchmarks.problem import FORWARD, Case, Problem
from benchmarks.results import Results
from vmddpm_kernels.backends.cpu import CpuBackend

SHAPES = tuple(Case(2, size, size, 192, states) for size in (32, 24) for states in (1, 4, 16))
SCANS = {"ours": fused, "attention": attention}
COPIES = {name: test_cross_scan.SCANS[name] for name in ("ours", "reference")}
# Copies of a few hundred kilobytes: the placement of pages makes larger ones up to half as long again.
SMALL = (Case(2, 16, 16, 192, 16), Case(2, 16, 16, 96, 1), Case(1, 20, 20, 128, 4))
SUITES = {"scan": (SCANS, Problem.draw, SHAPES), "copies": (COPIES, test_cross_scan.draw, SMALL)}


def measured(device, baselines):
    results = Results(describe(device), "quick")
    for suite, (makers, draw, shapes) in SUITES.items():
        for case in shapes:
            harness = Harness(makers, list(makers), case, FORWARD, device, baselines, draw=draw)
            harness.record(suite, results, *harness.measure(0.5, 20), work=lambda _: None)
    return results.data


def half_as_slow_again(kernel):
    def planted(*args, **options):
        begun = time.thread_time()
        result = kernel(*args, **options)
        end = begun + 1.5 * (time.thread_time() - begun)
        while time.thread_time() < end:
            pass
        return result

    return planted


@contextmanager
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def slower(a, b):
    return {change.key[0] for change in changes(a, b) if change.slower}


def test_compare(device, baselines, measuring, monkeypatch):
    if not measuring:
        pytest.skip("a matter of time: with --benchmark")
    if device != "cpu":
        pytest.skip("a kernel is slowed down by its caller, which a GPU does not wait for")
    monkeypatch.setattr(timing, "clock", time.thread_time)
    with one_thread():
        compare(device, baselines)


def compare(device, baselines):
    before, after = measured(device, baselines), measured(device, baselines)
    assert slower(before, after) == set()
    with mock.patch.object(CpuBackend, "scan", half_as_slow_again(CpuBackend.scan)):
        assert slower(before, measured(device, baselines)) == {"scan"}
