"""Kills and power cuts at every system call that changes a file: nothing confirmed is lost, no state is mixed."""

import pickle
import shutil
import signal
import warnings

import pytest
import torch
from disk import Disk, write_tree
from tracer import can_trace, traced
from workloads import WORKLOADS

pytestmark = pytest.mark.skipif(not can_trace(), reason="processes cannot be traced here")


def name(workload):
    return workload.name.replace(" ", "-")


MINUTES = ["a continued run"]
SOME = [pytest.param(w, marks=pytest.mark.slow if w.name in MINUTES else (), id=name(w)) for w in WORKLOADS]


def check_workload(workload, folder, confirmed, event):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            workload.check(folder, confirmed)
    except BaseException as error:
        found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        raise AssertionError(f"{workload.name}: {event}, {confirmed} was confirmed; there is {found}") from error


@pytest.mark.parametrize("workload", SOME)
def test_nothing_is_lost_or_mixed(workload, tmp_path):
    """Stop one run at each call; write the states that a kill or a power cut would leave to folders, and check them."""
    torch.set_num_threads(1)  # a fork does not inherit the thread pool
    folder = tmp_path / "folder"
    folder.mkdir()
    workload.begin(folder)
    disk, states, calls = Disk(folder), {}, []

    def stop(call, confirmed):
        calls.append(call.name)
        where = f"before call {len(calls)}, {call.name} of {', '.join(path.name for path in call.paths)}"
        for event, tree in disk.before(call):
            states.setdefault(pickle.dumps((sorted(tree.items()), confirmed)), (f"{event}, {where}", tree, confirmed))

    status, confirmed = traced(lambda confirm: workload.run(folder, confirm), folder, stop)
    assert status == 0
    check_workload(workload, folder, confirmed, "at the end")
    for number, (event, tree, confirmed) in enumerate(states.values()):
        write_tree(tree, tmp_path / str(number))
        check_workload(workload, tmp_path / str(number), confirmed, event)
        shutil.rmtree(tmp_path / str(number))
    print(f"| {workload.name} | {len(calls)} | {len(states)} |")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("workload", [workload for workload in WORKLOADS if workload.name not in MINUTES], ids=name)
def test_real_kills(workload, number, tmp_path):
    """One run per call, each killed one call later."""
    torch.set_num_threads(1)
    at, status = 0, -number
    while status == -number:
        folder, count = tmp_path / str(at), 0
        folder.mkdir()
        workload.begin(folder)

        def stop(call, confirmed, at=at):
            nonlocal count
            count += 1
            return number if count == at + 1 else None

        status, confirmed = traced(lambda confirm, folder=folder: workload.run(folder, confirm), folder, stop)
        assert status in (0, -number)
        check_workload(workload, folder, confirmed, f"{number.name} before call {at + 1}")
        shutil.rmtree(folder)
        at += 1
    print(f"| {workload.name} | {number.name} | {at - 1} |")
