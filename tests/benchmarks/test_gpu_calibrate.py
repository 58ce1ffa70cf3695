"""Constants calibrated on a simulated run, against calculations by hand."""

import json
import subprocess
import sys
from collections import Counter

import pytest

pytest.importorskip("triton")  # counting the kernels of a launch needs it

from benchmarks.gpu import assumptions, calibrate, kernel_counts
from benchmarks.gpu.assumptions import ASSUMED, load
from benchmarks.gpu.calibrate import constants, efficiency_through
from benchmarks.gpu.counters import INSTRUCTIONS, ISSUE, WARPS
from benchmarks.gpu.kernel_counts import Launch


def kernel(warps, issue, instructions=100.0):
    return {"kernel": "scan", WARPS: warps, ISSUE: issue, INSTRUCTIONS: instructions}


def made_up(**phases):
    gpu = {"name": "Made Up 1", "capability": "9.0", "multiprocessors": 100}
    return {"kind": "gpu run", "machine": {"gpu": gpu, "date": "2026-01-02", "commit": "c0ffee"}, "cut": [],
            "phases": phases}  # fmt: skip


CEILINGS = {"copy_bytes_per_second": 4e12, "clock_hertz": 2e9, "exp2_per_second": 2.56e12, "launch_seconds": 3e-6}


def test_constants():
    given = constants(made_up(ours={"outcome": "ok", "ceilings": CEILINGS}))
    assert given["from"] == {"gpu": "Made Up 1", "date": "2026-01-02", "commit": "c0ffee"}
    gpu = given["gpus"]["90"]
    assert (gpu["multiprocessors"], gpu["clock_ghz"]) == (100, 2.0)
    assert gpu["bytes_per_second"] * ASSUMED.memory_efficiency == pytest.approx(4e12)
    # 8e10 EX2 of warps per second, 2e8 per scheduler: one in ten cycles.
    assert given["exp2_cycles"] == pytest.approx(10)
    assert given["launch_microseconds"] == pytest.approx(3)
    assert "issue_efficiency" not in given  # not measured


def test_issue_slots():
    """A call's kernels with hardly any instructions are left out; two with the same number of warps count half each."""
    calls = [{"kernels": [kernel(8.0, 60.0), kernel(8.0, 30.0), kernel(60.0, 1.0, instructions=1.0)]}]
    given = constants(made_up(counters={"outcome": "ok", "calls": calls}))
    assert set(given) == {"from", "gpus", "issue_efficiency"}
    assert dict(given["issue_efficiency"])[2] == pytest.approx(0.45)  # 8 warps are 2 per scheduler


def test_the_curve_goes_through_the_points():
    curve = dict(efficiency_through([(2.0, 0.9 * 0.45), (8.0, 0.5 * 0.78)]))
    assert curve[1] == pytest.approx(0.9 * 0.27, abs=1e-3)    # below the first point, its value
    assert curve[2] == pytest.approx(0.9 * 0.45, abs=1e-3)
    assert curve[4] >= 0.65 * (0.9 - 0.4 / 3) - 1e-3          # interpolated, and never decreasing
    assert curve[16] >= curve[8] >= curve[4]
    assert max(dict(efficiency_through([(8.0, 1.0)])).values()) == 1.0


def launches(shape, dtype, gpu):
    opcodes = Counter({"FFMA": 1e9, "MUFU.EX2": 1e8})
    return [Launch(direction, "scan", 1320, 128, 0, 32, opcodes=opcodes) for direction in ("forward", "backward")]


def case(ms, **changes):
    results = {"ours": {"ms": ms}}
    sizes = {"batch": 2, "routes": 4, "channels": 64, "length": 64, "states": 16, "dtype": "bfloat16"}
    return {"case": "a", **sizes, "forward": {"results": results}, "forward_backward": {"results": results}, **changes}


def test_predicted_beside_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(calibrate, "counted_once", launches)
    calls = [{"case": "a call", "instructions": 11.0, "milliseconds": 1.0, "predicted": {"all": 10.0},
              "kernels": [kernel(32.0, 80.0)]}]  # fmt: skip
    cases = [case(5.0), {"case": "b", "error": "out of memory"}]
    file, out = tmp_path / "run.json", tmp_path / "measured.json"
    file.write_text(json.dumps(made_up(
        ours={"outcome": "ok", "ceilings": CEILINGS, "cases": cases}, counters={"outcome": "ok", "calls": calls}
    )))  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["calibrate", str(file), "--out", str(out)])
    calibrate.main()
    said = capsys.readouterr().out
    found = load(out)
    assert found.gpus[90].name == "Made Up 1"
    assert found.efficiency(8) == pytest.approx(0.8)
    rows = {tuple(line.split()[:3]): line.split() for line in said.splitlines() if line.strip()}
    assert rows["clock,", "GHz", "1.85"][2:] == ["1.85", "2"]
    assert rows["a", "call", "11.0"][2:5] == ["11.0", "10.0", "+10%"]
    forward = rows["2,4,64,64,16", "bfloat16", "f"]
    both = rows["2,4,64,64,16", "bfloat16", "f+b"]
    # 1.1e9 instructions of warps on 400 schedulers at 2 GHz, 13 or 14 blocks of 4 warps resident: 0.8 and more.
    calibrated = float(forward[4])
    assert calibrated == pytest.approx(1e3 * 1.1e9 * 14 / 13.2 / 400 / 2e9 / 0.837, rel=0.02)
    assert float(both[4]) == pytest.approx(2 * calibrated, abs=2e-3)
    assert float(forward[5]) == 5.0
    assert float(forward[6]) == pytest.approx(5 / calibrated, abs=0.01)

    monkeypatch.setattr(assumptions, "MEASURED", out)  # where predictions look for it
    assert load() == found
    monkeypatch.setattr(assumptions, "MEASURED", tmp_path / "none.json")
    assert load() is ASSUMED


def test_what_was_counted_is_kept(monkeypatch, tmp_path):
    def counted(shape, dtype, gpu, most_blocks):
        calls.append(shape)
        return launches(shape, dtype, gpu)

    calls = []
    monkeypatch.setattr(kernel_counts, "counted", counted)
    monkeypatch.setattr(calibrate, "COUNTS", tmp_path / "counts")
    shape, gpu = (1, 4, 6, 20, 16), ASSUMED.gpus[90]
    first = calibrate.counted_once(shape, "bfloat16", gpu)
    assert first == calibrate.counted_once(shape, "bfloat16", gpu) == launches(shape, "bfloat16", gpu)
    assert calls == [kernel_counts.Shape(*shape)]
    calibrate.counted_once(shape, "float32", gpu)
    monkeypatch.setattr(calibrate, "sources_digest", lambda: "others")
    calibrate.counted_once(shape, "bfloat16", gpu)
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpu": {"name": None}}, "rehearsal on a CPU"),
        ({"gpu": {"name": "Old", "capability": "7.0", "multiprocessors": 80}}, "Old has architecture 70"),
        ({}, "nothing was measured"),
    ],
)
def test_runs_that_say_nothing(change, message):
    results = made_up()
    results["machine"] |= change
    with pytest.raises(ValueError, match=message):
        constants(results)


def test_a_wrong_file_is_named(tmp_path):
    file = tmp_path / "run.json"
    file.write_text("{}")
    command = [sys.executable, "-m", "benchmarks.gpu.calibrate", str(file), "--out", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=calibrate.ROOT)
    assert done.returncode == 2
    assert f"{file}: not the results of benchmarks/gpu/run.py" in done.stderr
    assert not (tmp_path / "out.json").exists()
