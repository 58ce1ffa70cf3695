"""The parts of a run. Each returns what becomes its entry in the results, with an outcome in words."""

import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pybind11
import torch
from commands import ROOT, Running, last_lines, run, start
from machine import nvcc

HERE = Path(__file__).resolve().parent
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
SANITIZER_OPTIONS = ["--error-exitcode", "9", "--print-limit", "20", "--target-processes", "all"]
MORE_OPTIONS = {"memcheck": ["--report-api-errors", "no"]}  # torch asks for things that may be absent
RESTARTS = 5


def build(folder: Path, seconds: float) -> dict[str, Any]:
    """The extension, with CMake as setup.py does it but for this machine's GPU alone, into vmddpm_kernels/."""
    major, minor = torch.cuda.get_device_capability()
    tree = ROOT / "build" / "gpu"
    configure = [
        "cmake", "-S", str(ROOT / "csrc"), "-B", str(tree), "-G", "Ninja",
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={ROOT / 'vmddpm_kernels'}",
        "-DVMDDPM_CUDA=1", f"-DVMDDPM_CUDA_ARCHS={major}{minor}-real",
    ]  # fmt: skip
    log = folder / "build.log"
    begun = time.monotonic()
    result = run(configure, log, seconds, {"CUDACXX": nvcc()})
    if result["outcome"] == "ok":
        result = run(["cmake", "--build", str(tree)], log, seconds - (time.monotonic() - begun))
    return conclude(result, log, begun)


def start_peers(folder: Path, seconds: float) -> Running:
    return start([sys.executable, str(HERE / "peers.py")], folder / "peers.log", seconds)


def finish_peers(running: Running, wanted: bool) -> dict[str, Any]:
    if not wanted and running.process.poll() is None:
        running.end()
        return {"outcome": "skipped: nothing to compare with"}
    result = running.wait()
    said = [line for line in last_lines(running.log, 10_000) if re.match(r"(VMamba|mamba): ", line)]
    return {**result, "said": said}


def conclude(result: dict[str, Any], log: Path, begun: float) -> dict[str, Any]:
    result["seconds"] = round(time.monotonic() - begun, 1)
    if result["outcome"] != "ok":
        result["log_ends"] = last_lines(log)
    return result


def count_outcomes(text: str) -> tuple[Counter[str], list[str]]:
    """From pytest's verbose output, complete or cut off, of one process or of several."""
    ended: dict[str, str] = {}
    for line in text.splitlines():
        one = re.match(r"(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", line)
        if one:
            ended[one.group(1)] = one.group(2)
        elif several := re.match(r"\[gw\d+\] \[ *\d+%\] (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS) (tests/.+)", line):
            ended[several.group(2).strip()] = several.group(1)
    bad = sorted(name for name, how in ended.items() if how in ("FAILED", "ERROR"))
    return Counter(how.lower() for how in ended.values()), bad


def tests(folder: Path, seconds: float, dry_run: bool) -> dict[str, Any]:
    return run_tests(folder / "tests.log", seconds, dry_run, "not triton")


def triton(folder: Path, seconds: float, dry_run: bool) -> dict[str, Any]:
    """The GPU tests through the Triton kernels, most of whose time is that of compiling them."""
    return run_tests(folder / "triton.log", seconds, dry_run, "cpu" if dry_run else "triton")


