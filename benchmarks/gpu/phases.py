"""The phases of a run. Each returns its entry in the results, with an outcome: "ok", "failed", "cut" if its time ran
out, or "skipped: " and the reason."""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import checks, counters
from benchmarks.gpu.checks import conclude
from benchmarks.gpu.commands import CUT, ROOT, Running, last_lines, module_command, run, start
from benchmarks.gpu.machine import cuda_tool

RESTARTS = 4
TO_COMPILE = 0.6  # share of the baselines' time that compiling may take
TO_END = 0.15  # share of a phase's time in which it begins nothing new


def build(folder: Path, seconds: float, dry_run: bool) -> dict[str, Any]:
    """Build the extension into vmddpm_kernels/ with CMake, as setup.py does, but only for this machine's GPU and the
    CPU's baseline. A rehearsal only configures the build, without CUDA, and keeps the existing extension."""
    import pybind11

    log, tree = folder / "build.log", folder / "build" if dry_run else ROOT / "build" / "gpu"
    configure = [
        "cmake", "-S", str(ROOT / "csrc"), "-B", str(tree), "-G", "Ninja",
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        "-DVMDDPM_BASELINE_ONLY=ON",
    ]  # fmt: skip
    begun = time.monotonic()
    if dry_run:
        return conclude(run([*configure, "-DVMDDPM_CUDA=0"], log, seconds), log, begun)
    import torch

    major, minor = torch.cuda.get_device_capability()
    configure += [f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={ROOT / 'vmddpm_kernels'}", "-DVMDDPM_CUDA=1",
                  f"-DVMDDPM_CUDA_ARCHS={major}{minor}-real"]  # fmt: skip
    result = run(configure, log, seconds, {"CUDACXX": cuda_tool("nvcc")})
    if result["outcome"] == "ok":
        result = run(["cmake", "--build", str(tree)], log, seconds - (time.monotonic() - begun))
    return conclude(result, log, begun)


def look(folder: Path, seconds: float, dry_run: bool) -> dict[str, Any]:
    """Profile six calls with ncu; if that fails, again with the few counters that every version has."""
    calls = module_command("counter_calls")
    log, table = folder / "counters.log", folder / "counters.csv"
    begun = time.monotonic()
    if dry_run:
        return conclude(run([*calls, "--dry-run"], log, seconds), log, begun)
    ncu = cuda_tool("ncu")
    if not Path(ncu).exists():
        return {"outcome": "skipped: no ncu"}
    result: dict[str, Any] = {"outcome": "failed"}
    for metrics, sections in ((counters.METRICS, ["WarpStateStats"]), (counters.FEW, [])):
        command = [ncu, *counters.options(metrics, sections), "--log-file", str(table), *calls]
        result = run(command, log, seconds - (time.monotonic() - begun))
        output_text = table.read_text(errors="replace") if table.exists() else ""
        with log.open("a") as output:
            output.write(output_text)
        try:
            result["calls"] = counters.read(table)
        except (ValueError, KeyError, OSError) as error:
            result |= {"outcome": CUT if result["outcome"] == CUT else "failed", "error": str(error)}
        if result["outcome"] != "failed":
            break
    return conclude(result, log, begun)


def start_baselines(folder: Path, seconds: float) -> list[Running]:
    """Start to compile the baselines, in parallel and at the lowest priority, while the phases before theirs run."""
    return [
        start(module_command("baselines", name), folder / f"build-{name}.log", seconds, polite=True)
        for name in ("VMamba", "mamba")
    ]


def baselines(folder: Path, seconds: float, dry_run: bool, compiling: list[Running] | None = None) -> dict[str, Any]:
    """Measure VMamba's and mamba_ssm's scans against ours, if they are compiled by then or soon after."""
    begun = time.monotonic()
    notes = []
    for running in compiling or []:
        running.deadline = begun + TO_COMPILE * seconds
        notes += [f"compiling: {running.wait()['outcome']}: {line}" for line in last_lines(running.log, 1)]
    result = measured("baselines", folder, seconds - (time.monotonic() - begun), dry_run)
    return {**result, "notes": notes, "seconds": round(time.monotonic() - begun, 1)}


