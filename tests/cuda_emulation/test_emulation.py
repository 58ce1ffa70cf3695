"""The CUDA emulation on a CPU: it computes what a GPU would, and catches faults that a GPU would not report."""

import json
import re
from functools import cache
from pathlib import Path

import emulation_build as build
import pytest

HERE = Path(__file__).resolve().parent
FORWARD, REVERSE, RANDOM = "forward", "reverse", "random:7"
WRONG, REFUSED = 1, 2

# Each fault with the check that catches it.
WRONG_VALUES = [
    "missing_barrier",
    "missing_second_barrier",
    "exchange_for_barrier",
    "missing_wait",
    "wait_for_older_only",
    "wait_without_commit",
    "missing_barrier_after_wait",
    "unwritten_shared",
]
WRONG_IN_OTHER_ORDERS = ["missing_barrier_behind"]
RACES_OF_THREADS = [
    "missing_barrier",
    "missing_barrier_behind",
    "missing_second_barrier",
    "exchange_for_barrier",
    "missing_barrier_after_wait",
    "two_of_many_threads",
]
RACES_OF_BLOCKS = ["two_blocks_write", "far_blocks_write", "block_reads_another"]
OVERRUNS = ["shared_overrun", "global_overrun", "copy_beyond_source"]
REFUSALS = {
    "barrier_of_half_a_warp": r"deadlock: .*thread 0 waits at the barrier at .*:\d+, but thread 16 has ended",
    "barrier_of_one_warp": r"deadlock: .*thread 0 waits at the barrier .*, but thread 32 has ended",
    "barrier_on_both_sides": r"deadlock: threads wait at different barriers",
    "exchange_of_half_a_warp": r"deadlock: .*thread 0 is at the exchange of 1 values .*, but thread 1 has ended",
    "exchange_with_two_masks": r"lanes of one warp are at different exchanges: .*mask 1 .*mask 2",
    "exchange_against_barrier": r"deadlock: .*exchange .*, but thread 1 waits at the barrier",
    "copy_never_waited_for": r"ends without having waited for the copy",
    "copy_misaligned": r"both addresses must be multiples of 8",
    "vector_misaligned": r"an access of 16 bytes at .*, which is no multiple of it",
    "copy_outside": r"a copy to bytes 256 to 259 of the block's 256 bytes of shared memory",
    "copy_source_written": r"the source of the copy .* was written before it was complete",
    "copy_target_written": r"the target of the copy .* was written before it was complete",
    "exception": r"thrown by thread 3",
    "odd_block": r"odd_block: a block of 48 threads",
    "too_much_shared": r"too_much_shared: 232464 bytes of shared memory",
}


@cache
def built(sanitizer, target="selftest"):
    reason = build.missing(sanitizer)
    if reason:
        pytest.skip(reason)
    return build.build(sanitizer, target)


def selftest(case, sanitizer="none", order=FORWARD, races="threads"):
    env = {"VMDDPM_EMULATION_ORDER": order, "VMDDPM_EMULATION_RACES": races}
    return build.run(sanitizer, [built(sanitizer), case], env)


def assert_passes(result):
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Sanitizer" not in result.stderr


def assert_reports(result, kind, source):
    assert result.returncode == build.REPORTED, result.stdout + result.stderr
    assert re.search(kind, result.stderr)
    assert source in result.stderr


@pytest.mark.parametrize("order", [FORWARD, REVERSE, RANDOM])
@pytest.mark.parametrize("sanitizer", build.SANITIZERS)
def test_right_programs_pass(sanitizer, order):
    assert_passes(selftest("clean", sanitizer, order))


def test_right_programs_have_no_race_between_blocks():
    assert_passes(selftest("clean", "thread", races="blocks"))


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_values_are_wrong(case):
    assert selftest(case).returncode == WRONG


@pytest.mark.parametrize("case", WRONG_IN_OTHER_ORDERS)
def test_values_are_wrong_in_another_order(case):
    assert selftest(case, order=FORWARD).returncode == 0
    assert selftest(case, order=REVERSE).returncode == WRONG
    assert selftest(case, order=RANDOM).returncode == WRONG


@pytest.mark.parametrize("sanitizer", build.SANITIZERS)
@pytest.mark.parametrize("case", REFUSALS)
def test_refused_by_name(case, sanitizer):
    result = selftest(case, sanitizer)
    assert result.returncode == REFUSED, result.stdout + result.stderr
    assert re.search(REFUSALS[case], result.stdout)


