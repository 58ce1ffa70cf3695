"""The GPU tests and compute-sanitizer, which run at the same time because neither is timed."""

import os
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.gpu.commands import CUT, ROOT, Running, last_lines, module_command, run, start
from benchmarks.gpu.machine import cuda_tool

SANITIZERS = ("memcheck", "racecheck")
SANITIZER_OPTIONS = ["--error-exitcode", "9", "--print-limit", "20", "--target-processes", "all"]
MORE_OPTIONS = {"memcheck": ["--report-api-errors", "no"]}  # torch queries features that may be absent
PROCESSES = 6
# The recurrence first; slow tests, which compute their expected results on the CPU, last.
TESTS = ["cross_selective_scan", "selective_scan", "scan_behaviour", "runtime", "cross_scan", "scan_sizes"]


def conclude(result: dict[str, Any], log: Path, begun: float) -> dict[str, Any]:
    result["seconds"] = round(time.monotonic() - begun, 1)
    if result["outcome"] != "ok":
        result["log_ends"] = last_lines(log)
    return result


def count_outcomes(text: str) -> tuple[Counter[str], list[str]]:
    """The number of tests by outcome, and the names of failed tests, from pytest's verbose output, which may be cut off
    and may be of several processes."""
    ended: dict[str, str] = {}
    for line in text.splitlines():
        one = re.match(r"(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", line)
        if one:
            ended[one.group(1)] = one.group(2)
        elif several := re.match(r"\[gw\d+\] \[ *\d+%\] (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS) (tests/.+)", line):
            ended[several.group(2).strip()] = several.group(1)
    bad = sorted(name for name, how in ended.items() if how in ("FAILED", "ERROR"))
    return Counter(how.lower() for how in ended.values()), bad


def test_files() -> list[str]:
    """The files of TESTS in that order, then all others."""
    folder = ROOT / "tests" / "gpu"
    every = {path.stem.removeprefix("test_gpu_"): str(path) for path in folder.glob("test_*.py")}
    return [every.pop(name) for name in TESTS if name in every] + sorted(every.values())


def run_tests(log: Path, seconds: float, dry_run: bool, chosen: str) -> dict[str, Any]:
    """Run pytest in up to PROCESSES processes, which take the tests one by one in order."""
    processes = min(PROCESSES, os.cpu_count() or 1)
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-v", "-m", "gpu", "-rs", "--tb=short"]
    command += ["-n", str(processes), "--dist", "load", "--maxschedchunk", "1", "-k", chosen, *test_files()]
    environment = {"OMP_NUM_THREADS": "1" if dry_run else str(max(1, (os.cpu_count() or 1) // processes))}
    if dry_run:
        environment["VMDDPM_GPU_TESTS"] = "rehearse"
    begun = time.monotonic()
    result = run(command, log, seconds, environment)
    counts, bad = count_outcomes(log.read_text(errors="replace"))
    if result["outcome"] == "ok" and not counts["passed"]:
        result["outcome"] = "failed"
    if result["outcome"] == CUT and bad:
        result["outcome"] = "failed"
    skips = [line for line in last_lines(log, 10_000) if line.startswith("SKIPPED [")]
    return {**conclude(result, log, begun), "counts": dict(counts), "failed": bad[:100], "skips": skips}


def sanitizer_summary(tool: str, text: str) -> dict[str, Any]:
    """The findings of compute-sanitizer, and the number of lines about our kernels."""
    errors = re.search(r"ERROR SUMMARY: (\d+) error", text)
    hazards = re.search(r"RACECHECK SUMMARY: (\d+) hazards? displayed \((\d+) errors?, (\d+) warnings?\)", text)
    summary: dict[str, Any] = {"reached_its_end": "runs are done" in text, "lines_about_ours": text.count("vmddpm::")}
    if tool == "racecheck" and hazards:
        summary |= {"hazards": int(hazards.group(1)), "errors": int(hazards.group(2))}
    elif errors:
        summary["errors"] = int(errors.group(1))
    return summary


def sanitizer_outcome(result: dict[str, Any]) -> str:
    if result["outcome"] == CUT and result["lines_about_ours"]:  # errors are reported when they are found
        return "failed"
    if result["outcome"] == CUT or not result["reached_its_end"] or "errors" not in result:
        return str(result["outcome"]) if result["outcome"] != "ok" else "failed"
    if result["errors"] == 0:
        return "ok"
    return "failed" if result["lines_about_ours"] else "errors, but not in our kernels"


def start_sanitizers(folder: Path, seconds: float, dry_run: bool) -> dict[str, Running] | str:
    """Start each tool on the same short program, in parallel; if there is none, return why. Without torch's caching,
    each tensor is a separate allocation, so that an access beyond its end is detected."""
    target = module_command("sanitize_target")
    if dry_run:
        return {"target": start([*target, "--dry-run"], folder / "sanitizer.log", seconds)}
    sanitizer = cuda_tool("compute-sanitizer")
    if not Path(sanitizer).exists():
        return "skipped: no compute-sanitizer"
    return {
        tool: start(
            [sanitizer, "--tool", tool, *SANITIZER_OPTIONS, *MORE_OPTIONS.get(tool, []), *target],
            folder / f"{tool}.log",
            seconds,
            {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )
        for tool in SANITIZERS
    }


def finish_sanitizers(running: dict[str, Running] | str) -> dict[str, Any]:
    if isinstance(running, str):
        return {tool: {"outcome": running} for tool in SANITIZERS}
    results = {}
    for tool, program in running.items():
        result = program.wait()
        if tool in SANITIZERS:
            result |= sanitizer_summary(tool, program.log.read_text(errors="replace"))
            result["outcome"] = sanitizer_outcome(result)
        results[tool] = conclude(result, program.log, program.begun)
    return results