def triton(folder: Path, seconds: float, dry_run: bool) -> dict[str, Any]:
    """Measure our Triton kernels against our CUDA kernels; a rehearsal interprets them."""
    return measured("triton", folder, seconds, dry_run, {"TRITON_INTERPRET": "1"} if dry_run else None)


def tests(folder: Path, seconds: float, dry_run: bool) -> dict[str, Any]:
    """Run the GPU tests and, at the same time, compute-sanitizer."""
    begun = time.monotonic()
    sanitizers = checks.start_sanitizers(folder, seconds, dry_run)
    tested = checks.run_tests(folder / "tests.log", seconds, dry_run, "not triton")
    found = {"pytest": tested, **checks.finish_sanitizers(sanitizers)}
    outcomes = [entry["outcome"] for entry in found.values()]
    worst = next((outcome for outcome in ("failed", CUT) if outcome in outcomes), "ok")
    return {"outcome": worst, "seconds": round(time.monotonic() - begun, 1), "checks": found}


def triton_tests(folder: Path, seconds: float, dry_run: bool) -> dict[str, Any]:
    """Run the GPU tests with the Triton kernels; compiling these takes most of the time."""
    tested = checks.run_tests(folder / "triton-tests.log", seconds, dry_run, "cpu" if dry_run else "triton")
    return {"outcome": tested["outcome"], "seconds": tested["seconds"], "checks": {"pytest": tested}}


def training(folder: Path, seconds: float, dry_run: bool) -> dict[str, Any]:
    """Train on a real brain, with run folders in $OUT if it is set. Needs the packages of `vmddpm[demo]`."""
    out = Path(os.environ.get("OUT", folder)) / "training"
    return listed("train_brain", folder, seconds, dry_run, [f"--out={out}"])


def measured(
    group: str, folder: Path, seconds: float, dry_run: bool, environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """Run measure.py, and start it again after an error on the GPU, which ends only its process."""
    begun = time.monotonic()
    lines, result, starts = folder / f"{group}.jsonl", {"outcome": CUT}, 0
    while starts < RESTARTS and (left := seconds - (time.monotonic() - begun)) > 5:
        starts += 1
        command = module_command("measure", group, str(lines), "--seconds", str((1 - TO_END) * left))
        result = run(command + ["--dry-run"] * dry_run, folder / f"{group}.log", left, environment)
        if result["outcome"] != "failed":
            break
    found = gather(lines)
    if any("error" in record for record in found["cases"]):
        result["outcome"] = "failed"
    elif found["not_measured"] and result["outcome"] == "ok":
        result["outcome"] = CUT
    return {**conclude(result, folder / f"{group}.log", begun), "starts": starts, **found}


def listed(
    name: str, folder: Path, seconds: float, dry_run: bool, arguments: Sequence[str] = ()
) -> dict[str, Any]:
    """Run a program that appends a line of JSON for each case."""
    lines, log = folder / f"{name}.jsonl", folder / f"{name}.log"
    begun = time.monotonic()
    command = module_command(name, *arguments, str(lines))
    command += ["--seconds", str((1 - TO_END) * seconds)] * (name != "smoke") + ["--dry-run"] * dry_run
    result = run(command, log, seconds)
    return {**conclude(result, log, begun), "cases": read_lines(lines)}


def read_lines(lines: Path) -> list[dict[str, Any]]:
    """The records of a program that may have been killed in the middle of a line."""
    records = []
    for line in lines.read_text(errors="replace").splitlines() if lines.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def gather(lines: Path) -> dict[str, Any]:
    """The last line of each case."""
    cases = {record["case"]: record for record in read_lines(lines)}
    other = {name: cases.pop(name) for name in ("ceilings", "baselines") if name in cases}
    not_measured = cases.pop("out of time", {}).get("not_measured", [])
    for name, record in list(cases.items()):
        if record.pop("begun", False):  # its process ended before it was measured
            not_measured = [name, *not_measured]
    return {**other, "cases": list(cases.values()), "not_measured": not_measured}