@pytest.mark.parametrize("case", RACES_OF_THREADS)
def test_races_of_threads_are_reported(case):
    assert_reports(selftest(case, "thread"), "data race", "selftest_faults.cu")


@pytest.mark.parametrize("case", RACES_OF_BLOCKS)
def test_races_of_blocks_are_reported(case):
    assert_reports(selftest(case, "thread", races="blocks"), "data race", "selftest_faults.cu")


@pytest.mark.parametrize("case", OVERRUNS)
def test_overruns_are_reported(case):
    assert_reports(selftest(case, "address"), "heap-buffer-overflow", "selftest_faults.cu")


def test_every_fault_is_caught_by_something():
    listed = build.run("none", [built("none"), "faults"]).stdout.split()
    caught = {*WRONG_VALUES, *WRONG_IN_OTHER_ORDERS, *RACES_OF_THREADS, *RACES_OF_BLOCKS, *OVERRUNS, *REFUSALS}
    assert set(listed) == caught


@pytest.mark.parametrize(("name", "value"), [("ORDER", "sideways"), ("RACES", "none"), ("SHARED_LIMIT", "many")])
def test_unknown_settings_are_refused(name, value):
    result = build.run("none", [built("none"), "barriers"], {f"VMDDPM_EMULATION_{name}": value})
    assert result.returncode == REFUSED
    assert f"VMDDPM_EMULATION_{name}={value}: choose" in result.stdout


def test_shared_limit_is_a_setting():
    result = build.run("none", [built("none"), "barriers"], {"VMDDPM_EMULATION_SHARED_LIMIT": "4095"})
    assert result.returncode == REFUSED
    assert "4096 bytes of shared memory: a block may have 4095" in result.stdout


def test_what_a_launch_moves_is_counted(tmp_path):
    """Two blocks of two warps each: each sector counts once per access of a warp, shared memory counts bank passes."""
    file = tmp_path / "counts"
    assert_passes(build.run("none", [built("none"), "moves"], {"VMDDPM_EMULATION_COUNTS": str(file)}))
    (counts,) = map(json.loads, file.read_text().splitlines())
    assert counts["kernel"] == "selftest"
    assert counts["blocks"] == 2
    warps = 4
    assert counts["read_bytes"] == warps * (512 + 128 + 64)
    assert counts["read_sectors"] == warps * (16 + 32 + 4)
    assert counts["write_bytes"] == warps * 128 + 2 * (4 + 32)
    assert counts["write_sectors"] == warps * 4 + 2 * (1 + 1)
    assert counts["read_shared_passes"] == warps * (1 + 2)
    assert counts["read_shared_least"] == warps * (1 + 1)
    assert counts["write_shared_passes"] == counts["write_shared_least"] == warps


SCRIPT = """
import ctypes, sys
import torch

x = torch.randn(64, 64, requires_grad=True)
(x @ x).relu().sum().backward()
sys.exit(ctypes.CDLL(sys.argv[1]).vmddpm_selftest(sys.argv[2].encode()))
"""


@pytest.mark.parametrize(
    ("sanitizer", "case", "kind"),
    [("address", "shared_overrun", "heap-buffer-overflow"), ("thread", "missing_barrier", "data race")],
)
def test_python_with_torch_is_quiet_but_for_our_faults(tmp_path, sanitizer, case, kind):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    library = built(sanitizer, "selftest_library")
    assert_passes(build.run_sanitized(sanitizer, [script, library, "copies"]))
    assert_reports(build.run_sanitized(sanitizer, [script, library, case]), kind, "selftest_faults.cu")


def names_in(header):
    text = header.read_text()
    macros = re.findall(r"^#define (VMDDPM_\w+\([^)]*\)|VMDDPM_\w+)", text, re.MULTILINE)
    functions = re.findall(r"^(?:VMDDPM_DEVICE|inline|void)\b[^(]*?(\w+)\(", text, re.MULTILINE)
    return {*macros, *functions}


def test_interface_is_that_of_the_gpu():
    folder = HERE.parents[1] / "csrc" / "common" / "gpu"
    device, host, emulated = names_in(folder / "gpu.h"), names_in(folder / "runtime.h"), names_in(HERE / "gpu.h")
    real = device | host
    assert len(device) > 10
    assert device - emulated <= {"check"}  # checks the return values of CUDA's functions
    assert emulated - real <= {"VMDDPM_CALLER"}
