"""The run on a GPU machine: its results after an interruption, its division of time among phases, and its parsing of
other programs' output."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.gpu import checks, counters, phases, report, run
from benchmarks.gpu.commands import CUT, end_all, start
from benchmarks.gpu.counter_calls import CALLS

ROOT = Path(__file__).parents[2]
NAMES = ["build", "smoke", "counters", "ours", "baselines", "triton", "tests", "model"]
MACHINE = {"gpu": {"name": "A GPU"}, "date": "2026-01-02", "commit": "c0ffee"}


@pytest.fixture
def session(monkeypatch, tmp_path):
    monkeypatch.delenv("OUT", raising=False)
    monkeypatch.setattr(run, "describe", lambda device: MACHINE)

    def make(chosen, budget=100.0, out=False):
        if out:
            monkeypatch.setenv("OUT", str(tmp_path / "out"))
        return run.Session(chosen, True, budget, tmp_path)

    return make


def done(outcome="ok", **more):
    return run.Phase(lambda folder, seconds, dry_run, **options: {"outcome": outcome, **more}, 10)


def test_the_order_of_what_is_learned_in_a_second():
    assert list(run.PHASES) == NAMES


@pytest.mark.parametrize("after", range(len(NAMES) + 1))
def test_a_run_stopped_after_any_phase(session, after):
    """Killed, as when the machine is taken away: the run cannot write anything more."""

    def killed(folder, seconds, dry_run, **options):
        os.kill(os.getpid(), signal.SIGKILL)

    chosen = {name: done(seconds=1) if i < after else run.Phase(killed, 10) for i, name in enumerate(NAMES)}
    stopped = session(chosen, out=True)
    if not (child := os.fork()):
        run.run(stopped)
        killed(None, None, None)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    for path in (stopped.path, Path(os.environ["OUT"]) / stopped.path.name):
        found = report.load(path)
        assert list(found["phases"]) == NAMES[:after]
        assert found["outcome"] == run.STOPPED
        assert [line.split()[0] for line in report.table(found).splitlines() if line] == NAMES[:after]
        assert not list(path.parent.glob("*.tmp"))


def test_what_it_comes_to(session, capsys):
    chosen = {"build": done(), "smoke": done(CUT), "ours": done("failed", error="a fault")}
    ended = session(chosen)
    run.run(ended)
    ended.finish()
    found = report.load(ended.path)
    assert found["outcome"] == "failed"
    assert found["cut"] == ["smoke"]
    assert "cut, as their time ran out: smoke" in report.table(found)
    assert session(chosen).path != ended.path  # its files are kept


@pytest.mark.parametrize(("broken", "outcome"), [("build", "failed"), ("build", CUT), ("smoke", "failed")])
def test_nothing_is_measured_of_what_is_wrong(session, broken, outcome):
    chosen = {name: done(outcome if name == broken else "ok") for name in NAMES}
    ended = session(chosen)
    run.run(ended)
    after = NAMES[NAMES.index(broken) + 1 :]
    assert all(ended.results["phases"][name]["outcome"].startswith(f"skipped: {broken}") for name in after)


def test_a_phase_that_raises_is_an_entry(session):
    def raises(folder, seconds, dry_run):
        raise OSError("no cmake")

    ended = session({"ours": run.Phase(raises, 1), "model": done()})
    run.run(ended)
    assert ended.results["phases"]["ours"] == {"outcome": "failed", "error": "OSError: no cmake"}
    assert ended.results["phases"]["model"]["outcome"] == "ok"


@pytest.mark.parametrize("used", [0.1, 0.5, 1.0])
def test_phases_share_the_time(session, monkeypatch, used):
    """Whatever share of its time each phase uses, every phase gets its time, and the total stays within the budget."""
    now = time.monotonic()
    monkeypatch.setattr(run.time, "monotonic", lambda: now)
    planned = session(run.PHASES, budget=run.BUDGET)
    begun = now
    for name, phase in run.PHASES.items():
        seconds = planned.seconds(name)
        assert seconds >= run.BUDGET * phase.share / sum(p.share for p in run.PHASES.values()) - 1e-6
        now += used * seconds
    assert now - begun <= run.BUDGET + 1e-6
    assert run.BUDGET <= 8 * 60 - 10  # starting and stopping take some of it


def test_a_file_that_is_no_run(tmp_path):
    path = tmp_path / "x.json"
    for text, message in (("{", "not JSON"), ("[]", "not the results of"), ('{"kind": 1}', "not the results of")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            report.load(path)


def test_the_table_of_a_file(session, monkeypatch, capsys):
    stopped = session({"build": done(seconds=3.0)})
    run.run(stopped)
    monkeypatch.setattr(sys, "argv", ["report", str(stopped.path)])
    report.main()
    said = capsys.readouterr().out.splitlines()
    assert said[1:4] == [f"A GPU, 2026-01-02, commit c0ffee: {run.STOPPED}", "", "build          ok       3.0 s"]
    with pytest.raises(ValueError, match="those of `make gpu`"):
        results.load(stopped.path)


def test_a_program_that_takes_too_long_is_ended_with_its_children(tmp_path):
    log, children = tmp_path / "log", []
    command = ["sh", "-c", "sleep 1000 & echo $!; wait"]
    running = start(command, log, 0.5)
    assert running.wait()["outcome"] == CUT
    running = start(command, log, 100, polite=True)
    while len(children := [line for line in log.read_text().splitlines() if line.isdigit()]) < 2:
        time.sleep(0.02)
    end_all()
    assert not running.going()
    for child in children:
        status = Path(f"/proc/{child}/stat")
        deadline = time.monotonic() + 10
        while status.exists() and status.read_text().split()[2] != "Z" and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not status.exists() or status.read_text().split()[2] == "Z"


def test_a_baseline_that_is_still_compiled(monkeypatch, tmp_path):
    """It is terminated before the others are timed, and they are still measured."""
    programs = {"VMamba": "echo 'VMamba: built in 3 s'", "mamba": "echo compiling; exec sleep 1000"}
    compiling = [start(["sh", "-c", program], tmp_path / name, 100) for name, program in programs.items()]
    while not all((tmp_path / name).read_text().count("\n") > 1 for name in programs):
        time.sleep(0.05)

    def measured(group, folder, seconds, dry_run):
        assert not any(running.going() for running in compiling)
        return {"outcome": "ok", "cases": ["a case"]}

    monkeypatch.setattr(phases, "measured", measured)
    found = phases.baselines(tmp_path, 2.0, False, compiling)
    assert found["notes"] == ["compiling: ok: VMamba: built in 3 s", "compiling: cut: compiling"]
    assert found["cases"] == ["a case"]


def test_what_a_cut_program_had(tmp_path):
    """Its complete lines only; a case that was begun counts as not measured."""
    lines = tmp_path / "ours.jsonl"
    records = [{"case": "ceilings", "clock_hertz": 1.0}, {"case": "a", "begun": True}, {"case": "a", "begun": False},
               {"case": "b", "begun": True, "differences": {}}]  # fmt: skip
    lines.write_text("\n".join(map(json.dumps, records)) + '\n{"case": "b", "forw')
    found = phases.gather(lines)
    assert [case["case"] for case in found["cases"]] == ["a", "b"]
    assert found["not_measured"] == ["b"]
    assert found["ceilings"]["clock_hertz"] == 1
    assert phases.gather(tmp_path / "none") == {"cases": [], "not_measured": []}


PYTEST = """
tests/gpu/test_a.py::test_one[x y] PASSED                       [ 10%]
[gw3] [ 20%] FAILED tests/gpu/test_a.py::test_two[cuda]
[gw1] [  3%] PASSED tests/gpu/test_a.py::test_three
[gw1] [ 30%] SKIPPED tests/gpu/test_a.py::test_four
tests/gpu/test_a.py::test_five
"""


def test_outcomes_of_tests():
    counts, bad = checks.count_outcomes(PYTEST)
    assert counts == {"passed": 2, "failed": 1, "skipped": 1}
    assert bad == ["tests/gpu/test_a.py::test_two[cuda]"]
    names = [Path(file).stem for file in checks.test_files()]
    assert names[:2] == ["test_gpu_cross_selective_scan", "test_gpu_selective_scan"]
    assert names[len(checks.TESTS) - 1] == "test_gpu_scan_sizes"
    assert sorted(names) == sorted(path.stem for path in (ROOT / "tests" / "gpu").glob("test_*.py"))


DONE = "all 9 runs are done\n"


@pytest.mark.parametrize(
    ("tool", "text", "outcome", "expected"),
    [
        ("memcheck", f"{DONE}========= ERROR SUMMARY: 0 errors", "ok", "ok"),
        ("memcheck", f"{DONE}= in void vmddpm::scan\n========= ERROR SUMMARY: 2 errors", "failed", "failed"),
        ("memcheck", f"{DONE}========= ERROR SUMMARY: 1 error", "failed", "errors, but not in our kernels"),
        ("racecheck", f"{DONE}= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", "ok", "ok"),
        ("racecheck", "========= Error: Race reported in void vmddpm::scan", CUT, "failed"),
        ("racecheck", "", CUT, CUT),
        ("memcheck", DONE, "ok", "failed"),
    ],
)
def test_what_a_sanitizer_says(tool, text, outcome, expected):
    found = {"outcome": outcome, **checks.sanitizer_summary(tool, text)}
    assert checks.sanitizer_outcome(found) == expected


HEADER = ["ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Context", "Stream", "Block Size",
          "Grid Size", "Device", "CC", counters.INSTRUCTIONS, counters.XU, counters.NANOSECONDS,
          "smsp__average_warps_issue_stalled_wait_per_issue_active.ratio",
          "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",
          "smsp__average_warps_issue_stalled_barrier_not_issued_per_issue_active.ratio"]  # fmt: skip
FORWARD = "void vmddpm::gpu::(anonymous namespace)::scan_forward<c10::BFloat16, (int)16>(vmddpm::ScanParams)"


def raw_page(*launches):
    """Output of ncu 2025.3 with `--csv --page raw --print-units base`."""
    units = [*[""] * 11, "inst", "inst", "ns", "inst", "inst", "inst"]
    rows = [
        [str(i), "77", "python3", "127.0.0.1", name, "1", "7", "(128, 1, 1)", "(384, 1, 1)", "0", "9.0", *values]
        for i, (name, *values) in enumerate(launches)
    ]
    table = "\n".join(",".join(f'"{cell}"' for cell in row) for row in [HEADER, units, *rows])
    return f"==PROF== Connected to process 77\n{table}\n==PROF== Disconnected from process 77\n"


def test_what_ncu_says():
    marker = ("at::cuda::(anonymous namespace)::spin_kernel(long)", "10", "0", "1,000", "1", "1", "1")
    text = raw_page(marker, (FORWARD, "90,316,800", "9,633,792", "1,500,000", "1.25", "3.5", "99"), marker)
    groups = counters.by_call(counters.parse(text))
    assert [len(group) for group in groups] == [1, 0]
    found = counters.summary(CALLS[0], groups[0])
    pairs = 128 * 4 * 192 * 784 * 16 / 32
    assert found["instructions"] == pytest.approx(90_316_800 / pairs, abs=1e-3)
    assert found["EX2 pipe"] == pytest.approx(9_633_792 / pairs, abs=1e-3)
    assert found["milliseconds"] == 1.5
    assert found["bytes read"] is None
    (kernel,) = found["kernels"]
    assert kernel["stalls"] == {"barrier": 3.5, "wait": 1.25}
    assert kernel["grid"] == "(384, 1, 1)"
    (_, line) = report.counter_lines([found])
    expected = counters.predicted()["128,4,192,784,16", "bfloat16", "forward"]["all"]
    apart = f"{90_316_800 / pairs / expected - 1:+.0%}"
    figures = [f"{90_316_800 / pairs:.1f}", f"{expected:.1f}", apart, f"{9_633_792 / pairs:.2f}", "1.50"]
    assert line.split() == ["128,4,192,784,16", "bfloat16", "forward", *figures, "waits:", "barrier"]


def test_ncu_without_a_table():
    with pytest.raises(ValueError, match="no table"):
        counters.parse("==ERROR== Failed to find metric smsp__inst\n")
    with pytest.raises(ValueError, match="0 markers for 6 calls"):
        counters.by_call(counters.parse(raw_page((FORWARD, "1", "1", "1", "1", "1", "1"))))


NCU = """#!{python}
import sys
from pathlib import Path
metrics = sys.argv[sys.argv.index("--metrics") + 1].split(",")
log = Path(sys.argv[sys.argv.index("--log-file") + 1])
if len(metrics) > {most}:
    log.write_text("==ERROR== Failed to find metric " + metrics[-1])
    sys.exit(1)
