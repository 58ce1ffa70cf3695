"""The demo's threads while other programs run: with simulated busy seconds, and with a real busy process."""

import os
import subprocess
import sys
import time

import pytest
import torch

from vmddpm.demo import threads as module
from vmddpm.demo.threads import SECONDS, IdleThreads


class Machine:
    """A simulated machine: other programs use `others` processors, this process one per thread."""

    def __init__(self, monkeypatch, processors, others=0.0):
        self.now = self.busy = self.own = 0.0
        self.others = others
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(module, "_processors", lambda: set(range(processors)))
        self.threads = processors
        monkeypatch.setattr(torch, "get_num_threads", lambda: self.threads)
        monkeypatch.setattr(torch, "set_num_threads", lambda count: setattr(self, "threads", count))

    def wait(self, seconds):
        self.now += seconds
        self.own += self.threads * seconds
        self.busy += (self.threads + self.others) * seconds

    def idle_threads(self):
        return IdleThreads(lambda: self.now, lambda: self.busy, lambda: self.own)


@pytest.mark.parametrize(
    ("processors", "others", "threads"),
    [(2, 0.0, 2), (2, 0.3, 2), (2, 1.0, 1), (2, 1.9, 1), (16, 8.2, 8), (16, 40.0, 1), (1, 1.0, 1)],
)
def test_threads_are_the_processors_left_free(monkeypatch, processors, others, threads):
    machine = Machine(monkeypatch, processors, others)
    with machine.idle_threads() as found:
        machine.wait(SECONDS)
        found.follow()
        assert machine.threads == threads
        machine.wait(SECONDS)  # now with those threads
        found.follow()
        assert machine.threads == threads
        machine.others = 0.0
        machine.wait(SECONDS / 2)
        found.follow()  # too soon
        assert machine.threads == threads
        machine.wait(SECONDS)
        found.follow()
        machine.wait(SECONDS)
        found.follow()
        assert machine.threads == processors
        machine.others = processors
        machine.wait(SECONDS)
        found.follow()
    assert machine.threads == processors


def test_the_users_number_is_kept(monkeypatch):
    machine = Machine(monkeypatch, 4, others=4.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with machine.idle_threads() as found:
        machine.wait(SECONDS)
        found.follow()
        assert machine.threads == 4


def test_an_unknown_system_changes_nothing(monkeypatch):
    machine = Machine(monkeypatch, 4, others=4.0)
    with IdleThreads(lambda: machine.now, lambda: None, lambda: machine.own) as found:
        machine.wait(SECONDS)
        found.follow()
        assert machine.threads == 4


def test_a_system_that_stops_reporting_changes_nothing(monkeypatch):
    machine = Machine(monkeypatch, 4, others=4.0)
    reports = iter([0.0, None, None])
    with IdleThreads(lambda: machine.now, lambda: next(reports), lambda: machine.own) as found:
        for _ in range(3):
            machine.wait(SECONDS)
            found.follow()
            assert machine.threads == 4


@pytest.mark.parametrize(
    ("times", "ticks"), [("1 20 300 4000", 321), ("1 20 300 4000 5000", 321), ("1 2 3 4 5 60 700 8000 9 9", 8766)]
)
def test_kinds_of_time_that_are_not_reported_count_as_none(monkeypatch, times, ticks):
    monkeypatch.setattr(module, "_processors", lambda: {1})
    monkeypatch.setattr(module.Path, "read_text", lambda *_, **__: f"cpu 9 9 9 9\ncpu0 9 9 9 9\ncpu1 {times}\n")
    assert module._busy_seconds() == ticks / os.sysconf("SC_CLK_TCK")


def test_an_unreadable_report_is_unknown(monkeypatch):
    monkeypatch.setattr(module, "_processors", lambda: {1})
    monkeypatch.setattr(module.Path, "read_text", lambda *_, **__: "cpu1 busy\n")
    assert module._busy_seconds() is None


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="busy seconds are Linux's")
def test_a_busy_process_is_seen():
    one = next(iter(os.sched_getaffinity(0)))
    program = f"import os\nos.sched_setaffinity(0, {{{one}}})\nprint(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as other:
        try:
            other.stdout.readline()
            before, begun = module._busy_seconds(), time.monotonic()
            time.sleep(1.0)
            seen, passed = module._busy_seconds() - before, time.monotonic() - begun
        finally:
            other.kill()
    assert 0.9 * passed < seen < (len(os.sched_getaffinity(0)) + 0.1) * passed