def run_tests(log: Path, seconds: float, dry_run: bool, chosen: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-v", "-m", "gpu", "-rs", "--tb=short", "tests/gpu"]
    command += ["-k", chosen]
    begun = time.monotonic()
    result = run(command, log, seconds, {"VMDDPM_GPU_TESTS": "rehearse"} if dry_run else None)
    counts, bad = count_outcomes(log.read_text(errors="replace"))
    if result["outcome"] == "ok" and not counts["passed"]:
        result["outcome"] = "failed"
    skips = [line for line in last_lines(log, 10_000) if line.startswith("SKIPPED [")]
    return {**conclude(result, log, begun), "counts": dict(counts), "failed": bad[:100], "skips": skips}


def sanitizer_summary(tool: str, text: str) -> dict[str, Any]:
    """What compute-sanitizer found, and whether any of it is about a kernel of ours."""
    errors = re.search(r"ERROR SUMMARY: (\d+) error", text)
    hazards = re.search(r"RACECHECK SUMMARY: (\d+) hazards? displayed \((\d+) errors?, (\d+) warnings?\)", text)
    summary: dict[str, Any] = {"reached_its_end": "runs are done" in text, "lines_about_ours": text.count("vmddpm::")}
    if tool == "racecheck" and hazards:
        summary |= {"hazards": int(hazards.group(1)), "errors": int(hazards.group(2))}
    elif errors:
        summary["errors"] = int(errors.group(1))
    return summary


def sanitizer_outcome(result: dict[str, Any]) -> str:
    if result["outcome"] == "out of time" or not result["reached_its_end"] or "errors" not in result:
        return result["outcome"] if result["outcome"] != "ok" else "failed"
    if result["errors"] == 0:
        return "ok"
    return "failed" if result["lines_about_ours"] else "errors, but not in our kernels"


def sanitizer(folder: Path, seconds: float, dry_run: bool) -> dict[str, Any]:
    """Four tools over the same short program, side by side. Without torch's caching, each tensor is an allocation of
    its own, so that a step past its end is seen."""
    target = [sys.executable, str(HERE / "sanitize_target.py")]
    if dry_run:
        return {"target": run([*target, "--dry-run"], folder / "sanitizer.log", seconds)}
    tool_path = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool_path).exists():
        return {tool: {"outcome": "skipped: no compute-sanitizer"} for tool in SANITIZERS}
    running = {
        tool: start(
            [tool_path, "--tool", tool, *SANITIZER_OPTIONS, *MORE_OPTIONS.get(tool, []), *target],
            folder / f"sanitizer-{tool}.log",
            seconds,
            {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )
        for tool in SANITIZERS
    }
    results = {}
    for tool, program in running.items():
        result = program.wait()
        text = program.log.read_text(errors="replace")
        result |= sanitizer_summary(tool, text)
        result["outcome"] = sanitizer_outcome(result)
        results[tool] = conclude(result, program.log, program.begun)
        with (folder / "sanitizer.log").open("a") as together:  # one file to carry instead of four
            together.write(text)
        program.log.unlink()
    return results


def benchmarks(folder: Path, seconds: float, dry_run: bool) -> dict[str, Any]:
    """measure.py, started again after an error on the GPU, which ends its process but not the run."""
    lines, log = folder / "benchmarks.jsonl", folder / "benchmarks.log"
    lines.unlink(missing_ok=True)  # of an earlier run
    begun = time.monotonic()
    starts = 0
    result: dict[str, Any] = {"outcome": "failed"}
    while starts < RESTARTS and (left := seconds - (time.monotonic() - begun)) > 10:
        starts += 1
        command = [sys.executable, str(HERE / "measure.py"), str(lines), "--seconds", str(left - 15)]
        result = run(command + ["--dry-run"] * dry_run, log, left)
        if result["outcome"] != "failed":
            break
    result["starts"] = starts
    return {**conclude(result, log, begun), **gather(lines)}


def model(folder: Path, seconds: float, dry_run: bool) -> dict[str, Any]:
    """Steps of the paper's model."""
    return listed("model_steps.py", folder, seconds, dry_run, [])


def training(folder: Path, seconds: float, dry_run: bool) -> dict[str, Any]:
    """Runs on a real brain; their folders go to $OUT, if there is one. It needs the packages of `vmddpm[demo]`."""
    out = Path(os.environ.get("OUT", folder)) / "training"
    return listed("train_brain.py", folder, seconds, dry_run, [str(out)])


def listed(program: str, folder: Path, seconds: float, dry_run: bool, arguments: list[str]) -> dict[str, Any]:
    """Runs a program that appends a line of JSON for each case."""
    name = program.partition(".")[0]
    lines, log = folder / f"{name}.jsonl", folder / f"{name}.log"
    lines.unlink(missing_ok=True)  # of an earlier run
    begun = time.monotonic()
    allowed = 10.0 if dry_run else seconds - 45  # what is begun is brought to an end
    command = [sys.executable, str(HERE / program), *arguments, str(lines), "--seconds", str(allowed)]
    result = run(command + ["--dry-run"] * dry_run, log, seconds)
    records = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    return {**conclude(result, log, begun), "cases": records}


def gather(lines: Path) -> dict[str, Any]:
    records = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    cases: dict[str, dict[str, Any]] = {}
    for record in records:
        cases[record["case"]] = record
    apart = {name: cases.pop(name, None) for name in ("ceilings", "peers", "out of time")}
    for record in cases.values():
        if record.pop("begun", False):
            record["error"] = "the process ended while this case was measured"
    return {**apart, "cases": list(cases.values())}