log.write_text({page!r})
"""


def test_an_ncu_that_does_not_know_all_metrics(monkeypatch, tmp_path):
    marker = ("spin_kernel(long)", "1", "1", "1", "1", "1", "1")
    page = raw_page(*[marker, (FORWARD, "4", "1", "1", "1", "1", "1")] * len(CALLS))
    ncu = tmp_path / "ncu"
    ncu.write_text(NCU.format(python=sys.executable, most=len(counters.FEW), page=page))
    ncu.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda name: str(ncu))
    found = phases.look(tmp_path, 60, dry_run=False)
    assert found["outcome"] == "ok"
    assert [call["case"] for call in found["calls"]] == [call.name for call in CALLS]
    assert "Failed to find metric" in (tmp_path / "counters.log").read_text()
    ncu.write_text(NCU.format(python=sys.executable, most=0, page=page))
    found = phases.look(tmp_path, 60, dry_run=False)
    assert (found["outcome"], found["error"]) == ("failed", "no table from ncu")


def test_each_call_has_a_prediction():
    predictions = counters.predicted()
    for call in CALLS:
        expected = counters.summary(call, [])["predicted"]
        assert expected in predictions.values(), call.name
        assert expected["low"] <= expected["all"] <= expected["high"], call.name
        assert 0 < expected["EX2"] < expected["all"], call.name


def rehearse(tmp_path, *arguments, environment=None):
    variables = {**os.environ, "TMPDIR": str(tmp_path), "OUT": str(tmp_path / "out"), **(environment or {})}
    command = [sys.executable, "benchmarks/gpu/run.py", "--dry-run", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True)


def result_of(tmp_path):
    (path,) = (tmp_path / "out").glob("*.json")
    return report.load(path)


@pytest.mark.slow
@pytest.mark.parametrize("triton", ["3.6.0", None])
def test_the_whole_rehearsal(tmp_path, triton):
    pytest.importorskip("triton")
    environment = {}
    if triton:
        sys.path.insert(0, str(ROOT / "tests" / "triton_aot"))
        from versions import python_path

        environment["PYTHONPATH"] = os.pathsep.join([*python_path(triton), os.environ.get("PYTHONPATH", "")])
    rehearsal = rehearse(tmp_path, "--budget", "900", environment=environment)
    said, _ = rehearsal.communicate()
    found = result_of(tmp_path)
    assert [line.split(":")[0] for line in said.splitlines()[: len(NAMES)]] == NAMES
    assert {name: phase["outcome"] for name, phase in found["phases"].items()} == dict.fromkeys(NAMES, "ok"), said
    assert found["outcome"] == "ok"
    assert rehearsal.returncode == 0
    assert triton in (None, found["machine"]["triton"])


@pytest.mark.slow
def test_a_rehearsal_that_is_ended(tmp_path):
    """Interrupted in the middle of a phase: its programs end too, and earlier results are kept."""
    rehearsal = rehearse(tmp_path, "--only", "build,smoke,ours")
    for line in rehearsal.stdout:
        if line.startswith("build"):
            break
    time.sleep(1)
    rehearsal.terminate()
    rehearsal.communicate()
    assert rehearsal.returncode == 128 + signal.SIGTERM
    found = result_of(tmp_path)
    assert list(found["phases"]) == ["build"]
    assert found["outcome"] == run.STOPPED
    programs = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(tmp_path) not in programs
