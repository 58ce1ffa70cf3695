"""Occupancy against known figures, and predictions against calculations by hand."""

import json
from collections import Counter

import pytest

pytest.importorskip("triton")  # counting the kernels of a launch needs it

from benchmarks.gpu.assumptions import ASSUMED, load
from benchmarks.gpu.kernel_counts import Launch, Shape
from benchmarks.gpu.occupancy import residency
from benchmarks.gpu.predict import baseline_times, launch_time, predict


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "blocks", "limit"),
    [
        (80, 128, 32, 0, 16, "registers"),          # 64 warps of 1,024 registers use all registers
        (80, 1024, 32, 0, 2, "registers"),
        (90, 256, 255, 0, 1, "registers"),          # 8,192 registers per warp: two warps per scheduler
        (90, 128, 255, 0, 2, "registers"),
        (80, 32, 16, 0, 32, "blocks"),
        (86, 32, 16, 0, 16, "blocks"),
        (86, 512, 32, 0, 3, "warps"),               # 48 warps
        (80, 128, 32, 48 * 1024, 3, "shared memory"),    # 164 KiB, of which a block takes 49
        (90, 256, 128, 108080, 2, "registers"),
        (86, 128, 64, 56912, 1, "shared memory"),
        (90, 256, 96, 129584, 1, "shared memory"),
    ],
)  # fmt: skip
def test_residency(architecture, threads, registers, shared, blocks, limit):
    found = residency(ASSUMED.gpus[architecture], threads, registers, shared)
    assert (found.blocks, found.warps) == (blocks, blocks * threads // 32)
    assert found.limit == limit


def launch(blocks, threads=128, instructions=1_000_000, mufu=0, **options):
    """`instructions` and `mufu` are per warp."""
    warps = blocks * threads // 32
    opcodes = Counter({"FFMA": (instructions - mufu) * warps, "MUFU.EX2": mufu * warps})
    return Launch("forward", "kernel", blocks, threads, 0, 32, opcodes=opcodes, **options)


GPU = ASSUMED.gpus[90]
CYCLE = 1e-9 / GPU.clock_ghz


def test_one_warp_a_scheduler_waits():
    seconds, bound = launch_time(launch(GPU.multiprocessors), GPU, ASSUMED)
    assert seconds == pytest.approx(1e6 * CYCLE / 0.27)
    assert bound == "occupancy"


def test_a_round_more_takes_a_round_longer():
    """16 blocks of 4 warps are resident: 16 warps per scheduler."""
    full, _ = launch_time(launch(16 * GPU.multiprocessors), GPU, ASSUMED)
    more, bound = launch_time(launch(16 * GPU.multiprocessors + 1), GPU, ASSUMED)
    assert full == pytest.approx(16e6 * CYCLE / 0.85)
    assert more - full == pytest.approx(1e6 * CYCLE / 0.27)
    assert bound == "issue"


def test_what_is_slowest_bounds():
    exp2, bound = launch_time(launch(16 * GPU.multiprocessors, mufu=500_000), GPU, ASSUMED)
    assert bound == "EX2"
    assert exp2 == pytest.approx(16 * 500_000 * 8 * CYCLE)
    seconds, bound = launch_time(launch(GPU.multiprocessors, bytes_read=3e10, bytes_written=1e10), GPU, ASSUMED)
    assert bound == "memory"
    assert seconds == pytest.approx(4e10 / (GPU.bytes_per_second * ASSUMED.memory_efficiency))
    time = predict([launch(1, instructions=10)] * 5, GPU, ASSUMED)
    assert time.bound == "launches"
    assert time.milliseconds == pytest.approx(5e-3 * ASSUMED.launch_microseconds, rel=0.05)


def test_a_measured_run_replaces_the_assumptions(tmp_path):
    path = tmp_path / "measured.json"
    path.write_text(json.dumps({"gpus": {"90": {"clock_ghz": 1.7}}, "issue_efficiency": [[1, 0.5], [8, 1.0]]}))
    found = load(path)
    assert found.gpus[90].clock_ghz == 1.7
    assert found.gpus[90].multiprocessors == GPU.multiprocessors
    assert found.efficiency(4.5) == pytest.approx(0.75)
    assert found.efficiency(40) == 1.0
    path.write_text('{"clock": 1}')
    with pytest.raises(ValueError, match="unknown: clock; there are exp2_cycles, gpus"):
        load(path)
    path.write_text('{"gpus": {"70": {}}}')
    with pytest.raises(ValueError, match="no architecture 70: there are 80, 86, 89, 90, 100"):
        load(path)


def test_baselines():
    shape = Shape.parse("16,4,192,1024,16")
    (times,) = baseline_times(shape, GPU).values()
    slots = GPU.multiprocessors * 4 * GPU.clock_ghz * 1e9 * 0.44
    assert times["both"] == pytest.approx(1e3 * 79.2 * 16 * 4 * 192 * 1024 * 16 / 32 / slots)
    assert baseline_times(Shape.parse("1,1,1,5,16"), GPU) == {}
